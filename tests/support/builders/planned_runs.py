"""Runs over a folder without workers: plan a run, commit it by hand, and see which images it has."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import ImageStatus
from pipeline.inputs.image_ref import ReadVersion
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.deletions import DELETIONS_SCHEMA, deletion_parts
from pipeline.output.part_files import read_part
from pipeline.output.results import Results
from pipeline.output.rows import build_image_row
from pipeline.planning.manifest import Manifest
from pipeline.planning.planner import Planner, clear_parts
from pipeline.planning.shard_size import ShardSizing
from pipeline.planning.survey import InputSurvey, survey_input
from pipeline.runs.lease import take_lease
from pipeline.runs.open import open_run
from pipeline.runs.request import LeaseTaker
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage

FINGERPRINT = {"preset": "htc_lite0_fpn", "weights_sha256": "a" * 64, "config_sha256": "c" * 64, "trained": True}
OTHER_MODEL = {**FINGERPRINT, "weights_sha256": "b" * 64}
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class IncrementalRuns:
    """A folder of images, an output beside it, and a clock that advances by a day with each run."""

    folder: Path
    storage: Storage = field(default_factory=Storage)
    days: int = 0

    def put(self, *names: str, content: str = "x") -> None:
        """Write images; the same content again leaves an image unchanged."""
        for name in names:
            path = self.folder / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            # A local file's version is its time and size; the time depends on the content here.
            os.utime(path, ns=(0, sum(content.encode()) * 10**9))

    def remove(self, *names: str) -> None:
        for name in names:
            (self.folder / "in" / name).unlink()

    def spec(self, **overrides: object) -> JobSpec:
        values: dict[str, object] = {
            "input.uri": str(self.folder / "in"),
            "output.uri": str(self.folder / "out"),
            "compute.shard_images": 2,
            "select.mode": "incremental",
        }
        return load_spec(None, values | {key.replace("__", "."): value for key, value in overrides.items()})

    def open(
        self,
        *,
        fingerprint: Mapping[str, Any] = FINGERPRINT,
        run: str | None = None,
        storage: Storage | None = None,
        fresh: bool = False,
        is_held: bool = False,
        **overrides: object,
    ) -> RunHandle:
        """Begin or resume a run; `is_held`: take its lease, as drivers do."""
        self.days += 1
        moment = FIRST_DAY + timedelta(days=self.days)
        spec, store = self.spec(**overrides), storage or self.storage
        taker: LeaseTaker | None = (lambda name: take_lease(store, spec.output.uri, name)) if is_held else None
        return open_run(spec, fingerprint, store, run=run, fresh=fresh, now=moment, take_lease=taker)

    def commit(
        self, run: RunHandle, statuses: Mapping[str, ImageStatus] | None = None, shards: int | None = None
    ) -> None:
        """Commit all shards of a run, or the first ones; images are ok except those in `statuses`."""
        for index in run.todo()[:shards]:
            rows = []
            for ref in run.read_shard(index).images:
                status = (statuses or {}).get(Path(ref.uri).name, "ok")
                read = (
                    ReadVersion(ref.bytes or 1, self.storage.stat(ref.uri).etag, None) if status != "missing" else None
                )
                rows.append(build_image_row(ref, shard=index, model="m", status=status, read=read))
            commit_shard(self.storage, run.output_uri, run.name, index, rows, [])
        if not run.todo():
            run.write_summary({"status": "complete"})

    def run_again(self, statuses: Mapping[str, ImageStatus] | None = None, **options: Any) -> list[str]:
        """Plan and commit a new run, and return the names of its images."""
        run = self.open(**options)
        assert run.state == "new"
        self.commit(run, statuses)
        return names_of(run)


def names_of(run: RunHandle) -> list[str]:
    """The file names of a run's images, in the order of its manifest."""
    return [Path(ref.uri).name for index in range(run.shard_count) for ref in run.read_shard(index).images]


def counts_of(run: RunHandle) -> dict[str, int]:
    """The run's selection counts that are not 0."""
    return {reason: count for reason, count in run.manifest.selection.items() if count}


def read_deletions(results: Results, run: str) -> list[dict[str, Any]]:
    """The deletion records of a run."""
    uris = deletion_parts(results, run)
    return [row for uri in uris for row in read_part(results.storage, uri, DELETIONS_SCHEMA).to_pylist()]


def planner_of(spec: JobSpec, storage: Storage, folder: str, **options: Any) -> Planner:
    """The planner that a run of this spec has, with its manifest in `folder`."""
    sizing = ShardSizing.of(spec.compute)
    return Planner(spec.input, storage, spec.output.uri, folder, sizing=sizing, **options)


def plan_manifest(spec: JobSpec, storage: Storage, folder: str) -> Manifest:
    """Write the whole manifest into `folder`, in place of an earlier one, as beginning a run does."""
    planner = planner_of(spec, storage, folder)
    clear_parts(storage, folder)
    for _ in planner.parts():
        pass
    return planner.manifest


def survey_of(spec: JobSpec, storage: Storage, **options: Any) -> InputSurvey:
    """The survey that `htc plan` makes for this spec."""
    sizing = ShardSizing.of(spec.compute)
    return survey_input(spec.input, storage, spec.output.uri, sizing=sizing, **options)
