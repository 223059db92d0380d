"""The scheduler on the days on which clocks change."""

from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.fakes.schedule_bench import ScheduleBench

SPRING, AUTUMN = "2027-03-27T20:00:00+00:00", "2026-10-24T20:00:00+00:00"


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ScheduleBench]:
    """A bench that starts in the evening before."""
    bench = ScheduleBench(tmp_path, request.param)
    with closing(bench.store):
        yield bench


def live_until_noon(bench: ScheduleBench) -> None:
    bench.pass_time(minutes=16 * 60, step_s=30)


@pytest.mark.parametrize(
    ("bench", "begun_utc"), [(SPRING, "2027-03-28 01:00"), (AUTUMN, "2026-10-25 00:30")], indirect=["bench"]
)
def test_a_daily_firing_on_a_clock_change_runs_once(bench: ScheduleBench, begun_utc: str) -> None:
    bench.add(cron="30 2 * * *", time_zone="Europe/Berlin")
    live_until_noon(bench)
    (firing,) = bench.store.history(None, 10)
    assert f"{firing.begun:%Y-%m-%d %H:%M}" == begun_utc
    assert firing.ending is not None
    assert firing.ending.outcome == "complete"


@pytest.mark.parametrize("bench", [SPRING, AUTUMN], indirect=True)
def test_a_scheduler_that_was_away_during_the_change_makes_up_for_it_once(bench: ScheduleBench) -> None:
    bench.add(cron="30 2 * * *", time_zone="Europe/Berlin", catch_up="all")
    bench.be_away(minutes=12 * 60)
    live_until_noon(bench)
    assert list(bench.outcomes().values()) == ["complete"]


@pytest.mark.parametrize("bench", [SPRING, AUTUMN], indirect=True)
def test_every_hour_is_every_hour(bench: ScheduleBench) -> None:
    bench.add(cron="0 * * * *", time_zone="Europe/Berlin")
    bench.pass_time(minutes=24 * 60, step_s=50)
    scheduled = [firing.scheduled for firing in reversed(bench.store.history(None, 100))]
    assert len(scheduled) == 24
    assert {(later - moment).total_seconds() for moment, later in pairwise(scheduled)} == {3600}
