"""The same state of a run in every command."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from jobs.maintenance.compact import compact_output
from jobs.maintenance.list_runs import report_runs
from jobs.maintenance.prune import prune_output
from jobs.results.status import read_status
from jobs.scheduling.endings import ending_of
from jobs.scheduling.firing import Outcome as FiringOutcome
from pipeline.job_spec.job import load_spec
from pipeline.maintenance.survey import survey_runs
from pipeline.output.results import open_results
from pipeline.runs.lease import take_lease
from pipeline.runs.outcomes import OUTCOMES, State, exit_code_of, in_words
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import finish_run, write_inputs

RUN = "night"


def make(folder: Path, *, bad: str = "", shards: int | None = None, **summary: Any) -> Path:
    """Write a run of six images in three shards, of which those named by their last digit failed; return its folder."""
    images = write_inputs(folder / "in", 6)
    finish_run(images, str(folder / "out"), RUN, only_shards=shards, is_ok=lambda uri: uri[-5] not in bad)
    run = folder / "out" / "runs" / RUN
    if summary:
        written = json.loads((run / "summary.json").read_text()) if (run / "summary.json").exists() else {}
        (run / "summary.json").write_text(json.dumps(written | summary))
    return run


def leave_progress(run: Path) -> None:
    (run / "progress.json").write_text(
        json.dumps(
            {
                "written": datetime.now(UTC).isoformat(),
                "images_total": 6,
                "images_done": 4,
                "is_listing": False,
                "statuses": {"ok": 4},
                "failure_reasons": {},
                "images_per_s": 1.0,
                "eta_s": None,
                "workers": 1,
            }
        )
    )


def without_summary(folder: Path, **options: Any) -> None:
    (make(folder, **options) / "summary.json").unlink()


def cut_off_later(folder: Path) -> None:
    leave_progress(make(folder, shards=2, status="over_error_budget", images_done=4, reason="Stopped early."))


def lost_a_part(folder: Path) -> None:
    make(folder)
    (folder / f"out/images/run={RUN}/part-00001.parquet").unlink()


CASES: dict[str, tuple[Callable[[Path], object], State, str]] = {
    "complete": (make, "complete", ""),
    "over its budget": (
        lambda folder: make(folder, bad="1234", status="over_error_budget", reason="4 of 6 failed."),
        "over_error_budget",
        "4 of 6",
    ),
    "no summary, and within its budget": (without_summary, "complete", "without a summary"),
    "no summary, and over its budget": (
        lambda folder: without_summary(folder, bad="1234"),
        "over_error_budget",
        "4 of 6 images failed",
    ),
    "no summary, and nothing is ok": (
        lambda folder: without_summary(folder, bad="012345"),
        "over_error_budget",
        "6 of 6 images failed",
    ),
    "an older session's summary": (
        lambda folder: make(folder, bad="1234", status="interrupted", images_done=4),
        "over_error_budget",
        "4 of 6 images failed",
    ),
    "an older session's summary, and all is well": (
        lambda folder: make(folder, status="over_error_budget", images_done=4),
        "complete",
        "without a summary",
    ),
    "a bug": (lambda folder: make(folder, status="incomplete", reason="A shard failed."), "incomplete", "A shard"),
    "a bug before the last session": (
        lambda folder: make(folder, status="interrupted", images_done=4, has_bug=True),
        "incomplete",
        "exception of this program",
    ),
    "an outcome of a later release": (lambda folder: make(folder, status="splendid"), "complete", "without a summary"),
    "stopped early": (
        lambda folder: make(folder, shards=2, status="over_error_budget", reason="Stopped early."),
        "over_error_budget",
        "Stopped early",
    ),
    "stopped early, and killed when it was resumed": (cut_off_later, "incomplete", "same command again to resume"),
    "interrupted": (
        lambda folder: make(folder, shards=2, status="interrupted", reason="Stopped with 2 to go."),
        "interrupted",
        "2 to go",
    ),
    "killed": (lambda folder: make(folder, shards=2), "incomplete", "same command again to resume"),
    "rows are missing": (lost_a_part, "incomplete", "rows are missing"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_command_reports_the_same_state(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, state, reason = CASES[case]
    prepare(tmp_path)
    output = str(tmp_path / "out")
    status = read_status(output, Storage())
    report_runs(output, is_json=True)
    (listed,) = json.loads(capsys.readouterr().out)
    assert (status.state, listed["state"]) == (state, state)
    assert reason in status.reason
    assert listed["reason"] == status.reason
    assert listed["is_whole"] == (listed["images_done"] == 6)
    report_runs(output)
    assert in_words(state) in capsys.readouterr().out


def test_a_run_is_running_while_its_driver_renews_its_lease(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path, shards=2, status="interrupted")
    output = str(tmp_path / "out")
    lease = take_lease(Storage(), output, RUN)
    try:
        for _ in range(2):
            report_runs(output, is_json=True)
            assert json.loads(capsys.readouterr().out)[0]["state"] == "running"
            assert read_status(output, Storage()).state == "running"
            leave_progress(run)
    finally:
        lease.release()


def test_a_run_held_by_a_maintenance_command_keeps_its_state(tmp_path: Path) -> None:
    make(tmp_path, bad="1234", status="over_error_budget", reason="4 of 6 failed.")
    output = str(tmp_path / "out")
    lease = take_lease(Storage(), output, RUN)
    try:
        (standing,) = survey_runs(open_results(output))
        assert (standing.state, bool(standing.holder)) == ("over_error_budget", True)
        assert read_status(output, Storage()).state == "over_error_budget"
    finally:
        lease.release()


def test_a_run_over_its_budget_with_all_rows_is_kept_and_compacted_like_a_complete_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, bad="1234", status="over_error_budget", reason="4 of 6 failed.")
    output = str(tmp_path / "out")
    assert compact_output(output, run=RUN) == 0
    assert prune_output(output, keep_last=1) == 0
    assert "the newest complete run" in capsys.readouterr().out


def test_a_budget_in_the_spec_overrides_the_default(tmp_path: Path) -> None:
    run = make(tmp_path, bad="1234")
    (run / "summary.json").unlink()
    record = json.loads((run / "run.json").read_text())
    record["spec"]["retry"] = {"max_error_rate": 0.7, "later_key": 1}
    (run / "run.json").write_text(json.dumps(record))
    assert read_status(str(tmp_path / "out"), Storage()).state == "complete"
    record["spec"].pop("retry")
    (run / "run.json").write_text(json.dumps(record))
    assert read_status(str(tmp_path / "out"), Storage()).state == "over_error_budget"


def test_outcomes_of_runs_are_those_of_firings_and_only_complete_is_a_success(tmp_path: Path) -> None:
    def words(annotation: object) -> set[str]:
        return {word for each in get_args(annotation) for word in (words(each) or {str(each)})}

    assert set(OUTCOMES) == {"complete", "incomplete", "over_error_budget", "interrupted"}
    assert words(State) == {*OUTCOMES, "running"}
    assert set(OUTCOMES) < words(FiringOutcome)
    assert [outcome for outcome in OUTCOMES if exit_code_of(outcome) == 0] == ["complete"]
    job = load_spec(None, {"input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out")})
    for outcome in OUTCOMES:
        make(tmp_path / outcome, status=outcome, reason="why")
        job = load_spec(None, {"input.uri": "/in", "output.uri": str(tmp_path / outcome / "out")})
        assert ending_of(job, RUN, exit_code_of(outcome), "").outcome == outcome
