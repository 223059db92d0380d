"""How the last run of an output ended, by its small files alone."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.monitoring.lateness import find_lateness
from jobs.monitoring.output_status import OutputReader, OutputStatus, judge_last_state
from pipeline.runs.last_failure import last_failure_uri, write_last_failure
from pipeline.runs.lease import FoundLease
from pipeline.storage.storage import Storage

NOW = datetime(2026, 11, 26, 6, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Output:
    """An output of a test's own: files as runs leave them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(
        self, run: str, created: datetime, notify: Mapping[str, Any] | None = None, deadline: str | None = None
    ) -> None:
        record = {
            "run": run,
            "created": created.isoformat(),
            "spec": {"notify": dict(notify or {}), "budget": {"deadline": deadline}},
            "identity": {},
            "fingerprint": {},
            "versions": {},
            "manifest": {"image_count": 100, "shard_count": 4},
            "schema_version": 1,
        }
        self.put(run, "run.json", record)

    def end(self, run: str, status: str, began: datetime, ended: datetime, **values: Any) -> None:
        content = {
            "status": status,
            "exit_code": int(status != "complete"),
            "reason": "",
            "began": began.isoformat(),
            "ended": ended.isoformat(),
            "images": 100,
            "images_done": 100,
            "statuses": {"ok": 100},
        }
        self.put(run, "summary.json", {**content, **values})

    def lease(self, run: str, beat: datetime, host: str = "elsewhere") -> None:
        holder = {
            "token": "t",
            "host": host,
            "pid": 1,
            "process": "boot/1/1",
            "since": (beat - HOUR).isoformat(),
            "beat": beat.isoformat(),
            "beats": 240,
        }
        self.put(run, "lease.json", holder)

    def progress(self, run: str) -> None:
        values = {
            "written": NOW.isoformat(),
            "images_total": 100,
            "images_done": 40,
            "images_failed": 2,
            "images_per_s": 7.0,
            "eta_s": 8.0,
            "workers": 2,
            "is_listing": False,
            "statuses": {"ok": 38, "failed": 2},
            "failure_reasons": {},
        }
        self.put(run, "progress.json", values)

    def put(self, run: str, name: str, content: Mapping[str, Any]) -> None:
        folder = self.folder / "runs" / run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))

    def read(self, **options: Any) -> OutputStatus:
        reader = OutputReader(str(self.folder), Storage(), clock=lambda: NOW, sleep=lambda seconds: None, **options)
        return reader.read()


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "out")


def test_the_newest_run_and_the_last_success_are_found(output: Output) -> None:
    output.begin("a", NOW - 30 * HOUR)
    output.end("a", "complete", NOW - 30 * HOUR, NOW - 28 * HOUR)
    output.begin("b", NOW - 6 * HOUR)
    statuses = {"ok": 90, "unreadable": 10}
    output.end("b", "over_error_budget", NOW - 6 * HOUR, NOW - 5 * HOUR, error_rate=0.1, statuses=statuses)
    status = output.read()
    assert (status.runs, status.last_success_run, status.last_success) == (2, "a", NOW - 28 * HOUR)
    assert status.last_end == NOW - 5 * HOUR
    assert status.last is not None
    assert (status.last.run, status.last.state, status.last.exit_code) == ("b", "over_error_budget", 1)
    assert status.last.statuses == statuses
    (late,) = find_lateness(status, NOW)
    assert late.startswith(f"The last complete run of {output.folder} (a) ended 28 h 00 min ago")


@pytest.mark.parametrize(
    ("summary", "lease", "has_progress", "state"),
    [
        (None, "alive", True, "running"),
        ("incomplete", "alive", True, "running"),
        (None, "alive", False, "running"),
        ("complete", "alive", False, "complete"),
        ("complete", "dead", True, "lost"),
        (None, "dead", False, "lost"),
        ("interrupted", "dead", False, "lost"),
        ("complete", "dead", False, "complete"),
        ("incomplete", None, False, "incomplete"),
        (None, None, False, "lost"),
        (None, None, True, "lost"),
    ],
)
def test_the_state_follows_from_summary_lease_and_progress(
    summary: str | None, lease: str | None, has_progress: bool, state: str
) -> None:
    found = None if lease is None else FoundLease(None, is_alive=lease == "alive")
    content = None if summary is None else {"status": summary}
    assert judge_last_state(content, found, has_progress=has_progress) == state


@pytest.mark.parametrize(
    ("notify", "deadline"),
    [({"overdue_after_s": 4 * 3600.0}, None), ({}, "4h"), ({"overdue_after_s": 4 * 3600.0}, "10h")],
)
def test_a_run_that_runs_past_its_deadline_is_late(
    output: Output, notify: Mapping[str, Any], deadline: str | None
) -> None:
    output.begin("a", NOW - 5 * HOUR, notify, deadline)
    output.lease("a", NOW - timedelta(seconds=5))
    output.progress("a")
    status = output.read()
    assert status.last is not None
    assert (status.last.state, status.last.images_done, status.last.heartbeats) == ("running", 40, 240)
    assert status.last.deadline == NOW - HOUR
    (late,) = find_lateness(status, NOW)
    assert "should have ended 1 h 00 min ago and still runs, with 40 of 100 images done" in late


