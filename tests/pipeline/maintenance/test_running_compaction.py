"""Compaction while a run goes on: each committed row counts once at every instant, whatever dies when."""

import logging
import shutil
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

import pipeline.driver.run_job
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import RunError
from pipeline.job_spec.job import load_spec
from pipeline.maintenance.compaction import compact_run
from pipeline.maintenance.publications import Publication, note_publication
from pipeline.maintenance.running_compaction import RunningCompaction, compact_full_ranges
from pipeline.output.commit import images_part, instances_part
from pipeline.output.layout import COMMIT_ORDER
from pipeline.output.parts import Part, committed_parts
from pipeline.output.results import open_results
from pipeline.output.views import query_views
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import (
    HookedStorage,
    PowerCutError,
    begin_run,
    finish_run,
    tables_of,
    write_inputs,
)
from tests.support.fakes.in_process_pool import in_process
from tests.support.fakes.models import LoadFake, write_images

SHARDS = 9


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of SHARDS shards of two images."""
    folder = tmp_path_factory.mktemp("sound")
    finish_run(write_inputs(folder / "in", 2 * SHARDS), str(folder / "out"), "r")
    return folder


def held() -> None:
    """The lease is held."""


class Scene:
    """A run whose shards are committed one by one, in any order, from the parts of a finished run."""

    def __init__(self, sound: Path, folder: Path) -> None:
        self.inputs, self.sound = str(sound / "in"), str(sound / "out")
        self.output = str(folder / "out")
        shutil.copytree(sound / "out/runs", folder / "out/runs")
        (folder / "out/runs/r/summary.json").unlink()
        self.committed: set[int] = set()
        self._is_committing: set[int] = set()
        # Three shards and a half.
        sizes = [
            max(Path(part(self.sound, "r", shard)).stat().st_size for part in (images_part, instances_part))
            for shard in range(SHARDS)
        ]
        self.target_bytes = max(sizes) * 7 // 2

    def commit(self, storage: Storage, shard: int) -> None:
        """Commit a shard as a worker does; again if it was committed."""
        for part in (instances_part, images_part):
            self._is_committing = {shard} if part is images_part else set()
            storage.write(part(self.output, "r", shard), Path(part(self.sound, "r", shard)).read_bytes())
        self._is_committing = set()
        self.committed.add(shard)

    def complaint(self) -> str:
        """Return what readers see too much or too little; "" when each row of a committed shard counts once."""
        results = open_results(self.output)
        shards = sorted(results.images("r").column("shard").to_pylist())
        if shards not in [sorted([*done, *done]) for done in (self.committed, self.committed | self._is_committing)]:
            return f"images of the shards {shards}, committed: {self.committed}"
        instances = results.instances("r").num_rows
        return "" if instances == 2 * len(shards) else f"{instances} instances of {len(shards)} images"

    def compact(self, storage: Storage, counted: set[int]) -> list[Part]:
        done: list[Part] = []
        compact_full_ranges(
            storage, self.output, "r", counted, target_bytes=self.target_bytes, check=held, on_done=done.append
        )
        return done


def test_only_full_ranges_of_counted_shards_are_merged(sound: Path, tmp_path: Path) -> None:
    scene, storage = Scene(sound, tmp_path), Storage()
    for shard in (0, 1, 2, 4, 5, 6, 7, 8):
        scene.commit(storage, shard)
    # Shard 3 is missing, and the driver has not counted shard 8.
    assert scene.compact(storage, {0, 1, 2, 4, 5, 6, 7}) == [Part(4, 6, is_compacted=True)]
    assert scene.complaint() == ""
    scene.commit(storage, 3)
    # Beside a large file, what is left is merged although it does not fill one.
    assert scene.compact(storage, set(range(SHARDS))) == [Part(0, 2, is_compacted=True)]
    assert scene.complaint() == ""
    assert scene.compact(storage, set(range(SHARDS))) == []
    assert committed_parts(storage, scene.output, "r") == [
        *(Part(0, 2, is_compacted=True), Part(3, 3), Part(4, 6, is_compacted=True), Part(7, 7), Part(8, 8)),
    ]


def test_a_worker_that_was_given_up_may_write_a_compacted_shard_again(sound: Path, tmp_path: Path) -> None:
    scene, storage = Scene(sound, tmp_path), Storage()
    for shard in range(SHARDS):
        scene.commit(storage, shard)
    scene.compact(storage, set(range(5)))
    scene.commit(storage, 1)
    assert scene.complaint() == ""
    scene.compact(storage, set(range(SHARDS)))
    assert scene.complaint() == ""
    assert not Path(images_part(scene.output, "r", 1)).exists()
    assert not Path(instances_part(scene.output, "r", 1)).exists()
    assert tables_of(scene.output) == tables_of(scene.sound)


def test_killed_before_any_change_readers_see_each_committed_row_once(sound: Path, tmp_path: Path) -> None:
    for deaths in count():
        scene = Scene(sound, tmp_path / str(deaths))
        for shard in range(SHARDS):
            scene.commit(Storage(), shard)
        try:
            scene.compact(HookedStorage(dies_before=deaths), set(range(SHARDS)))
        except PowerCutError:
            assert scene.complaint() == "", deaths
            begun = begin_run(scene.inputs, scene.output, "r")
            assert begun.todo() == [], deaths
            # The next session removes what this one left.
            scene.compact(Storage(), set(range(SHARDS)))
            assert scene.complaint() == "", deaths
            names = {table: {path.name for path in Path(scene.output, table).rglob("*")} for table in COMMIT_ORDER}
            assert names["images"] == names["instances"], deaths
            assert len(names["images"]) == 1 + 2 + 3, deaths
            continue
        break
    # Two large files of each table, and the files that they replace.
    assert deaths == 2 * (2 + 2 * 3)


@pytest.mark.parametrize("seed", range(6))
def test_random_histories(sound: Path, tmp_path: Path, seed: int) -> None:
    random, scene = Random(seed), Scene(sound, tmp_path)
    complaints: list[str] = []

    def look(_: int) -> None:
        complaint = scene.complaint()
        if complaint:
            complaints.append(complaint)

    while len(scene.committed) < SHARDS:
        # A session: it counts what it commits, and may die at any change.
        storage = HookedStorage(look, dies_before=random.randrange(25))
        counted: set[int] = set()
        left = sorted(set(range(SHARDS)) - scene.committed)
        random.shuffle(left)
        try:
            for shard in left:
                scene.commit(storage, shard)
                counted.add(shard)
                if random.random() < 0.2:
                    # By a worker that was given up.
                    scene.commit(storage, random.choice(sorted(scene.committed)))
                if random.random() < 0.5:
                    scene.compact(storage, counted)
        except PowerCutError:
            look(0)
            begun = begin_run(scene.inputs, scene.output, "r")
            assert set(begun.todo()) == set(range(SHARDS)) - scene.committed
    assert complaints == []
    sql = "SELECT count(*), count(DISTINCT (uri, instance)) FROM instances"
    asked = query_views(open_results(scene.output), lambda database: database.execute(sql).fetchall())
    assert asked == [(4 * SHARDS, 4 * SHARDS)]
    compact_run(Storage(), scene.output, "r", target_bytes=1 << 30, check=held)
    assert tables_of(scene.output) == tables_of(scene.sound)


def compaction_of(scene: Scene, storage: Storage, check: object = held) -> RunningCompaction:
    return RunningCompaction(
        storage,
        scene.output,
        "r",
        target_bytes=scene.target_bytes,
        check=check,  # type: ignore[arg-type]
        look_every_s=0,
    )


def test_it_works_in_a_thread_and_ends_with_the_driver(sound: Path, tmp_path: Path) -> None:
    scene, storage = Scene(sound, tmp_path), HookedStorage()
    compaction = compaction_of(scene, storage)
    for shard in range(SHARDS):
        scene.commit(Storage(), shard)
        compaction.committed(shard)
    # A look that has begun is waited for, and replaces nothing any more.
    compaction.close()
    changes = storage.changes
    assert scene.complaint() == ""
    again = compaction_of(scene, storage)
    again.close()
    again.committed(0)
    again.close()
    assert storage.changes == changes


def test_a_lost_lease_and_a_damaged_part_end_it_and_the_run_goes_on(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lost() -> None:
        raise RunError("Another driver has taken the run over.")

    for name, check in (("lost", lost), ("damaged", held)):
        scene, storage = Scene(sound, tmp_path / name), HookedStorage()
        for shard in range(SHARDS):
            scene.commit(Storage(), shard)
        if name == "damaged":
            Path(instances_part(scene.output, "r", 1)).write_bytes(b"PAR1")
        compaction = compaction_of(scene, storage, check)
        compaction._counted.update(range(SHARDS))
        with caplog.at_level(logging.WARNING):
            compaction._look(frozenset(range(SHARDS)))
            compaction.committed(0)
        compaction.close()
        assert storage.changes == 0
    assert [("taken the run over" in line, "part-00001" in line) for line in caplog.messages] == [
        (True, False),
        (False, True),
    ]


def test_a_published_run_is_left_alone(sound: Path, tmp_path: Path) -> None:
    scene, storage = Scene(sound, tmp_path), HookedStorage()
    for shard in range(SHARDS):
        scene.commit(Storage(), shard)
    note_publication(Storage(), scene.output, "r", Publication("catalog", "htc", "2026-01-01T00:00:00+00:00"))
    compaction_of(scene, storage)._look(frozenset(range(SHARDS)))
    assert storage.changes == 0


class Waiting(RunningCompaction):
    """Looks after each shard, and the driver waits for the look."""

    def __init__(self, *where: Any, **options: Any) -> None:
        super().__init__(*where, **options, look_every_s=0)

    def committed(self, shard: int) -> None:
        super().committed(shard)
        if self._thread is not None:
            self._thread.join()


def test_a_run_is_compacted_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "in", 24)
    values: dict[str, object] = {"input.uri": str(tmp_path / "in"), "model.preset": "htc_lite0_fpn"}
    values |= {"model.weights": "untrained", "compute.shard_images": 1, "output.target_part_mib": 1}
    monkeypatch.setattr(pipeline.driver.run_job, "RunningCompaction", Waiting)
    summaries, tables = [], []
    for name, mib in (("small", 1 << 20), ("compacted", 40_000)):
        monkeypatch.setattr(pipeline.driver.run_job, "MIB", mib)
        spec = load_spec(None, {**values, "output.uri": str(tmp_path / name)})
        summaries.append(run(spec, run="r", progress=SilentProgress(), load_model=LoadFake(), open_pool=in_process()))
        tables.append(tables_of(str(tmp_path / name)))
    assert [summary.status for summary in summaries] == ["complete", "complete"]
    assert summaries[0].instances == summaries[1].instances
    assert tables[0] == tables[1]
    assert not list((tmp_path / "small/images/run=r").glob("parts-*"))
    assert list((tmp_path / "compacted/images/run=r").glob("parts-*"))
