"""Removal: killed anywhere, the run is untouched or ignored, and the next removal finishes."""

import json
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, RunError, SpecError
from pipeline.maintenance.removal import remove_empty_folders, remove_run
from pipeline.maintenance.survey import half_pruned
from pipeline.output.run_record import load_record
from pipeline.runs.lease import Lease, take_lease
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import (
    HookedStorage,
    PowerCutError,
    begin_run,
    files_below,
    finish_run,
    tables_of,
    write_inputs,
)

MOMENT = "2026-03-09T00:00:00+00:00"


def remove(output: str, storage: Storage | None = None) -> None:
    remove_run(storage or Storage(), output, "old", check=lambda: None, moment=MOMENT)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Two runs of three shards; the newer one's name begins with the older one's."""
    images = write_inputs(tmp_path / "in", 6)
    finish_run(images, str(tmp_path / "out"), "old")
    finish_run(images, str(tmp_path / "out"), "older", day=1)
    return str(tmp_path / "out")


def test_no_file_of_the_run_is_left_and_the_others_stay(output: str) -> None:
    kept = tables_of(output, "older")
    remove(output)
    remove_empty_folders(output, "old")
    assert [path for path in Path(output).rglob("*") if path.name in ("old", "run=old")] == []
    assert tables_of(output) == kept


def test_killed_early_the_run_is_untouched_or_ignored_and_the_next_removal_finishes(output: str) -> None:
    before, kept = tables_of(output), tables_of(output, "older")
    for deaths in range(4):
        with pytest.raises(PowerCutError):
            remove(output, HookedStorage(dies_before=deaths))
        is_whole = deaths == 0
        assert tables_of(output) == (before if is_whole else kept), deaths
        assert half_pruned(Storage(), output) == ([] if is_whole else ["old"]), deaths
    remove(output)
    assert half_pruned(Storage(), output) == []
    assert not any("old/" in name for name in files_below(Path(output)))


def test_each_death_leaves_something_that_is_found_again(tmp_path: Path) -> None:
    """From the tombstone to its own removal, which is the last."""
    images = write_inputs(tmp_path / "in", 4)
    for deaths in count(1):
        output = str(tmp_path / f"out-{deaths}")
        finish_run(images, output, "old")
        try:
            remove(output, HookedStorage(dies_before=deaths))
        except PowerCutError:
            assert half_pruned(Storage(), output) == ["old"], deaths
            continue
        break
    assert deaths > 8
    assert files_below(Path(output)) == []


def test_readers_of_the_folders_never_miss_the_instances_of_an_image(output: str) -> None:
    def of_old(table: str) -> list[dict[str, object]]:
        files = sorted(Path(output, table, "run=old").glob("*.parquet"))
        return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]

    missing: list[int] = []

    def look(change: int) -> None:
        found = [row["uri"] for row in of_old("instances")]
        missing.extend(change for row in of_old("images") if found.count(row["uri"]) != row["instances"])

    storage = HookedStorage(look)
    remove(output, storage)
    assert storage.changes > 8
    assert missing == []


def test_a_half_pruned_run_is_not_resumed(tmp_path: Path, output: str) -> None:
    with pytest.raises(PowerCutError):
        remove(output, HookedStorage(dies_before=2))
    with pytest.raises(SpecError, match=r"half pruned; `htc prune .* --yes` finishes that"):
        begin_run(str(tmp_path / "in"), output, "old")
    assert begin_run(str(tmp_path / "in"), output, "older", day=1).state == "complete"


def test_a_run_that_is_removed_before_its_driver_has_the_lease_is_not_resumed(tmp_path: Path, output: str) -> None:
    finish_run(str(tmp_path / "in"), output, "cut", day=2, only_shards=1)

    def remove_and_take(run: str) -> Lease:
        remove_run(Storage(), output, run, check=lambda: None, moment=MOMENT)
        return take_lease(Storage(), output, run)

    with pytest.raises(InputError, match="The run cut was removed meanwhile"):
        begin_run(str(tmp_path / "in"), output, "cut", day=2, take_lease=remove_and_take)
    assert not any("cut" in name for name in files_below(Path(output)))


def test_a_lost_lease_removes_nothing(output: str) -> None:
    def lost() -> None:
        raise RunError("Another driver has taken the run over.")

    before = files_below(Path(output))
    with pytest.raises(RunError, match="taken the run over"):
        remove_run(Storage(), output, "old", check=lost, moment=MOMENT)
    assert files_below(Path(output)) == before


def test_the_tombstone_has_the_time(output: str) -> None:
    with pytest.raises(PowerCutError):
        remove(output, HookedStorage(dies_before=1))
    reported = json.loads(Path(output, "runs", "old", "pruned.json").read_text())
    assert reported == {"run": "old", "pruned": MOMENT}
    assert load_record(Storage(), output, "older") is not None
