"""Interrupted planning of an incremental run: resumed, it gives the same images and the same deletion records."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import InputError, StorageError
from pipeline.maintenance.compaction import compact_run
from pipeline.output.results import open_results
from pipeline.output.run_record import list_records
from pipeline.planning import manifest as manifests
from pipeline.planning import selection as selections
from pipeline.runs.lease import RunHeldError
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage
from tests.support.builders.planned_runs import OTHER_MODEL, IncrementalRuns, counts_of, names_of, read_deletions
from tests.support.fakes.dying_storage import CutOff

OLD = [f"{number:02d}.jpg" for number in range(0, 40, 2)]
CHANGED, NEW, GONE = OLD[1:16:2], ["01.jpg", "15.jpg", "31.jpg", "99.jpg"], [OLD[0], OLD[10], OLD[19]]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IncrementalRuns:
    """Twenty images; then eight change, four are new, three are gone. Parts of 2, 4, 8 images, batches of 3 images."""
    monkeypatch.setattr(manifests, "FIRST_PART_IMAGES", 2)
    monkeypatch.setattr(manifests, "PART_IMAGES", 8)
    monkeypatch.setattr(selections, "BATCH_IMAGES", 3)
    runs = IncrementalRuns(tmp_path)
    runs.put(*OLD, "x.txt")
    runs.run_again()
    runs.put(*CHANGED, content="other")
    runs.put(*NEW)
    runs.remove(*GONE)
    return runs


def copy_of_output(runs: IncrementalRuns, name: str) -> str:
    return str(shutil.copytree(runs.folder / "out", runs.folder / name))


def deleted(output: str) -> list[str]:
    results = open_results(output)
    return sorted(Path(row["uri"]).name for row in read_deletions(results, results.runs()[-1]))


def interrupt_and_resume(
    runs: IncrementalRuns, output: str, at: int, meanwhile: Callable[[], None] = lambda: None
) -> RunHandle | None:
    """Interrupt a run's planning at its write `at`, and once more later; None when it does not write so often."""
    try:
        runs.open(run="night", output__uri=output, storage=CutOff(at))
        return None
    except StorageError:
        pass
    meanwhile()
    with pytest.raises(StorageError):
        runs.open(run="night", output__uri=output, storage=CutOff(0 if at > 2 else 1))
    return runs.open(run="night", output__uri=output)


def test_planning_interrupted_at_any_write_gives_the_same_manifest(runs: IncrementalRuns) -> None:
    complete = runs.open(run="night", output__uri=copy_of_output(runs, "complete"))
    assert names_of(complete) == sorted(CHANGED + NEW)
    assert counts_of(complete) == {"listed": 21, "new": 4, "changed": 8, "unchanged": 9, "deleted": 3}
    at = 0
    while True:
        output = copy_of_output(runs, f"out{at}")
        run = interrupt_and_resume(runs, output, at)
        if run is None:
            break
        assert names_of(run) == names_of(complete), at
        assert run.manifest == complete.manifest
        assert deleted(output) == GONE
        at += 1
    # The record, three parts, one part of deletions, and the record after each part.
    assert at == 8


@pytest.mark.parametrize("at", range(1, 8))
def test_changes_between_the_sessions_lose_no_image_and_repeat_none(runs: IncrementalRuns, at: int) -> None:
    def meanwhile() -> None:
        # Planned first, early and unchanged, early and new.
        runs.remove("01.jpg")
        runs.put("04.jpg", content="third")
        runs.put("03.jpg")

    output = copy_of_output(runs, "cut")
    run = interrupt_and_resume(runs, output, at, meanwhile)
    assert run is not None
    names = names_of(run)
    assert len(names) == len(set(names)) == sum(counts_of(run).get(key, 0) for key in ("new", "changed"))
    is_complete = "03.jpg" not in names
    assert set(CHANGED + NEW) - {"01.jpg"} <= set(names)
    assert is_complete or {"03.jpg", "04.jpg"} <= set(names)
    # When the last part was written, planning was complete.
    assert is_complete == (at >= 7)
    assert deleted(output) == GONE


def test_an_unfinished_run_is_resumed_and_the_next_one_is_new(runs: IncrementalRuns) -> None:
    run = runs.open()
    runs.commit(run, shards=2)
    runs.put("zz.jpg")
    again = runs.open(compute__workers=7, select__max_deleted_share=0.9)
    assert (again.name, again.state, len(again.todo())) == (run.name, "resumed", 4)
    runs.commit(again)
    assert runs.run_again() == ["zz.jpg"]


def test_a_complete_run_without_a_summary_is_resumed(runs: IncrementalRuns) -> None:
    run = runs.open()
    runs.commit(run)
    (runs.folder / "out/runs" / run.name / "summary.json").unlink()
    again = runs.open()
    assert (again.name, again.state) == (run.name, "complete")
    again.write_summary({"status": "complete"})
    assert runs.open().name != run.name