def test_a_driver_that_vanished_is_lost_and_late(output: Output) -> None:
    output.begin("a", NOW - 2 * HOUR)
    output.lease("a", NOW - HOUR)
    output.progress("a")
    status = output.read()
    assert status.last is not None
    assert (status.last.state, status.last.ended, status.last.exit_code) == ("lost", None, None)
    (late,) = find_lateness(status, NOW)
    assert "The driver of a is gone" in late
    assert "1 h 00 min ago" in late


def test_a_driver_that_ends_while_it_is_looked_at_is_not_lost(output: Output) -> None:
    output.begin("a", NOW - 2 * HOUR)
    output.progress("a")
    output.lease("a", NOW - HOUR)

    def end_meanwhile(seconds: float) -> None:
        output.end("a", "complete", NOW - 2 * HOUR, NOW)
        for name in ("lease.json", "progress.json"):
            (output.folder / "runs" / "a" / name).unlink(missing_ok=True)

    status = OutputReader(str(output.folder), Storage(), clock=lambda: NOW, sleep=end_meanwhile).read()
    assert status.last is not None
    assert status.last.state == "complete"


def test_an_attempt_that_could_not_begin_is_the_last_one_until_a_run_begins(output: Output) -> None:
    assert not write_last_failure(Storage(), str(output.folder), run="", exit_code=2, reason="The input is empty.")
    assert not output.folder.exists()
    output.begin("a", NOW - 30 * HOUR)
    output.end("a", "complete", NOW - 30 * HOUR, NOW - 28 * HOUR)
    assert write_last_failure(Storage(), str(output.folder), run="", exit_code=2, reason="The input is empty.")
    last = output.read().last
    assert last is not None
    assert (last.run, last.state, last.exit_code, last.reason) == ("", "failed", 2, "The input is empty.")
    tomorrow = datetime.now(UTC) + 24 * HOUR
    output.begin("b", tomorrow)
    output.end("b", "complete", tomorrow, tomorrow + HOUR)
    assert (output.read().last or last).state == "complete"


def test_a_run_that_broke_off_is_failed_and_keeps_its_numbers(output: Output) -> None:
    began = datetime.now(UTC) - HOUR
    output.begin("a", began)
    output.end("a", "incomplete", began, began + HOUR / 2, images_done=60)
    write_last_failure(Storage(), str(output.folder), run="a", exit_code=1, reason="Ray cannot be reached.")
    last = output.read().last
    assert last is not None
    assert (last.run, last.state, last.images_done, last.reason) == ("a", "failed", 60, "Ray cannot be reached.")


@pytest.mark.parametrize("content", ["{", "[]", '{"exit_code": 1}', '{"exit_code": 1, "ended": "soon"}'])
def test_a_damaged_failure_file_is_passed_over(output: Output, content: str) -> None:
    output.begin("a", NOW - 3 * HOUR)
    output.end("a", "complete", NOW - 3 * HOUR, NOW - 2 * HOUR)
    Path(last_failure_uri(str(output.folder))).write_text(content)
    last = output.read().last
    assert last is not None
    assert last.state == "complete"


def test_summaries_of_earlier_releases_have_no_times(output: Output) -> None:
    output.begin("a", NOW - 3 * HOUR)
    output.put("a", "summary.json", {"status": "complete", "exit_code": 0, "seconds": 3600.0})
    status = output.read()
    assert status.last_success == NOW - 2 * HOUR


def test_runs_that_are_being_pruned_are_left_out(output: Output) -> None:
    output.begin("a", NOW - 3 * HOUR)
    output.end("a", "complete", NOW - 3 * HOUR, NOW - 2 * HOUR)
    output.put("a", "pruned.json", {})
    status = output.read()
    assert (status.runs, status.last, status.last_success) == (0, None, None)


def test_how_often_a_success_is_expected(output: Output) -> None:
    output.begin("a", NOW - 3 * HOUR)
    assert output.read().expect_every_s == 26 * 3600
    output.begin("b", NOW - 2 * HOUR, {"expect_every_s": 7 * 86_400.0})
    assert output.read().expect_every_s == 7 * 86_400
    assert output.read(expect_every_s=3600.0).expect_every_s == 3600


def test_unchanged_files_are_read_once(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    output.begin("a", NOW - 3 * HOUR)
    output.end("a", "complete", NOW - 3 * HOUR, NOW - 2 * HOUR)
    storage = Storage()
    read: list[str] = []
    original = storage.read
    monkeypatch.setattr(storage, "read", lambda uri: read.append(uri.rpartition("/")[2]) or original(uri))
    reader = OutputReader(str(output.folder), storage, clock=lambda: NOW)
    reader.read()
    reader.read()
    assert read.count("run.json") == 1
    assert read.count("summary.json") == 1
