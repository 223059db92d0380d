"""Runs as `htc run` leaves them, written with the pipeline's own functions, without a model or real images."""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.job_spec.job import load_spec
from pipeline.job_spec.map_tables import MapTable
from pipeline.output.commit import commit_shard
from pipeline.output.map_rows import MapRows, PanopticRow, SemanticRow
from pipeline.output.results import open_results
from pipeline.output.rows import ImageRow, InstanceRow, build_image_row
from pipeline.runs.open import open_run
from pipeline.runs.request import LeaseTaker
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage

FINGERPRINT = {"preset": "htc_r50_fpn", "weights_sha256": "a" * 64, "config_sha256": "0" * 64, "trained": True}
FIRST_DAY = datetime(2026, 3, 1, 2, tzinfo=UTC)
# Two by two pixels at (1, 1) of an image of 5 by 4 pixels, counted by columns: 5 off, 2 on, 2 off, 2 on, 9 off; and the
# other pixels.
MASK = {"size": [4, 5], "counts": "52207"}
OTHERS = {"size": [4, 5], "counts": "052M07"}


class PowerCutError(BaseException):
    """The process dies: a BaseException, so that no `except Exception` catches it."""


class HookedStorage(Storage):
    """Calls a function after each write and each deletion; raises PowerCutError from change `dies_before` on."""

    def __init__(self, after: Callable[[int], None] = lambda _: None, *, dies_before: int | None = None) -> None:
        super().__init__()
        self.after = after
        self.dies_before = dies_before
        self.changes = 0
        # Files are removed in threads, and `after` must see one state.
        self._one_by_one = threading.Lock()

    def write(self, uri: str, payload: bytes) -> None:
        self._count(lambda: super(HookedStorage, self).write(uri, payload))

    def delete(self, uri: str) -> None:
        self._count(lambda: super(HookedStorage, self).delete(uri))

    def _count(self, change: Callable[[], None]) -> None:
        with self._one_by_one:
            if self.dies_before is not None and self.changes >= self.dies_before:
                raise PowerCutError
            change()
            self.changes += 1
            self.after(self.changes)


def write_inputs(folder: Path, count: int) -> str:
    """Make files that are listed as images and cannot be decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04d}.jpg").write_bytes(b"x")
    return str(folder)


def begin_run(
    input_uri: str,
    output_uri: str,
    run: str,
    *,
    day: int = 0,
    shard_images: int = 2,
    storage: Storage | None = None,
    take_lease: LeaseTaker | None = None,
    mode: str = "full",
    maps: Sequence[MapTable] = (),
) -> RunHandle:
    """Begin or resume a run, as the driver does.

    Args:
        day: of the run's beginning, counted from FIRST_DAY.
        take_lease: takes its lease; None for no lease.
        mode: "full" or "incremental".
        maps: the tables of maps that the run is asked for.
    """
    overrides: dict[str, object] = {"input.uri": input_uri, "output.uri": output_uri, "select.mode": mode}
    overrides |= {"compute.shard_images": shard_images, "select.max_deleted_share": 1.0}
    overrides |= {f"model.{table}": True for table in maps}
    spec = load_spec(None, {**overrides, "model.preset": "htc_r50_fpn", "model.weights": "untrained"})
    now = FIRST_DAY + timedelta(days=day)
    return open_run(spec, FINGERPRINT, storage or Storage(), run=run, now=now, take_lease=take_lease)


def finish_run(
    input_uri: str,
    output_uri: str,
    run: str,
    *,
    day: int = 0,
    shard_images: int = 2,
    instances: int = 2,
    only_shards: int | None = None,
    storage: Storage | None = None,
    is_ok: Callable[[str], bool] = lambda _: True,
    mode: str = "full",
    maps: Sequence[MapTable] = (),
) -> RunHandle:
    """Write a run over all files of the input as the workers and the driver leave it.

    Args:
        day, mode, maps: see `begin_run`.
        only_shards: the number of shards to commit, without a summary; None commits all and writes the summary.
    """
    store = storage or Storage()
    began = begin_run(
        input_uri, output_uri, run, day=day, shard_images=shard_images, storage=store, mode=mode, maps=maps
    )
    rows: list[ImageRow] = []
    for shard in range(began.shard_count if only_shards is None else only_shards):
        made = [_rows_of(ref, shard, instances, is_ok) for ref in began.read_shard(shard).images]
        rows += [image for image, _ in made]
        images, found = [image for image, _ in made], [row for _, own in made for row in own]
        commit_shard(store, output_uri, run, shard, images, found, maps=_map_rows_of(images, found, maps))
    if only_shards is None:
        began.write_summary(_summary(run, rows))
    began.close()
    return began


def tables_of(output_uri: str, run: str | None = None, storage: Storage | None = None) -> dict[str, list[str]]:
    """All rows that readers see, as sorted text, for comparison."""
    results = open_results(output_uri, storage)
    return {
        "images": sorted(map(str, results.images(run).to_pylist())),
        "instances": sorted(map(str, results.instances(run).to_pylist())),
        "semantic": sorted(map(str, results.semantic(run).to_pylist())),
        "panoptic": sorted(map(str, results.panoptic(run).to_pylist())),
    }


def files_below(folder: Path) -> list[str]:
    """The paths of all files, hidden ones too, relative to the folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _rows_of(ref: Any, shard: int, instances: int, is_ok: Callable[[str], bool]) -> tuple[ImageRow, list[InstanceRow]]:
    if not is_ok(ref.uri):
        row = build_image_row(ref, shard=shard, model="htc_r50_fpn", status="unreadable", error="it is empty")
        return row, []
    row = build_image_row(ref, shard=shard, model="htc_r50_fpn", size=(4, 5), instances=instances)
    found = [
        InstanceRow(
            image_id=row.image_id,
            uri=row.uri,
            instance=number,
            category_id=1 + number,
            category=("person", "bicycle")[number % 2],
            score=0.9 - number / 8,
            bbox={"x": 1.0, "y": 1.0, "width": 2.0, "height": 2.0},
            area=4,
            mask=MASK,
            model="htc_r50_fpn",
        )
        for number in range(instances)
    ]
    return row, found


def _map_rows_of(images: Sequence[ImageRow], instances: Sequence[InstanceRow], tables: Sequence[MapTable]) -> MapRows:
    """The first instance of an image is a thing, and the pixels around it are sky."""
    ok = [row for row in images if row.status == "ok"]
    found = {row.image_id: row for row in instances if row.instance == 0}
    rows: MapRows = {
        "semantic": [
            SemanticRow(row.image_id, row.uri, number, name, area, mask, row.model)
            for row in ok
            for number, name, area, mask in ((1, "person", 4, MASK), (157, "sky-other", 16, OTHERS))
        ],
        "panoptic": [
            PanopticRow(row.image_id, row.uri, 0, 1, "person", True, 0, row.score, 4, row.bbox, MASK, row.model)
            for row in found.values()
        ],
    }
    return {table: rows[table] for table in tables}


def _summary(run: str, rows: list[ImageRow]) -> dict[str, object]:
    statuses: dict[str, int] = {}
    for row in rows:
        statuses[row.status] = statuses.get(row.status, 0) + 1
    return {
        "run": run,
        "status": "complete",
        "images": len(rows),
        "statuses": statuses,
        "instances": sum(row.instances for row in rows),
    }
