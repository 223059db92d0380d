"""The concurrency limit of reads, and hedging of slow reads."""

import threading
import time
from concurrent.futures import Future

import pytest

from pipeline.storage.pacing import (
    FEWEST_READS,
    LEAST_SLOW_S,
    MOST_SLOW_S,
    SLOW_FACTOR,
    HedgePolicy,
    ReadLimiter,
    hedged,
)


def test_no_more_reads_than_the_limit_run_at_once() -> None:
    limiter, release = ReadLimiter(3), threading.Event()
    begun = threading.Semaphore(0)

    def read() -> None:
        with limiter.slot():
            begun.release()
            release.wait(60)

    threads = [threading.Thread(target=read) for _ in range(5)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert begun.acquire(timeout=60)
    assert not limiter.has_room()
    assert not begun.acquire(timeout=0.1)
    release.set()
    for thread in threads:
        thread.join()
    assert limiter.has_room()


def test_a_slow_down_halves_it_once_per_round_and_success_raises_it_slowly() -> None:
    limiter = ReadLimiter(32)
    before = time.monotonic()
    limiter.record_slow_down(before)
    # Requests that began before it was halved were refused for the same reason.
    for _ in range(31):
        limiter.record_slow_down(before)
    assert limiter.limit == 16
    for _ in range(17):
        limiter.record_success()
    assert limiter.limit == 17
    for _ in range(9):
        limiter.record_slow_down(time.monotonic())
    assert limiter.limit == 1
    for _ in range(2000):
        limiter.record_success()
    assert limiter.limit == 32


def with_reads(hedges: HedgePolicy, seconds: float, count: int = FEWEST_READS) -> HedgePolicy:
    for _ in range(count):
        hedges.record(seconds, 1000)
    return hedges


def test_slow_is_a_multiple_of_the_95th_percentile() -> None:
    hedges = HedgePolicy()
    assert hedges.hedge_after_s(1000) is None
    with_reads(hedges, 0.5)
    assert hedges.hedge_after_s(1000) == hedges.hedge_after_s(None) == SLOW_FACTOR * 0.5
    assert hedges.hedge_after_s(10_000) == 10 * SLOW_FACTOR * 0.5
    assert with_reads(HedgePolicy(), 0.001).hedge_after_s(1000) == LEAST_SLOW_S
    assert with_reads(HedgePolicy(), 99.0).hedge_after_s(1000) == MOST_SLOW_S
    assert with_reads(HedgePolicy(is_on=False), 0.5).hedge_after_s(1000) is None


def test_few_reads_are_hedged() -> None:
    hedges, granted = HedgePolicy(), 0
    for _ in range(1000):
        hedges.record(0.1, 1000)
        granted += hedges.take()
    assert 50 <= granted <= 52


def done(answer: str | Exception) -> Future[str]:
    future: Future[str] = Future()
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
    return future


def test_a_slow_read_is_overtaken_and_cancelled() -> None:
    first: Future[str] = Future()
    sent = iter([first, done("second")])
    assert hedged(lambda: next(sent), 0.0, lambda: True) == "second"
    assert first.cancelled()


@pytest.mark.parametrize("may_hedge", [True, False])
def test_a_fast_read_is_sent_once(may_hedge: bool) -> None:
    sent = iter([done("first")])
    assert hedged(lambda: next(sent), 60.0, lambda: may_hedge) == "first"


def test_a_slow_read_that_may_not_be_hedged_finishes() -> None:
    first: Future[str] = Future()
    sent = iter([first])
    threading.Timer(0.05, first.set_result, ["late"]).start()
    assert hedged(lambda: next(sent), 0.0, lambda: False) == "late"


def test_a_failed_second_request_does_not_end_the_first() -> None:
    first: Future[str] = Future()
    sent = iter([first, done(OSError("503"))])
    threading.Timer(0.05, first.set_result, ["late"]).start()
    assert hedged(lambda: next(sent), 0.0, lambda: True) == "late"


def test_when_both_fail_the_first_error_is_raised() -> None:
    first: Future[str] = Future()
    sent = iter([first, done(OSError("second"))])
    threading.Timer(0.05, first.set_exception, [OSError("first")]).start()
    with pytest.raises(OSError, match="first"):
        hedged(lambda: next(sent), 0.0, lambda: True)
