"""A firing's deadline reaches its run; a run that stops itself there, or will be late, is reported."""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.scheduling.deadlines import schedule_warning, usual_seconds, with_deadline
from jobs.scheduling.endings import ending_of
from jobs.scheduling.firing import Ending, Firing
from jobs.scheduling.notifications import describe_notification
from jobs.scheduling.schedule import Schedule, build_schedule
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.output.json_files import write_json
from pipeline.runs.summary import summary_uri
from pipeline.storage.storage import Storage
from tests.support.fakes.schedule_bench import ScheduleBench

MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)
SPEC = {"input": {"uri": "/in"}, "output": {"uri": "/out"}}


def schedule_of(**keys: object) -> Schedule:
    return build_schedule({"name": "nightly", "spec": SPEC, "cron": "0 0 * * *", **keys})


def job_of(**budget: object) -> JobSpec:
    keys = {f"budget.{key}": value for key, value in budget.items()}
    return load_spec(None, {"input.uri": "/in", "output.uri": "/out", **keys})


@pytest.mark.parametrize(("on_deadline", "expected"), [("stop", "stop"), ("notify", "warn")])
def test_the_run_learns_its_deadline(on_deadline: str, expected: str) -> None:
    firing = Firing("f", schedule_of(deadline_s=3600, on_deadline=on_deadline), MIDNIGHT, MIDNIGHT)
    budget = with_deadline(job_of(price_per_hour=2.0), firing).budget
    assert (budget.deadline, budget.on_deadline) == ("2026-03-01T01:00:00+00:00", expected)
    assert budget.price_per_hour == 2.0
    # What is written is read again.
    assert load_spec(None, {"input.uri": "/in", "output.uri": "/out", "budget": budget.model_dump(mode="json")})


def test_a_deadline_of_the_job_itself_stays() -> None:
    firing = Firing("f", schedule_of(deadline_s=3600), MIDNIGHT, MIDNIGHT)
    assert with_deadline(job_of(deadline="2h"), firing).budget.deadline == "2h"
    assert with_deadline(job_of(), replace(firing, schedule=schedule_of())).budget.deadline is None


def test_a_run_that_stopped_itself_ends_as_stopped(tmp_path: Path) -> None:
    job = load_spec(None, {"input.uri": "/in", "output.uri": str(tmp_path)})
    summary = {"status": "interrupted", "stopped_by": "deadline", "reason": "Stopped at its deadline.", "images": 4}
    write_json(Storage(), summary_uri(str(tmp_path), "r"), summary)
    assert ending_of(job, "r", 1, "") == Ending("stopped", "Stopped at its deadline.", 1, {"images": 4})


Make = Callable[..., ScheduleBench]


@pytest.fixture
def make_bench(tmp_path: Path) -> Make:
    def make(lasts: float) -> ScheduleBench:
        return ScheduleBench(tmp_path, "2026-03-01T00:00:00+00:00", lasts)

    return make


def test_it_is_late_and_notified_once(make_bench: Make) -> None:
    bench = make_bench(240.0)
    bench.add(cron="1 0 * * *", deadline_s=300, on_deadline="stop", notify={"exit_hook": ["true"]})
    name = "nightly-20260301-000100"
    bench.launcher.endings[name] = Ending("stopped", "Stopped at its deadline.", 1)
    bench.pass_time(minutes=7)
    assert bench.minutes() == {"00:01": "stopped"}
    (firing,) = bench.store.history(None, 10)
    assert firing.is_late
    (notification,) = bench.store.open_notifications()
    assert (notification.event, "LATE: not finished by" in describe_notification(notification)) == ("deadline", True)
    # A deadline of the job spec alone has no time in the schedule.
    unknown = replace(notification, firing=replace(firing, schedule=schedule_of()))
    assert "LATE" in describe_notification(unknown)


def test_a_run_that_will_be_late_is_logged_when_it_starts(make_bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    bench = make_bench(600.0)
    schedule = bench.add(cron="0 * * * *", deadline_s=1200)
    with caplog.at_level(logging.WARNING):
        bench.pass_time(minutes=135)
        assert "will probably not end" not in caplog.text
        bench.store.put(schedule.model_copy(update={"deadline_s": 300.0}), bench.clock.now)
        bench.pass_time(minutes=60)
    assert "will probably not end by its deadline: it has 5 min 00 s, and the last 2 complete runs took" in caplog.text


def test_a_schedules_deadline_is_compared_with_its_runs() -> None:
    ended = Ending("complete", exit_code=0, counts={"images": 9})
    firing = Firing("f", schedule_of(), MIDNIGHT, MIDNIGHT, state="ended", begun=MIDNIGHT)
    history = [replace(firing, ending=ended, ended=MIDNIGHT + timedelta(hours=hours)) for hours in (3, 2, 4)]
    assert usual_seconds(history) == (3 * 3600, 3)
    assert "the last 3 complete runs took 3 h 00 min" in schedule_warning(schedule_of(deadline_s=7200), history)
    assert schedule_warning(schedule_of(deadline_s=4 * 3600), history) == ""
    assert schedule_warning(schedule_of(), history) == ""
    # Runs that failed, or had no image to do, say nothing.
    empty = replace(firing, ending=Ending("complete", counts={"images": 0}), ended=MIDNIGHT)
    assert usual_seconds([empty, replace(firing, ending=Ending("failed"), ended=MIDNIGHT), firing]) is None