def test_an_unfinished_run_of_another_model_is_passed_over(runs: IncrementalRuns) -> None:
    run = runs.open(fingerprint=OTHER_MODEL)
    runs.commit(run, shards=3)
    done = names_of(run)[:6]
    newest = runs.open(fingerprint={**OTHER_MODEL, "config_sha256": "d" * 64})
    assert (newest.state, newest.passed_over) == ("new", run.name)
    assert len(names_of(newest)) == 21
    # With the first model again: what its unfinished run did is not done again.
    back = runs.open(fingerprint=OTHER_MODEL)
    assert (back.state, back.passed_over) == ("new", newest.name)
    assert names_of(back) == [name for name in names_of(newest) if name not in done]


def test_a_run_name_stands_for_one_run(runs: IncrementalRuns) -> None:
    runs.commit(runs.open(run="night-2026-01-02"))
    runs.put("zz.jpg")
    assert runs.open(run="night-2026-01-02").state == "complete"
    assert names_of(runs.open(run="night-2026-01-03")) == ["zz.jpg"]


def test_an_incremental_run_beside_a_running_one_is_refused(runs: IncrementalRuns) -> None:
    full = runs.open(select__mode="full", run="full", is_held=True)
    runs.commit(full, shards=1)
    for name in (None, "night"):
        with pytest.raises(RunHeldError, match=r"working on the run full .*--fresh") as caught:
            runs.open(run=name, is_held=True)
        assert "\n" not in str(caught.value)
    beside = runs.open(fresh=True, is_held=True)
    # The two images of the committed shard are not done again.
    assert (beside.state, len(names_of(beside))) == ("new", len(CHANGED + NEW) - 2)
    beside.close()
    full.close()
    assert runs.open(is_held=True).state == "resumed"


def test_a_run_whose_driver_is_dead_does_not_block_another(runs: IncrementalRuns) -> None:
    runs.commit(runs.open(select__mode="full", run="full"), shards=1)
    lease = {"token": "t", "host": "elsewhere", "pid": 1, "process": "p"}
    moments = dict.fromkeys(("since", "beat"), "2020-01-01T00:00:00+00:00")
    path = runs.folder / "out/runs/full/lease.json"
    path.write_text(json.dumps(lease | moments))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.runs.lease.WATCH_S", 0.0)
        run = runs.open(is_held=True)
    assert (run.state, run.passed_over, path.exists()) == ("new", "full", False)
    run.close()


def test_a_new_run_is_the_newest_even_when_the_clock_was_set_back(runs: IncrementalRuns) -> None:
    runs.commit(runs.open())
    runs.days -= 100
    runs.put("02.jpg", content="third")
    run = runs.open()
    assert names_of(run) == ["02.jpg"]
    assert list_records(Storage(), str(runs.folder / "out"))[-1].run == run.name


def test_deletion_records_of_incomplete_planning_do_not_count(runs: IncrementalRuns) -> None:
    output = copy_of_output(runs, "half")
    with pytest.raises(StorageError):
        runs.open(run="night", output__uri=output, storage=CutOff(6))
    assert list(Path(output, "deletions/run=night").iterdir())
    assert deleted(output) == []
    with pytest.raises(InputError, match="3 of the 20 images"):
        runs.open(run="night", output__uri=output, select__max_deleted_share=0.1)


def compact(output: str) -> None:
    for record in list_records(Storage(), output):
        compact_run(Storage(), output, record.run, target_bytes=10**9, check=lambda: None)


def test_rows_of_compacted_runs_are_read(runs: IncrementalRuns) -> None:
    runs.commit(runs.open())
    compact(str(runs.folder / "out"))
    assert len(list((runs.folder / "out/images").rglob("*.parquet"))) == 2
    runs.put("02.jpg", content="third")
    runs.remove("04.jpg", "01.jpg")
    run = runs.open()
    assert names_of(run) == ["02.jpg"]
    assert counts_of(run) == {"listed": 19, "changed": 1, "unchanged": 18, "deleted": 2}
    assert deleted(str(runs.folder / "out")) == ["01.jpg", "04.jpg"]


def test_a_run_that_is_compacted_while_it_is_read_is_read_again(runs: IncrementalRuns) -> None:
    class Compacting(Storage):
        is_done = False

        def read(self, uri: str, offset: int | None = None, length: int | None = None) -> bytes:
            if "/images/" in uri and not self.is_done:
                self.is_done = True
                compact(str(runs.folder / "out"))
            return super().read(uri, offset, length)

    storage = Compacting()
    run = runs.open(storage=storage)
    assert storage.is_done
    assert names_of(run) == sorted(CHANGED + NEW)
