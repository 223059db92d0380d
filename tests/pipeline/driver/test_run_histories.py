"""Random histories of one run: whatever died when, the tables at the end are those of an undisturbed run."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import settings

import pipeline.driver.run_job
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import RunError, StorageError
from pipeline.job_spec.job import load_spec
from pipeline.maintenance.compaction import compact_run
from pipeline.maintenance.running_compaction import RunningCompaction
from pipeline.storage.storage import Storage
from tests.chaos.checks import Tables, compare, leftovers, read_tables
from tests.chaos.input import local_store
from tests.chaos.scene import Scene
from tests.support.builders.run_histories import DriverDeath, Fate, FatedLoad, FatedPool, enact
from tests.support.fakes.in_process_pool import in_process

HISTORIES = 24 * settings.default.max_examples // 100
SESSIONS = 12
PART_BYTES = 20_000


def live_through(scene: Scene, fate: Fate) -> None:
    """Run the same job again and again until it is complete; the last sessions are undisturbed."""
    values = {
        "input.uri": scene.input_uri,
        "output.uri": scene.output_uri,
        "model.preset": "htc_lite0_fpn",
        "model.weights": "untrained",
        "compute.shard_images": 4,
        "retry.max_error_rate": 0.2,
    }
    for session in range(SESSIONS):
        fate.begin_session(is_calm=session >= SESSIONS - 2)
        try:
            summary = run(
                load_spec(None, values),
                progress=SilentProgress(),
                load_model=FatedLoad(fate),
                open_pool=in_process(FatedPool, workers=2),
            )
        except (DriverDeath, RunError, StorageError):
            continue
        scene.exit_codes.append(summary.exit_code)
        if summary.exit_code == 0:
            return


class EagerCompaction(RunningCompaction):
    """Compacts in the driver's own thread, after each shard."""

    def __init__(self, *where: Any, target_bytes: int, **options: Any) -> None:
        super().__init__(*where, **options, target_bytes=target_bytes // 256)

    def committed(self, shard: int) -> None:
        self._counted.add(shard)
        self._look(frozenset(self._counted))


def history(
    folder: Path, seed: int | None, *, is_poisoned: bool = False, is_compacted: bool = False
) -> tuple[Tables, list[str], Fate]:
    """Run one history; `seed` None for an undisturbed one."""
    scene = Scene(folder, str(folder.parent / "in"), str(folder / "out"))
    fate = Fate(Random(seed), is_poisoned)
    with pytest.MonkeyPatch.context() as patch:
        enact(fate, patch)
        patch.setattr(pipeline.driver.run_job, "RunningCompaction", EagerCompaction)
        # Two shards fill a file.
        patch.setattr(pipeline.driver.run_job, "MIB", PART_BYTES if is_compacted else 1 << 20)
        if seed is None:
            fate.begin_session = lambda *, is_calm: None  # type: ignore[method-assign]
        live_through(scene, fate)
    if is_compacted:
        # Removes what a compaction left that was killed in the run's last moments.
        (name,) = [path.name for path in (folder / "out/runs").iterdir()]
        compact_run(Storage(), scene.output_uri, name, target_bytes=1, check=lambda: None)
    tables, complaints = read_tables(scene, "")
    if scene.exit_codes[-1:] != [0]:
        complaints.append(f"never complete: {scene.exit_codes}")
    return tables, complaints + leftovers(scene, ""), fate


@pytest.mark.slow
@pytest.mark.timeout(600 * settings.default.max_examples // 100)
def test_whatever_died_when_the_tables_are_those_of_an_undisturbed_run(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("examples", HISTORIES)
    local_store(tmp_path / "in").fill()
    calm, complaints, _ = history(tmp_path / "calm", None)
    assert complaints == []
    lost: dict[int, list[str]] = {}
    seen: Counter[str] = Counter()
    compacted = 0
    for seed in range(HISTORIES):
        is_poisoned = seed % 3 == 0
        tables, complaints, fate = history(
            tmp_path / str(seed), seed, is_poisoned=is_poisoned, is_compacted=seed % 2 == 0
        )
        compacted += len(list((tmp_path / str(seed)).rglob("parts-*")))
        changed = {"poison.png": {"status": "failed", "instances": 0}} if is_poisoned else {}
        complaints += compare(tables, calm, changed)
        seen += fate.seen
        if complaints:
            lost[seed] = complaints
    assert lost == {}
    assert compacted > 0
    # Histories in which nothing happened would prove nothing.
    for event in ("worker before instances", "worker after instances", "worker after images", "driver before images"):
        assert seen[event] > 0, seen
