"""The scheduler over hours: overlap, catching up, deadlines, pauses, jitter."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from pipeline.errors import RunError, SpecError
from tests.support.fakes.schedule_bench import ScheduleBench

Make = Callable[..., ScheduleBench]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Make]:
    """Create a bench that starts at a time."""
    with ExitStack() as closing_all:

        def make(start: str = "2026-11-23T00:00:00+00:00", **arguments: object) -> ScheduleBench:
            made = ScheduleBench(tmp_path, start, **arguments)
            closing_all.enter_context(closing(made.store))
            return made

        yield make


def test_three_schedules_of_a_minute_fire_for_an_hour_through_restarts(make_bench: Make) -> None:
    bench = make_bench(lasts=20.0)
    for name in "abc":
        bench.add(name)
    for _ in range(6):
        bench.pass_time(minutes=9.5, step_s=1)
        # Half a minute without a scheduler, over a full minute: less than a minute is on time.
        bench.be_away(minutes=0.5)
    bench.pass_time(minutes=0.5)
    for name in "abc":
        assert list(bench.outcomes(name).values()) == ["complete"] * 60
        assert [run for run in bench.launcher.started if run[0] == name] == list(bench.outcomes(name))


def test_skip_leaves_out_firings_while_a_run_is_in_progress(make_bench: Make) -> None:
    bench = make_bench(lasts=150.0)
    bench.add(overlap="skip")
    bench.pass_time(minutes=7)
    assert bench.minutes() == {
        "00:01": "complete",
        "00:02": "skipped",
        "00:03": "skipped",
        "00:04": "complete",
        "00:05": "skipped",
        "00:06": "skipped",
        "00:07": "running",
    }
    skipped = bench.store.firing("nightly-20261123-000200")
    assert skipped is not None
    assert skipped.ending is not None
    assert skipped.ending.reason == "nightly-20261123-000100 was still running."


def test_queue_begins_each_after_the_one_before(make_bench: Make) -> None:
    bench = make_bench(lasts=lambda firing: 150.0 if firing.scheduled.minute == 1 else 10.0)
    bench.add(overlap="queue")
    bench.pass_time(minutes=3)
    assert bench.launcher.going() == ["nightly-20261123-000100"]
    assert bench.minutes() == {"00:01": "running", "00:02": "waiting", "00:03": "waiting"}
    bench.pass_time(minutes=2)
    assert set(bench.minutes().values()) <= {"complete", "running"}
    assert bench.launcher.started == [f"nightly-20261123-000{minute}00" for minute in range(1, 6)]


def test_a_queue_of_waiting_firings_is_limited(make_bench: Make) -> None:
    bench = make_bench(lasts=86_400.0)
    bench.add(overlap="queue")
    bench.pass_time(minutes=15, step_s=20)
    assert list(bench.minutes().values()) == ["running"] + ["waiting"] * 10 + ["skipped"] * 4


def test_replace_stops_the_one_before_and_begins_at_its_end(make_bench: Make) -> None:
    bench = make_bench(lasts=150.0)
    bench.add(overlap="replace")
    bench.pass_time(minutes=2, step_s=1)
    assert bench.launcher.stopped == ["nightly-20261123-000100"]
    assert bench.minutes() == {"00:01": "stopping", "00:02": "waiting"}
    assert bench.launcher.started == ["nightly-20261123-000100"]
    bench.pass_time(minutes=0.5, step_s=1)
    assert bench.minutes() == {"00:01": "replaced", "00:02": "running"}


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        ("none", {"05:00": "missed", "06:00": "complete"}),
        ("last", {"04:00": "missed", "05:00": "complete", "06:00": "complete"}),
        # The window of three and a half hours leaves out 01:00.
        (
            "all",
            {
                "01:00": "missed",
                "02:00": "complete",
                "03:00": "complete",
                "04:00": "complete",
                "05:00": "complete",
                "06:00": "complete",
            },
        ),
    ],
)
def test_missed_firings_are_made_up_for(make_bench: Make, catch_up: str, expected: dict[str, str]) -> None:
    bench = make_bench()
    bench.add(cron="0 * * * *", catch_up=catch_up, catch_up_window_s=3.5 * 3600)
    bench.be_away(until="2026-11-23T05:20:00+00:00")
    bench.pass_time(until="2026-11-23T06:01:00+00:00")
    assert bench.minutes() == expected


def test_caught_up_firings_run_one_after_the_other(make_bench: Make) -> None:
    bench = make_bench(lasts=600.0)
    bench.add(cron="0 * * * *", catch_up="all", overlap="skip")
    bench.be_away(until="2026-11-23T03:20:00+00:00")
    bench.pass_time(minutes=5)
    assert len(bench.launcher.going()) == 1
    bench.pass_time(minutes=30)
    assert bench.minutes() == {"01:00": "complete", "02:00": "complete", "03:00": "complete"}


def test_a_punctual_firing_makes_up_for_those_before(make_bench: Make) -> None:
    bench = make_bench()
    bench.add(cron="0 * * * *", catch_up="last")
    bench.be_away(until="2026-11-23T03:00:20+00:00")
    bench.pass_time(minutes=1)
    assert bench.minutes() == {"02:00": "missed", "03:00": "complete"}


def test_a_week_without_a_scheduler_is_one_row_of_history(make_bench: Make) -> None:
    bench = make_bench()
    bench.add(cron="30 2 * * *", catch_up="none", time_zone="Europe/Berlin")
    bench.be_away(minutes=7 * 24 * 60)
    (missed,) = bench.store.history(None, 100)
    assert missed.ending is not None
    assert missed.ending.reason == (
        "No scheduler was running at its time (7 firings from 2026-11-23 01:30 UTC to 2026-11-29 01:30 UTC)."
    )


def test_a_paused_schedule_starts_nothing_and_is_not_made_up_for(make_bench: Make) -> None:
    bench = make_bench()
    schedule = bench.add()
    bench.pass_time(minutes=2)
    bench.store.put(schedule.model_copy(update={"is_paused": True}), bench.clock.now)
    bench.pass_time(minutes=5)
    bench.store.put(schedule, bench.clock.now)
    bench.pass_time(minutes=2)
    assert list(bench.minutes()) == ["00:01", "00:02", "00:08", "00:09"]


def test_a_late_run_is_reported_and_continues(make_bench: Make) -> None:
    bench = make_bench(lasts=900.0)
    bench.add(cron="1 0 * * *", deadline_s=300, notify={"exit_hook": ["true"]})
    bench.pass_time(minutes=7)
    assert [notification.event for notification in bench.store.open_notifications()] == ["deadline"]
    assert bench.launcher.stopped == []
    bench.pass_time(minutes=10)
    (firing,) = bench.store.history(None, 10)
    assert firing.is_late
    assert firing.ending is not None
    assert firing.ending.outcome == "complete"
    assert [notification.event for notification in bench.store.open_notifications()] == ["deadline", "end"]


def test_a_late_run_can_be_stopped(make_bench: Make) -> None:
    bench = make_bench(lasts=900.0)
    bench.add(cron="1 0 * * *", deadline_s=300, on_deadline="stop", notify={"exit_hook": ["true"]})
    bench.pass_time(minutes=7)
    assert bench.minutes() == {"00:01": "stopped"}
    assert [notification.event for notification in bench.store.open_notifications()] == ["deadline"]


def test_jitter_delays_each_firing_differently_and_none_twice(make_bench: Make) -> None:
    bench = make_bench(lasts=1.0)
    bench.add(jitter_s=30)
    bench.pass_time(minutes=10.9, step_s=1)
    begun = [firing.begun for firing in bench.store.history(None, 100)]
    delays = {moment.second for moment in begun if moment}
    assert len(begun) == 10
    assert max(delays) <= 31
    assert len(delays) > 3


def test_a_scheduler_that_dies_between_deciding_and_starting_starts_once(make_bench: Make) -> None:
    bench = make_bench(lasts=30.0)
    bench.add(cron="1 0 * * *")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    bench.pass_time(minutes=0.9)
    real_update = bench.store.update
    start = bench.launcher.start

    def start_and_die(firing: object) -> str:
        start(firing)
        bench.store.update = die
        return "never stored"

    bench.launcher.start = start_and_die
    with pytest.raises(KeyboardInterrupt):
        bench.pass_time(minutes=0.2)
    assert bench.minutes() == {"00:01": "starting"}
    bench.store.update, bench.launcher.start = real_update, start
    bench.be_away(minutes=0.1)
    bench.pass_time(minutes=1)
    assert bench.minutes() == {"00:01": "complete"}
    assert bench.launcher.started == ["nightly-20261123-000100"]


def test_a_run_that_outlives_the_scheduler_is_found_again(make_bench: Make) -> None:
    bench = make_bench(lasts=600.0)
    bench.add(cron="0 * * * *")
    bench.pass_time(minutes=61)
    bench.be_away(minutes=5)
    assert bench.minutes() == {"01:00": "running"}
    bench.be_away(minutes=20)
    assert bench.minutes() == {"01:00": "complete"}
    assert bench.launcher.started == ["nightly-20261123-010000"]


def test_a_run_that_vanishes_is_resumed_twice(make_bench: Make) -> None:
    bench = make_bench(lasts=600.0)
    bench.add(cron="0 0 24 * *", notify={"exit_hook": ["true"]})
    bench.be_away(until="2026-11-24T00:00:05+00:00")
    for _ in range(3):
        bench.launcher.kill("nightly-20261124-000000")
        bench.pass_time(minutes=1)
    assert bench.launcher.started == ["nightly-20261124-000000"] * 3
    assert bench.minutes() == {"00:00": "lost"}
    assert [notification.event for notification in bench.store.open_notifications()] == ["failure"]


def test_a_start_on_an_unreachable_cluster_is_retried_for_a_quarter_of_an_hour(make_bench: Make) -> None:
    bench = make_bench()
    bench.add(cron="0,30 * * * *")
    bench.launcher.trouble = RunError("The cluster cannot be reached.")
    bench.pass_time(minutes=35)
    assert bench.minutes() == {"00:30": "starting"}
    bench.launcher.trouble = None
    bench.pass_time(minutes=1)
    assert bench.minutes() == {"00:30": "complete"}
    bench.launcher.trouble = RunError("The cluster cannot be reached.")
    bench.pass_time(minutes=41)
    assert bench.minutes()["01:00"] == "failed"


def test_an_invalid_spec_fails_its_firing_with_its_message(make_bench: Make) -> None:
    bench = make_bench()
    bench.add(notify={"exit_hook": ["true"]})
    bench.launcher.trouble = SpecError("The job spec is gone.")
    bench.pass_time(minutes=1)
    (notification,) = bench.store.open_notifications()
    assert (notification.event, notification.reason) == ("failure", "The job spec is gone.")
    assert bench.minutes() == {"00:01": "failed"}


def test_a_clock_that_is_set_back_fires_nothing_twice(make_bench: Make) -> None:
    bench = make_bench()
    bench.add()
    bench.pass_time(minutes=5)
    before = bench.store.firing("nightly-20261123-000400")
    bench.be_away(minutes=-3)
    bench.pass_time(minutes=5)
    assert list(bench.minutes()) == [f"00:0{minute}" for minute in range(1, 8)]
    assert bench.store.firing("nightly-20261123-000400") == before
    assert len(bench.launcher.started) == 7


def test_a_clock_that_was_a_year_ahead_does_not_stop_a_schedule(make_bench: Make) -> None:
    bench = make_bench()
    bench.add(cron="0 * * * *", catch_up="none")
    bench.be_away(minutes=365 * 24 * 60 + 30)
    bench.be_away(minutes=-365 * 24 * 60 - 30)
    bench.pass_time(minutes=61)
    assert bench.outcomes()["nightly-20261123-010000"] == "complete"


def test_this_machine_does_one_run_at_a_time(make_bench: Make) -> None:
    bench = make_bench(lasts=30.0, local_runs=1)
    bench.add("a")
    bench.add("b", cron="1 0 * * *")
    bench.pass_time(minutes=1.1)
    assert bench.launcher.going() == ["a-20261123-000100"]
    assert bench.minutes("b") == {"00:01": "waiting"}
    bench.pass_time(minutes=1)
    assert bench.minutes("b") == {"00:01": "complete"}
