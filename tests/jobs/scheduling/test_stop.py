"""Stopping a schedule's run by command, also on a cluster that will never answer again."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jobs.scheduling.firing import Firing
from jobs.scheduling.launcher import LaunchStatus
from tests.support.fakes.schedule_bench import ScheduleBench


@pytest.fixture
def night(tmp_path: Path) -> Iterator[ScheduleBench]:
    """A night whose first run takes an hour, with others that wait for it."""
    bench = ScheduleBench(tmp_path, "2026-11-23T00:00:00+00:00", lasts=3600.0)
    with closing(bench.store):
        bench.add(overlap="queue", notify={"exit_hook": ["true"]})
        bench.pass_time(minutes=2)
        yield bench


def test_what_goes_on_is_stopped_and_what_waits_does_not_begin(night: ScheduleBench) -> None:
    assert night.store.ask_to_stop("nightly") == ["nightly-20261123-000100", "nightly-20261123-000200"]
    night.pass_time(minutes=0.5)
    assert night.minutes() == {"00:01": "stopped", "00:02": "stopped"}
    assert night.place.stopped == ["nightly-20261123-000100"]
    # Whoever stopped it knows.
    assert night.store.open_notifications() == []
    night.pass_time(minutes=1)
    assert night.minutes()["00:03"] == "running"


def test_a_run_that_nobody_can_ask_about_does_not_stand_in_the_way_for_ever(night: ScheduleBench) -> None:
    def be_away(firing: Firing) -> LaunchStatus:
        return LaunchStatus("unseen", problem="No cluster answers.")

    night.place.check = be_away
    night.pass_time(minutes=60)
    assert night.minutes()["00:01"] == "running"
    night.store.ask_to_stop("nightly")
    night.pass_time(minutes=9)
    assert night.minutes()["00:01"] == "stopping"
    night.pass_time(minutes=2)
    assert night.minutes()["00:01"] == "stopped"
