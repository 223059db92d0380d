"""Loading ahead: in order, bounded, and nothing left running when somebody leaves early."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.prefetch import ByteBudget, ByteGauge, Prefetch


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_results_come_in_the_order_of_their_sources(pool: ThreadPoolExecutor) -> None:
    second_done = threading.Event()

    def load(number: int) -> int:
        if number == 0:
            second_done.wait(10)
        if number == 1:
            second_done.set()
        return number * number

    with Prefetch(pool, range(20), load, ahead=4) as loaded:
        assert list(loaded) == [number * number for number in range(20)]


def test_no_more_than_the_bound_is_begun(pool: ThreadPoolExecutor) -> None:
    begun: list[int] = []
    with Prefetch(pool, range(100), begun.append, ahead=3) as loaded:
        results = iter(loaded)
        next(results)
    assert len(begun) <= 4


def test_a_full_gauge_holds_back_all_but_one(pool: ThreadPoolExecutor) -> None:
    gauge = ByteGauge()
    begun: list[int] = []

    def load(number: int) -> int:
        begun.append(number)
        gauge.add(1000)
        return number

    with Prefetch(pool, range(6), load, ahead=1, gauge=gauge, max_bytes=10) as loaded:
        seen = []
        for number in loaded:
            seen.append(number)
            assert len(begun) <= len(seen) + 1
    assert seen == list(range(6))


def test_an_exception_comes_at_its_place_and_the_rest_is_drained(pool: ThreadPoolExecutor) -> None:
    running = threading.Semaphore(0)

    def load(number: int) -> int:
        if number == 2:
            raise OSError("gone")
        running.release()
        return number

    seen = []
    with pytest.raises(OSError, match="gone"), Prefetch(pool, range(50), load, ahead=2) as loaded:
        seen.extend(loaded)
    assert seen == [0, 1]
    # The pool is free again: nothing of the abandoned sources is queued on it.
    assert pool.submit(lambda: "free").result(timeout=10) == "free"


def test_bytes_come_in_as_there_is_room_and_the_largest_alone() -> None:
    budget, go = ByteBudget(100), threading.Event()
    inside = threading.Semaphore(0)

    def hold(count: int) -> None:
        with budget.hold(count):
            inside.release()
            go.wait(60)

    threads = [threading.Thread(target=hold, args=[count]) for count in (60, 40)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inside.acquire(timeout=60)
    late = [threading.Thread(target=hold, args=[count]) for count in (1, 500)]
    for thread in late:
        thread.start()
    assert not inside.acquire(timeout=0.1)
    go.set()
    for thread in [*threads, *late]:
        thread.join(timeout=60)
        assert not thread.is_alive()
