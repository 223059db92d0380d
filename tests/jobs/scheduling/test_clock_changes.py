"""The nights on which clocks change, lived through by the scheduler."""

from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.fakes.schedule_bench import ScheduleBench

SPRING, AUTUMN = "2027-03-27T20:00:00+00:00", "2026-10-24T20:00:00+00:00"


@pytest.fixture
def night(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ScheduleBench]:
    """A bench that starts in the evening before."""
    bench = ScheduleBench(tmp_path, request.param)
    with closing(bench.store):
        yield bench


def live_until_noon(night: ScheduleBench) -> None:
    night.pass_time(minutes=16 * 60, step_s=30)


@pytest.mark.parametrize(
    ("night", "begun_utc"), [(SPRING, "2027-03-28 01:00"), (AUTUMN, "2026-10-25 00:30")], indirect=["night"]
)
def test_half_past_two_is_done_once(night: ScheduleBench, begun_utc: str) -> None:
    night.add(cron="30 2 * * *", time_zone="Europe/Berlin")
    live_until_noon(night)
    (firing,) = night.store.history(None, 10)
    assert f"{firing.begun:%Y-%m-%d %H:%M}" == begun_utc
    assert firing.ending is not None
    assert firing.ending.outcome == "complete"


@pytest.mark.parametrize("night", [SPRING, AUTUMN], indirect=True)
def test_a_scheduler_that_was_away_during_the_change_makes_up_for_it_once(night: ScheduleBench) -> None:
    night.add(cron="30 2 * * *", time_zone="Europe/Berlin", catch_up="all")
    night.be_away(minutes=12 * 60)
    live_until_noon(night)
    assert list(night.outcomes().values()) == ["complete"]


@pytest.mark.parametrize("night", [SPRING, AUTUMN], indirect=True)
def test_every_hour_is_every_hour(night: ScheduleBench) -> None:
    night.add(cron="0 * * * *", time_zone="Europe/Berlin")
    night.pass_time(minutes=24 * 60, step_s=50)
    scheduled = [firing.scheduled for firing in reversed(night.store.history(None, 100))]
    assert len(scheduled) == 24
    assert {(later - moment).total_seconds() for moment, later in pairwise(scheduled)} == {3600}
