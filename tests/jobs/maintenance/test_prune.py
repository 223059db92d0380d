"""`htc prune`: removes runs that are no longer needed when confirmed, and says why it keeps the rest."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.maintenance.prune import prune_output
from jobs.maintenance.prune_policy import PruneDecision, PrunePolicy, decide_runs, read_age
from pipeline.errors import SpecError
from pipeline.maintenance.publications import Publication, note_publication
from pipeline.maintenance.removal import remove_run
from pipeline.maintenance.survey import RunInfo, survey_runs
from pipeline.output.results import open_results
from pipeline.runs.lease import take_lease
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import (
    FIRST_DAY,
    HookedStorage,
    PowerCutError,
    files_below,
    finish_run,
    write_inputs,
)

NOW = FIRST_DAY + timedelta(days=10)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Four complete runs over the same two images; the last one holds all current rows."""
    images = write_inputs(tmp_path / "in", 2)
    for number in range(4):
        finish_run(images, str(tmp_path / "out"), f"night-{number}", day=number)
    return str(tmp_path / "out")


def decide(standings: list[RunInfo], needed: set[str], rules: PrunePolicy) -> dict[str, str]:
    return {each.info.run: each.kept_because for each in decide_runs(standings, needed, rules, NOW)}


def runs_of(output: str) -> list[RunInfo]:
    return survey_runs(open_results(output), now=NOW)


def with_deletions(standing: RunInfo) -> RunInfo:
    manifest = {**standing.record.manifest, "selection": {"deleted": 1}}
    return replace(standing, record=replace(standing.record, manifest=manifest))


