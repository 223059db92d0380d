"""A night whose planning is cut off: the same images and the same deletions in the end, whatever happens in between."""

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
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IncrementalRuns:
    """Twenty images; then eight change, four are new, three are gone. Parts of 2, 4, 8 images, batches of three."""
    monkeypatch.setattr(manifests, "FIRST_PART_IMAGES", 2)
    monkeypatch.setattr(manifests, "PART_IMAGES", 8)
    monkeypatch.setattr(selections, "BATCH_IMAGES", 3)
    nights = IncrementalRuns(tmp_path)
    nights.put(*OLD, "x.txt")
    nights.night()
    nights.put(*CHANGED, content="other")
    nights.put(*NEW)
    nights.remove(*GONE)
    return nights


def copy_of_output(nights: IncrementalRuns, name: str) -> str:
    return str(shutil.copytree(nights.folder / "out", nights.folder / name))


def deleted(output: str) -> list[str]:
    results = open_results(output)
    return sorted(Path(row["uri"]).name for row in read_deletions(results, results.runs()[-1]))


def cut_off_and_go_on(
    nights: IncrementalRuns, output: str, at: int, meanwhile: Callable[[], None] = lambda: None
) -> RunHandle | None:
    """Cut a night's planning off at its write `at`, and once more on the way; None when it does not write so often."""
    try:
        nights.open(run="night", output__uri=output, storage=CutOff(at))
        return None
    except StorageError:
        pass
    meanwhile()
    with pytest.raises(StorageError):
        nights.open(run="night", output__uri=output, storage=CutOff(0 if at > 2 else 1))
    return nights.open(run="night", output__uri=output)


def test_cut_off_at_any_write_it_comes_to_the_same(nights: IncrementalRuns) -> None:
    whole = nights.open(run="night", output__uri=copy_of_output(nights, "whole"))
    assert names_of(whole) == sorted(CHANGED + NEW)
    assert counts_of(whole) == {"listed": 21, "new": 4, "changed": 8, "unchanged": 9, "deleted": 3}
    at = 0
    while True:
        output = copy_of_output(nights, f"out{at}")
        run = cut_off_and_go_on(nights, output, at)
        if run is None:
            break
        assert names_of(run) == names_of(whole), at
        assert run.manifest == whole.manifest
        assert deleted(output) == GONE
        at += 1
    # The record, three parts and one of deletions, the record after each part.
    assert at == 8


@pytest.mark.parametrize("at", range(1, 8))
def test_what_changes_meanwhile_costs_no_image_and_doubles_none(nights: IncrementalRuns, at: int) -> None:
    def meanwhile() -> None:
        # Planned first, early and unchanged, early and new.
        nights.remove("01.jpg")
        nights.put("04.jpg", content="third")
        nights.put("03.jpg")

    output = copy_of_output(nights, "cut")
    run = cut_off_and_go_on(nights, output, at, meanwhile)
    assert run is not None
    names = names_of(run)
    assert len(names) == len(set(names)) == sum(counts_of(run).get(key, 0) for key in ("new", "changed"))
    is_whole = "03.jpg" not in names
    assert set(CHANGED + NEW) - {"01.jpg"} <= set(names)
    assert is_whole or {"03.jpg", "04.jpg"} <= set(names)
    # The last part was written: it was planned to its end.
    assert is_whole == (at >= 7)
    assert deleted(output) == GONE


def test_a_night_that_is_not_done_is_gone_on_with_and_the_next_one_is_new(nights: IncrementalRuns) -> None:
    run = nights.open()
    nights.commit(run, shards=2)
    nights.put("zz.jpg")
    again = nights.open(compute__workers=7, select__max_deleted_share=0.9)
    assert (again.name, again.state, len(again.todo())) == (run.name, "resumed", 4)
    nights.commit(again)
    assert nights.night() == ["zz.jpg"]


def test_a_night_whose_end_nobody_heard_of_is_told_to_its_end(nights: IncrementalRuns) -> None:
    run = nights.open()
    nights.commit(run)
    (nights.folder / "out/runs" / run.name / "summary.json").unlink()
    again = nights.open()
    assert (again.name, again.state) == (run.name, "complete")
    again.write_summary({"status": "complete"})
    assert nights.open().name != run.name


