"""A firing's ending from the run's exit code and summary."""

import json
from pathlib import Path

import pytest

from jobs.scheduling.endings import ending_of, last_line
from jobs.scheduling.firing import Ending
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.runs.outcomes import EXIT_INPUT_CHANGED

SUMMARY = {
    "status": "over_error_budget",
    "reason": "3 of 10 images failed.",
    "images": 10,
    "images_done": 10,
    "instances": 44,
    "seconds": 1.5,
    "statuses": {"ok": 7, "unreadable": 2, "missing": 1},
}
COUNTS = {"images": 10, "images_done": 10, "instances": 44, "seconds": 1.5, "failed": 3}


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    (tmp_path / "out" / "runs" / "r").mkdir(parents=True)
    return load_spec(None, {"input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out")})


def write(job: JobSpec, summary: object) -> None:
    (Path(job.output.uri) / "runs" / "r" / "summary.json").write_text(json.dumps(summary))


def test_the_summary_gives_status_reason_and_counts(job: JobSpec) -> None:
    write(job, SUMMARY)
    assert ending_of(job, "r", 1, "the log") == Ending("over_error_budget", "3 of 10 images failed.", 1, COUNTS)


def test_a_run_without_a_summary_ends_with_its_last_line(job: JobSpec) -> None:
    assert ending_of(job, "r", 2, last_line("Run r\nNo room.\n\n")) == Ending("failed", "No room.", 2)
    assert ending_of(job, "r", 0, "the log") == Ending("complete", "", 0)


@pytest.mark.parametrize("summary", [{**SUMMARY, "status": "complete"}, {**SUMMARY, "status": "?"}, {}])
def test_a_summary_of_another_attempt_is_ignored(job: JobSpec, summary: object) -> None:
    write(job, summary)
    assert ending_of(job, "r", 1, "Killed.") == Ending("failed", "Killed.", 1)


@pytest.mark.parametrize(
    ("summary", "ending"),
    [
        ({**SUMMARY, "status": "complete", "reason": ""}, Ending("complete", "", 0, COUNTS)),
        ({}, Ending("complete", "", 0)),
    ],
)
def test_a_run_that_was_complete_when_it_was_started_again_is_complete(
    job: JobSpec, summary: object, ending: Ending
) -> None:
    write(job, summary)
    assert ending_of(job, "r", EXIT_INPUT_CHANGED, "The input has changed.") == ending


def test_an_older_summary_does_not_change_a_successful_run(job: JobSpec) -> None:
    write(job, SUMMARY)
    assert ending_of(job, "r", 0, "") == Ending("complete", "", 0)