def test_without_yes_nothing_is_removed(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(Path(output))
    assert prune_output(output, keep_last=2, now=NOW) == 0
    printed = capsys.readouterr().out
    assert files_below(Path(output)) == before
    assert "Removing 2 runs would free" in printed
    assert "--yes does it" in printed
    assert "one of the last 2" in printed


def test_with_yes_the_old_runs_are_removed(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(files_below(Path(output)))
    assert prune_output(output, keep_last=2, confirmed=True, now=NOW) == 0
    gone = count - len(files_below(Path(output)))
    assert open_results(output).runs() == ["night-2", "night-3"]
    assert f"in {gone} files" in capsys.readouterr().out
    assert sorted(path.name for path in Path(output, "runs").iterdir()) == ["night-2", "night-3"]
    assert prune_output(output, keep_last=2, confirmed=True, now=NOW) == 0
    assert "Nothing to remove." in capsys.readouterr().out


def test_a_run_with_the_newest_result_of_an_image_stays(
    tmp_path: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_run(str(tmp_path / "in"), output, "failing", day=5, is_ok=lambda uri: not uri.endswith("0001.jpg"))
    assert prune_output(output, keep_last=1, confirmed=True, now=NOW) == 0
    assert open_results(output).runs() == ["night-3", "failing"]
    assert "the view current needs it" in capsys.readouterr().out


def test_why_each_run_is_kept(output: str) -> None:
    first, second, third, fourth = runs_of(output)
    incomplete = replace(second, state="incomplete", has_all_rows=False)
    held = replace(first, holder="host a, process 7")
    fresh = PrunePolicy(1, timedelta(days=9))
    assert decide([first, second, third, fourth], set(), PrunePolicy(1)) == {
        "night-0": "",
        "night-1": "",
        "night-2": "",
        "night-3": "the newest complete run",
    }
    assert decide([held, second, third, fourth], set(), PrunePolicy(1))["night-0"] == "host a, process 7 works on it"
    assert decide([first, incomplete], set(), PrunePolicy(1)) == {
        "night-0": "the newest complete run",
        "night-1": "incomplete, and the newest: the next run resumes it",
    }
    assert decide([first, incomplete, third], set(), PrunePolicy(1))["night-1"] == ""
    young = [first, replace(third, state="incomplete", has_all_rows=False), fourth]
    shifted = decide_runs(young, set(), PrunePolicy(1), NOW - timedelta(days=5))
    assert shifted[1].kept_because == "incomplete, and only 3 days old"
    assert decide([first, second, third, fourth], set(), fresh)["night-2"] == "only 8 days old"
    assert decide([first, second, third, fourth], set(), fresh)["night-0"] == ""


def test_published_runs_stay_unless_they_are_withdrawn_first(output: str) -> None:
    place = Publication("sqlite:///c.db", "htc", "2026-03-01")
    first, *others = runs_of(output)
    published = [replace(first, publications=(place,)), *others]
    assert decide(published, set(), PrunePolicy(1))["night-0"] == "published in sqlite:///c.db, namespace htc"
    assert decide(published, set(), PrunePolicy(1, withdrawn_from=[place.place]))["night-0"] == ""


def test_deletion_records_are_kept_as_long_as_an_older_run_that_is_not_needed(output: str) -> None:
    first, second, third, fourth = runs_of(output)
    runs = [first, with_deletions(second), third, fourth]
    assert decide(runs, set(), PrunePolicy(1))["night-1"] == ""
    # Whether they hide anything of a run that is needed was asked already.
    assert decide(runs, {"night-0"}, PrunePolicy(1))["night-1"] == ""
    held = [replace(first, holder="host a, process 7"), *runs[1:]]
    reason = decide(held, set(), PrunePolicy(1))["night-1"]
    assert reason == "its deletion records may hide rows of the run night-0"


def test_a_run_that_was_published_meanwhile_is_not_removed(
    output: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Publication("prod", "htc", "2026-03-01")

    def choose_and_publish(*args: Any) -> list[PruneDecision]:
        chosen = decide_runs(*args)
        note_publication(Storage(), output, "night-0", note)
        return chosen

    monkeypatch.setattr("jobs.maintenance.prune.decide_runs", choose_and_publish)
    assert prune_output(output, keep_last=2, confirmed=True, now=NOW) == 1
    assert "Not removed: the run night-0 was published in prod meanwhile." in capsys.readouterr().err
    assert open_results(output).runs() == ["night-0", "night-1", "night-2", "night-3"]


def test_a_held_run_is_kept(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    lease = take_lease(Storage(), output, "night-0")
    try:
        assert prune_output(output, keep_last=3, confirmed=True) == 0
    finally:
        lease.release()
    assert "works on it" in capsys.readouterr().out
    assert len(open_results(output).runs()) == 4


def test_an_unfinished_removal_is_finished(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PowerCutError):
        remove_run(HookedStorage(dies_before=3), output, "night-0", check=lambda: None, moment="")
    assert prune_output(output, keep_last=3, now=NOW) == 0
    assert "The run night-0 is half pruned; --yes finishes that." in capsys.readouterr().out
    assert Path(output, "runs", "night-0").exists()
    assert prune_output(output, keep_last=3, confirmed=True, now=NOW) == 0
    assert not any("night-0" in str(path) for path in Path(output).rglob("*"))


def test_yes_alone_finishes_an_unfinished_removal(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PowerCutError):
        remove_run(HookedStorage(dies_before=3), output, "night-0", check=lambda: None, moment="")
    before = open_results(output).runs()
    assert prune_output(output, confirmed=True, now=NOW) == 0
    assert "The run night-0 is half pruned; finishing that." in capsys.readouterr().out
    assert not any("night-0" in str(path) for path in Path(output).rglob("*"))
    # No other run goes, and without anything to finish a rule is needed again.
    assert open_results(output).runs() == before == ["night-1", "night-2", "night-3"]
    with pytest.raises(SpecError, match="keep-last"):
        prune_output(output, confirmed=True, now=NOW)


@pytest.mark.parametrize(
    ("keep_last", "older_than", "sentence"),
    [
        (None, None, "Say how much to keep"),
        (0, None, "--keep-last must be 1 or more"),
        (None, "3 months", "takes a number and a unit"),
        (None, "99999999999d", "is too long"),
    ],
)
def test_bad_rules_are_one_sentence(output: str, keep_last: int | None, older_than: str | None, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        prune_output(output, keep_last=keep_last, older_than=older_than)


def test_ages() -> None:
    assert (read_age("12h"), read_age("30 d"), read_age("4w")) == (
        timedelta(hours=12),
        timedelta(days=30),
        timedelta(days=28),
    )
