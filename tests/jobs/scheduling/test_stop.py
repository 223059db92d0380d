"""Stopping a schedule's run by command, also on a cluster that will never answer again."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jobs.scheduling.firing import Firing
from jobs.scheduling.launcher import LaunchStatus
from tests.support.fakes.schedule_bench import ScheduleBench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ScheduleBench]:
    """A bench whose first run takes an hour, with others that wait for it."""
    bench = ScheduleBench(tmp_path, "2026-11-23T00:00:00+00:00", lasts=3600.0)
    with closing(bench.store):
        bench.add(overlap="queue", notify={"exit_hook": ["true"]})
        bench.pass_time(minutes=2)
        yield bench


def test_a_running_firing_is_stopped_and_a_waiting_one_does_not_begin(bench: ScheduleBench) -> None:
    assert bench.store.ask_to_stop("nightly") == ["nightly-20261123-000100", "nightly-20261123-000200"]
    bench.pass_time(minutes=0.5)
    assert bench.minutes() == {"00:01": "stopped", "00:02": "stopped"}
    assert bench.launcher.stopped == ["nightly-20261123-000100"]
    # The user stopped it, so no notification is sent.
    assert bench.store.open_notifications() == []
    bench.pass_time(minutes=1)
    assert bench.minutes()["00:03"] == "running"


def test_a_run_on_an_unreachable_cluster_does_not_block_later_firings_forever(bench: ScheduleBench) -> None:
    def be_away(firing: Firing) -> LaunchStatus:
        return LaunchStatus("unseen", problem="No cluster answers.")

    bench.launcher.check = be_away
    bench.pass_time(minutes=60)
    assert bench.minutes()["00:01"] == "running"
    bench.store.ask_to_stop("nightly")
    bench.pass_time(minutes=9)
    assert bench.minutes()["00:01"] == "stopping"
    bench.pass_time(minutes=2)
    assert bench.minutes()["00:01"] == "stopped"