def test_a_night_of_another_model_is_left_and_its_rest_done_now(nights: IncrementalRuns) -> None:
    run = nights.open(fingerprint=OTHER_MODEL)
    nights.commit(run, shards=3)
    done = names_of(run)[:6]
    tonight = nights.open(fingerprint={**OTHER_MODEL, "config_sha256": "d" * 64})
    assert (tonight.state, tonight.passed_over) == ("new", run.name)
    assert len(names_of(tonight)) == 21
    # Back to the model of the night that was left: what it did is not done again.
    back = nights.open(fingerprint=OTHER_MODEL)
    assert (back.state, back.passed_over) == ("new", tonight.name)
    assert names_of(back) == [name for name in names_of(tonight) if name not in done]


def test_a_name_that_is_given_is_one_night(nights: IncrementalRuns) -> None:
    nights.commit(nights.open(run="night-2026-01-02"))
    nights.put("zz.jpg")
    assert nights.open(run="night-2026-01-02").state == "complete"
    assert names_of(nights.open(run="night-2026-01-03")) == ["zz.jpg"]


def test_a_night_beside_a_run_that_goes_on_is_refused(nights: IncrementalRuns) -> None:
    full = nights.open(select__mode="full", run="full", is_held=True)
    nights.commit(full, shards=1)
    for name in (None, "night"):
        with pytest.raises(RunHeldError, match=r"works on the run full .*--fresh") as caught:
            nights.open(run=name, is_held=True)
        assert "\n" not in str(caught.value)
    beside = nights.open(fresh=True, is_held=True)
    # The two of the shard that is done by now are not done again.
    assert (beside.state, len(names_of(beside))) == ("new", len(CHANGED + NEW) - 2)
    beside.close()
    full.close()
    assert nights.open(is_held=True).state == "resumed"


def test_a_run_whose_driver_is_dead_is_in_nobodys_way(nights: IncrementalRuns) -> None:
    nights.commit(nights.open(select__mode="full", run="full"), shards=1)
    lease = {"token": "t", "host": "elsewhere", "pid": 1, "process": "p"}
    moments = dict.fromkeys(("since", "beat"), "2020-01-01T00:00:00+00:00")
    path = nights.folder / "out/runs/full/lease.json"
    path.write_text(json.dumps(lease | moments))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.runs.lease.WATCH_S", 0.0)
        run = nights.open(is_held=True)
    assert (run.state, run.passed_over, path.exists()) == ("new", "full", False)
    run.close()


def test_a_clock_that_was_set_back_makes_no_run_old(nights: IncrementalRuns) -> None:
    nights.commit(nights.open())
    nights.nights -= 100
    nights.put("02.jpg", content="third")
    run = nights.open()
    assert names_of(run) == ["02.jpg"]
    assert list_records(Storage(), str(nights.folder / "out"))[-1].run == run.name


def test_deletions_of_a_planning_that_failed_do_not_count(nights: IncrementalRuns) -> None:
    output = copy_of_output(nights, "half")
    with pytest.raises(StorageError):
        nights.open(run="night", output__uri=output, storage=CutOff(6))
    assert list(Path(output, "deletions/run=night").iterdir())
    assert deleted(output) == []
    with pytest.raises(InputError, match="3 of the 20 images"):
        nights.open(run="night", output__uri=output, select__max_deleted_share=0.1)


def compact(output: str) -> None:
    for record in list_records(Storage(), output):
        compact_run(Storage(), output, record.run, target_bytes=10**9, check=lambda: None)


def test_compacted_nights_are_looked_back_at(nights: IncrementalRuns) -> None:
    nights.commit(nights.open())
    compact(str(nights.folder / "out"))
    assert len(list((nights.folder / "out/images").rglob("*.parquet"))) == 2
    nights.put("02.jpg", content="third")
    nights.remove("04.jpg", "01.jpg")
    run = nights.open()
    assert names_of(run) == ["02.jpg"]
    assert counts_of(run) == {"listed": 19, "changed": 1, "unchanged": 18, "deleted": 2}
    assert deleted(str(nights.folder / "out")) == ["01.jpg", "04.jpg"]


def test_a_run_that_is_compacted_while_it_is_read_is_read_again(nights: IncrementalRuns) -> None:
    class Compacting(Storage):
        is_done = False

        def read(self, uri: str, offset: int | None = None, length: int | None = None) -> bytes:
            if "/images/" in uri and not self.is_done:
                self.is_done = True
                compact(str(nights.folder / "out"))
            return super().read(uri, offset, length)

    storage = Compacting()
    run = nights.open(storage=storage)
    assert storage.is_done
    assert names_of(run) == sorted(CHANGED + NEW)
