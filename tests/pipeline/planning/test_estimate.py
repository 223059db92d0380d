"""How long a run takes on a pool of workers, and what it costs."""

import pytest

from pipeline.errors import SpecError
from pipeline.planning.estimate import PricedPool, Spot, Work, WorkerRate, estimate_run, judge, mean_range

RATE = WorkerRate(2.0, 1.6, 2.5, "given", "by hand")


def test_the_parts_add_up_and_workers_are_paid_from_start_to_end() -> None:
    estimate = estimate_run(PricedPool(4, 4, 3.0), Work(8000, 40), RATE, start_up_s=100)
    assert (estimate.start_up_s, estimate.model_s, estimate.tail_s) == (100, 1000, 0)
    assert estimate.seconds == 1100
    assert estimate.worker_hours == pytest.approx(4 * 1100 / 3600)
    assert estimate.amount == pytest.approx(3 * 4 * 1100 / 3600)
    assert estimate.low_s == pytest.approx(100 + 800)
    assert estimate.high_s == pytest.approx(100 + 1250)
    assert estimate.high_amount == pytest.approx(3 * 4 * 1350 / 3600)


def test_the_last_shards_leave_workers_idle() -> None:
    # Nine shards of 100 s on four workers: three rounds.
    estimate = estimate_run(PricedPool(4, 4), Work(1800, 9), RATE, start_up_s=0)
    assert estimate.seconds == pytest.approx(300)
    assert estimate.tail_s == pytest.approx(300 - 225)
    assert estimate.amount is None
    # More workers than shards are of no use, and cost all the same.
    many = estimate_run(PricedPool(100, 100, 1.0), Work(1800, 9), RATE, start_up_s=0)
    assert many.seconds == pytest.approx(100)
    assert many.worker_hours == pytest.approx(100 * 100 / 3600)


def test_a_cluster_that_grows_lies_between_its_least_and_its_most_workers() -> None:
    work = Work(100_000, 1000)
    least, grows, most = (
        estimate_run(PricedPool(low, high, 1.0), work, RATE, start_up_s=60, scale_up_s=600)
        for low, high in [(4, 4), (4, 16), (16, 16)]
    )
    assert most.seconds < grows.seconds < least.seconds
    # The least work alone for 600 s.
    assert grows.model_s == pytest.approx(600 + (100_000 - 4 * 2 * 600) / (16 * 2))
    assert grows.worker_hours < most.worker_hours + 16 * 600 / 3600


def test_spot_workers_cost_less_and_do_some_work_again() -> None:
    work = Work(80_000, 400)
    steady = estimate_run(PricedPool(8, 8, 4.0), work, RATE, start_up_s=120)
    spot = estimate_run(PricedPool(8, 8, 4.0, Spot(0.75, 1.0, 0.5)), work, RATE, start_up_s=120)
    # Half a shard of 100 s and a new start, once in two hours.
    assert spot.redone_share == pytest.approx(0.5 / 3600 * (50 + 120))
    assert spot.model_s == pytest.approx(steady.model_s / (1 - 0.75 * spot.redone_share))
    assert spot.amount == pytest.approx(spot.worker_hours * (0.75 * 1.0 + 0.25 * 4.0))
    with pytest.raises(SpecError, match="nearly all of their work"):
        estimate_run(PricedPool(8, 8, 4.0, Spot(1.0, 1.0, 60)), work, RATE, start_up_s=120)


def test_a_listing_that_takes_longer_than_the_work_is_waited_for() -> None:
    estimate = estimate_run(PricedPool(1, 1), Work(20, 2, listing_s=500), RATE, start_up_s=10)
    assert (estimate.listing_wait_s, estimate.seconds) == (480, 500)


def test_nothing_to_do_takes_no_time() -> None:
    estimate = estimate_run(PricedPool(2, 2, 1.0), Work(0, 0), RATE, start_up_s=10)
    assert (estimate.seconds, estimate.amount) == (0, 0)


def test_one_measurement_gives_no_range() -> None:
    estimate = estimate_run(PricedPool(1, 1), Work(10, 1), WorkerRate(1, None, None, "image", ""), start_up_s=0)
    assert (estimate.seconds, estimate.low_s, estimate.high_s) == (10, None, None)


def test_a_limit_is_kept_perhaps_when_the_slow_end_exceeds_it() -> None:
    assert [judge(100, high, 110) for high in (None, 105, 111)] == ["yes", "yes", "perhaps"]
    assert judge(111, 120, 110) == "no"


def test_the_range_of_a_mean_narrows_with_more_rounds() -> None:
    assert mean_range([1.0, 2.0]) is None
    few, many = mean_range([1.0, 2.0, 3.0]), mean_range([1.0, 2.0, 3.0] * 20)
    assert few is not None
    assert many is not None
    assert few == mean_range([1.0, 2.0, 3.0])
    assert few[0] < many[0] < 2 < many[1] < few[1]
