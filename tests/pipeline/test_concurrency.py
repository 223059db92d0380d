"""Loading ahead: in order, bounded, and nothing is left running when the consumer leaves early."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.concurrency import Prefetch, delete_all, read_ahead


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


def test_on_wait_gets_the_number_that_is_waited_for(pool: ThreadPoolExecutor) -> None:
    awaited: list[int] = []
    with Prefetch(pool, "abc", str.upper, ahead=2, on_wait=awaited.append) as loaded:
        assert list(loaded) == ["A", "B", "C"]
    assert awaited == [0, 1, 2]


def test_on_leave_wakes_loads_that_wait(pool: ThreadPoolExecutor) -> None:
    room = threading.Event()

    def load(number: int) -> int:
        if number:
            assert room.wait(60)
        return number

    with Prefetch(pool, range(9), load, ahead=3, on_leave=room.set) as loaded:
        assert next(iter(loaded)) == 0
    assert room.is_set()


def test_an_exception_is_raised_at_its_place_and_the_rest_is_drained(pool: ThreadPoolExecutor) -> None:
    running = threading.Semaphore(0)

    def load(number: int) -> int:
        if number == 2:
            raise OSError("gone")
        running.release()
        return number

    results = []
    with pytest.raises(OSError, match="gone"), Prefetch(pool, range(50), load, ahead=2) as loaded:
        results.extend(loaded)
    assert results == [0, 1]
    # The pool is free again: nothing of the abandoned sources is queued on it.
    assert pool.submit(lambda: "free").result(timeout=10) == "free"


def test_reading_ahead_keeps_order_and_distance_and_raises() -> None:
    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        if number == 30:
            raise ValueError("thirty")
        return number * 2

    reader = read_ahead(2, read, range(100))
    assert [next(reader) for _ in range(10)] == list(range(0, 20, 2))
    assert max(begun) < 10 + 4
    with pytest.raises(ValueError, match="thirty"):
        list(reader)
    assert max(begun) < 30 + 5


def test_reading_ahead_leaves_nothing_running_when_the_consumer_stops_early() -> None:
    begun, ended = [], []

    def read(number: int) -> int:
        begun.append(number)
        ended.append(number)
        return number

    reader = read_ahead(2, read, range(100))
    assert next(reader) == 0
    reader.close()  # type: ignore[attr-defined]
    assert sorted(begun) == sorted(ended)
    assert len(begun) <= 5


def test_all_are_deleted_and_a_failure_is_raised() -> None:
    deleted: set[str] = set()
    delete_all(deleted.add, (f"part-{number}" for number in range(100)))
    assert deleted == {f"part-{number}" for number in range(100)}

    def refuse(uri: str) -> None:
        raise OSError(uri)

    with pytest.raises(OSError, match="part-0"):
        delete_all(refuse, ["part-0"])
