"""What the scheduler makes of schedules as the hours pass: overlap, catching up, deadlines, pauses, jitter."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from pipeline.errors import RunError, SpecError
from tests.support.fakes.schedule_bench import ScheduleBench

Make = Callable[..., ScheduleBench]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Make]:
    """Make a bench that starts at a time."""
    with ExitStack() as closing_all:

        def make(start: str = "2026-11-23T00:00:00+00:00", **arguments: object) -> ScheduleBench:
            made = ScheduleBench(tmp_path, start, **arguments)
            closing_all.enter_context(closing(made.store))
            return made

        yield make


def test_three_schedules_of_a_minute_fire_for_an_hour_through_restarts(bench: Make) -> None:
    hour = bench(lasts=20.0)
    for name in "abc":
        hour.add(name)
    for _ in range(6):
        hour.pass_time(minutes=9.5, step_s=1)
        # Half a minute without a scheduler, over a full minute: less than a minute is on time.
        hour.be_away(minutes=0.5)
    hour.pass_time(minutes=0.5)
    for name in "abc":
        assert list(hour.outcomes(name).values()) == ["complete"] * 60
        assert [run for run in hour.place.started if run[0] == name] == list(hour.outcomes(name))


def test_skip_leaves_out_what_comes_while_a_run_goes_on(bench: Make) -> None:
    night = bench(lasts=150.0)
    night.add(overlap="skip")
    night.pass_time(minutes=7)
    assert night.minutes() == {
        "00:01": "complete",
        "00:02": "skipped",
        "00:03": "skipped",
        "00:04": "complete",
        "00:05": "skipped",
        "00:06": "skipped",
        "00:07": "running",
    }
    skipped = night.store.firing("nightly-20261123-000200")
    assert skipped is not None
    assert skipped.ending is not None
    assert skipped.ending.reason == "nightly-20261123-000100 was still running."


def test_queue_begins_each_after_the_one_before(bench: Make) -> None:
    night = bench(lasts=lambda firing: 150.0 if firing.scheduled.minute == 1 else 10.0)
    night.add(overlap="queue")
    night.pass_time(minutes=3)
    assert night.place.going() == ["nightly-20261123-000100"]
    assert night.minutes() == {"00:01": "running", "00:02": "waiting", "00:03": "waiting"}
    night.pass_time(minutes=2)
    assert set(night.minutes().values()) <= {"complete", "running"}
    assert night.place.started == [f"nightly-20261123-000{minute}00" for minute in range(1, 6)]


def test_a_queue_has_an_end(bench: Make) -> None:
    night = bench(lasts=86_400.0)
    night.add(overlap="queue")
    night.pass_time(minutes=15, step_s=20)
    assert list(night.minutes().values()) == ["running"] + ["waiting"] * 10 + ["skipped"] * 4


def test_replace_stops_the_one_before_and_begins_at_its_end(bench: Make) -> None:
    night = bench(lasts=150.0)
    night.add(overlap="replace")
    night.pass_time(minutes=2, step_s=1)
    assert night.place.stopped == ["nightly-20261123-000100"]
    assert night.minutes() == {"00:01": "stopping", "00:02": "waiting"}
    assert night.place.started == ["nightly-20261123-000100"]
    night.pass_time(minutes=0.5, step_s=1)
    assert night.minutes() == {"00:01": "replaced", "00:02": "running"}


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
def test_what_nobody_was_there_to_start_is_made_up_for(bench: Make, catch_up: str, expected: dict[str, str]) -> None:
    night = bench()
    night.add(cron="0 * * * *", catch_up=catch_up, catch_up_window_s=3.5 * 3600)
    night.be_away(until="2026-11-23T05:20:00+00:00")
    night.pass_time(until="2026-11-23T06:01:00+00:00")
    assert night.minutes() == expected


def test_all_that_is_made_up_for_runs_one_after_the_other(bench: Make) -> None:
    night = bench(lasts=600.0)
    night.add(cron="0 * * * *", catch_up="all", overlap="skip")
    night.be_away(until="2026-11-23T03:20:00+00:00")
    night.pass_time(minutes=5)
    assert len(night.place.going()) == 1
    night.pass_time(minutes=30)
    assert night.minutes() == {"01:00": "complete", "02:00": "complete", "03:00": "complete"}


def test_one_that_is_on_time_makes_up_for_those_before(bench: Make) -> None:
    night = bench()
    night.add(cron="0 * * * *", catch_up="last")
    night.be_away(until="2026-11-23T03:00:20+00:00")
    night.pass_time(minutes=1)
    assert night.minutes() == {"02:00": "missed", "03:00": "complete"}


def test_a_week_without_a_scheduler_is_one_line_of_history(bench: Make) -> None:
    night = bench()
    night.add(cron="30 2 * * *", catch_up="none", time_zone="Europe/Berlin")
    night.be_away(minutes=7 * 24 * 60)
    (missed,) = night.store.history(None, 100)
    assert missed.ending is not None
    assert missed.ending.reason == (
        "No scheduler was running at its time (7 firings from 2026-11-23 01:30 UTC to 2026-11-29 01:30 UTC)."
    )


def test_a_pause_begins_nothing_and_is_not_made_up_for(bench: Make) -> None:
    night = bench()
    schedule = night.add()
    night.pass_time(minutes=2)
    night.store.put(schedule.model_copy(update={"is_paused": True}), night.clock.now)
    night.pass_time(minutes=5)
    night.store.put(schedule, night.clock.now)
    night.pass_time(minutes=2)
    assert list(night.minutes()) == ["00:01", "00:02", "00:08", "00:09"]


def test_a_run_that_is_late_is_told_and_goes_on(bench: Make) -> None:
    night = bench(lasts=900.0)
    night.add(cron="1 0 * * *", deadline_s=300, notify={"exit_hook": ["true"]})
    night.pass_time(minutes=7)
    assert [notification.event for notification in night.store.open_notifications()] == ["deadline"]
    assert night.place.stopped == []
    night.pass_time(minutes=10)
    (firing,) = night.store.history(None, 10)
    assert firing.is_late
    assert firing.ending is not None
    assert firing.ending.outcome == "complete"
    assert [notification.event for notification in night.store.open_notifications()] == ["deadline", "end"]


def test_a_run_that_is_late_can_be_stopped(bench: Make) -> None:
    night = bench(lasts=900.0)
    night.add(cron="1 0 * * *", deadline_s=300, on_deadline="stop", notify={"exit_hook": ["true"]})
    night.pass_time(minutes=7)
    assert night.minutes() == {"00:01": "stopped"}
    assert [notification.event for notification in night.store.open_notifications()] == ["deadline"]


def test_jitter_delays_each_firing_differently_and_none_twice(bench: Make) -> None:
    night = bench(lasts=1.0)
    night.add(jitter_s=30)
    night.pass_time(minutes=10.9, step_s=1)
    begun = [firing.begun for firing in night.store.history(None, 100)]
    delays = {moment.second for moment in begun if moment}
    assert len(begun) == 10
    assert max(delays) <= 31
    assert len(delays) > 3


def test_a_scheduler_that_dies_between_deciding_and_starting_starts_once(bench: Make) -> None:
    night = bench(lasts=30.0)
    night.add(cron="1 0 * * *")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    night.pass_time(minutes=0.9)
    real_update = night.store.update
    start = night.place.start

    def start_and_die(firing: object) -> str:
        start(firing)
        night.store.update = die
        return "never written down"

    night.place.start = start_and_die
    with pytest.raises(KeyboardInterrupt):
        night.pass_time(minutes=0.2)
    assert night.minutes() == {"00:01": "starting"}
    night.store.update, night.place.start = real_update, start
    night.be_away(minutes=0.1)
    night.pass_time(minutes=1)
    assert night.minutes() == {"00:01": "complete"}
    assert night.place.started == ["nightly-20261123-000100"]


def test_a_run_that_goes_on_without_the_scheduler_is_found_again(bench: Make) -> None:
    night = bench(lasts=600.0)
    night.add(cron="0 * * * *")
    night.pass_time(minutes=61)
    night.be_away(minutes=5)
    assert night.minutes() == {"01:00": "running"}
    night.be_away(minutes=20)
    assert night.minutes() == {"01:00": "complete"}
    assert night.place.started == ["nightly-20261123-010000"]


def test_a_run_that_vanishes_is_resumed_and_given_up_the_third_time(bench: Make) -> None:
    night = bench(lasts=600.0)
    night.add(cron="0 0 24 * *", notify={"exit_hook": ["true"]})
    night.be_away(until="2026-11-24T00:00:05+00:00")
    for _ in range(3):
        night.place.kill("nightly-20261124-000000")
        night.pass_time(minutes=1)
    assert night.place.started == ["nightly-20261124-000000"] * 3
    assert night.minutes() == {"00:00": "lost"}
    assert [notification.event for notification in night.store.open_notifications()] == ["failure"]


def test_a_cluster_that_is_away_is_asked_again_for_a_quarter_of_an_hour(bench: Make) -> None:
    night = bench()
    night.add(cron="0,30 * * * *")
    night.place.trouble = RunError("The cluster cannot be reached.")
    night.pass_time(minutes=35)
    assert night.minutes() == {"00:30": "starting"}
    night.place.trouble = None
    night.pass_time(minutes=1)
    assert night.minutes() == {"00:30": "complete"}
    night.place.trouble = RunError("The cluster cannot be reached.")
    night.pass_time(minutes=41)
    assert night.minutes()["01:00"] == "failed"


def test_a_spec_that_became_wrong_fails_its_firing_with_its_sentence(bench: Make) -> None:
    night = bench()
    night.add(notify={"exit_hook": ["true"]})
    night.place.trouble = SpecError("The job spec is gone.")
    night.pass_time(minutes=1)
    (notification,) = night.store.open_notifications()
    assert (notification.event, notification.reason) == ("failure", "The job spec is gone.")
    assert night.minutes() == {"00:01": "failed"}


def test_a_clock_that_is_set_back_fires_nothing_twice(bench: Make) -> None:
    night = bench()
    night.add()
    night.pass_time(minutes=5)
    before = night.store.firing("nightly-20261123-000400")
    night.be_away(minutes=-3)
    night.pass_time(minutes=5)
    assert list(night.minutes()) == [f"00:0{minute}" for minute in range(1, 8)]
    assert night.store.firing("nightly-20261123-000400") == before
    assert len(night.place.started) == 7


def test_a_clock_that_was_a_year_ahead_stops_no_schedule(bench: Make) -> None:
    night = bench()
    night.add(cron="0 * * * *", catch_up="none")
    night.be_away(minutes=365 * 24 * 60 + 30)
    night.be_away(minutes=-365 * 24 * 60 - 30)
    night.pass_time(minutes=61)
    assert night.outcomes()["nightly-20261123-010000"] == "complete"


def test_this_machine_does_one_run_at_a_time(bench: Make) -> None:
    night = bench(lasts=30.0, local_runs=1)
    night.add("a")
    night.add("b", cron="1 0 * * *")
    night.pass_time(minutes=1.1)
    assert night.place.going() == ["a-20261123-000100"]
    assert night.minutes("b") == {"00:01": "waiting"}
    night.pass_time(minutes=1)
    assert night.minutes("b") == {"00:01": "complete"}
