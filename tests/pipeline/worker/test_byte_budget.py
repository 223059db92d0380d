"""Bytes on their way to the model: bounded for both shards together, in order, and never a deadlock."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.worker.byte_budget import ByteBudget, LaneClosedError, SharedBudget

PATIENCE_S = 60.0


def in_thread(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def is_waiting(thread: threading.Thread) -> bool:
    thread.join(0.1)
    return thread.is_alive()


def test_bytes_enter_when_there_is_room_and_the_largest_alone() -> None:
    budget, go = ByteBudget(100), threading.Event()
    inside = threading.Semaphore(0)

    def hold(count: int) -> None:
        with budget.hold(count):
            inside.release()
            go.wait(PATIENCE_S)

    threads = [in_thread(lambda count=count: hold(count)) for count in (60, 40)]  # type: ignore[misc]
    for _ in threads:
        assert inside.acquire(timeout=PATIENCE_S)
    late = [in_thread(lambda count=count: hold(count)) for count in (1, 500)]  # type: ignore[misc]
    assert not inside.acquire(timeout=0.1)
    go.set()
    for thread in [*threads, *late]:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert budget.held == 0


def test_a_large_one_is_not_overtaken_for_ever_by_small_ones() -> None:
    budget, entered = ByteBudget(100), []

    def hold(count: int) -> None:
        with budget.hold(count):
            entered.append(count)

    with budget.hold(50):
        large = in_thread(lambda: hold(90))
        assert is_waiting(large)
        small = in_thread(lambda: hold(10))
        assert is_waiting(small)
    for thread in (large, small):
        thread.join(PATIENCE_S)
    assert entered == [90, 10]


def test_an_exception_inside_frees_the_bytes() -> None:
    budget = ByteBudget(10)
    with pytest.raises(KeyError), budget.hold(10):
        raise KeyError
    assert budget.held == 0


def test_a_lane_admits_by_number_in_any_order_of_requests() -> None:
    lane, entered = SharedBudget(100).open_lane(), []

    def take(number: int) -> None:
        lane.take(number, 10)
        entered.append(number)

    late = in_thread(lambda: take(2))
    assert is_waiting(late)
    take(0)
    # Number 1 failed before it requested bytes.
    lane.skip(1)
    late.join(PATIENCE_S)
    assert entered == [0, 2]
    assert lane.held == 20


def test_a_number_that_is_loaded_alone_keeps_the_next_one_waiting() -> None:
    lane = SharedBudget(100).open_lane()
    lane.take(0, 10, is_passed=False)
    late = in_thread(lambda: lane.take(1, 10))
    assert is_waiting(late)
    lane.skip(0)
    late.join(PATIENCE_S)
    assert lane.held == 20


def test_only_the_awaited_image_enters_without_room() -> None:
    budget = SharedBudget(100)
    lane = budget.open_lane()
    lane.await_number(0)
    lane.take(0, 90)
    second = in_thread(lambda: lane.take(1, 50))
    third = in_thread(lambda: lane.take(2, 1))
    assert is_waiting(second)
    lane.await_number(1)
    second.join(PATIENCE_S)
    assert not second.is_alive()
    assert is_waiting(third)
    assert budget.held == 140
    lane.give_back(0)
    third.join(PATIENCE_S)
    assert budget.held == 51


def test_a_shard_that_waits_for_its_turn_holds_a_quarter_and_is_left_one() -> None:
    budget = SharedBudget(100)
    working, waiting = budget.open_lane(), budget.open_lane()
    working.await_number(0)
    for number in range(7):
        working.take(number, 10)
    ended = threading.Event()

    def take_the_eighth() -> None:
        with pytest.raises(LaneClosedError):
            working.take(7, 10)
        ended.set()

    eighth = in_thread(take_the_eighth)
    assert is_waiting(eighth)
    for number in range(2):
        waiting.take(number, 10)
    third = in_thread(lambda: waiting.take(2, 10))
    assert is_waiting(third)
    working.close()
    # Alone, and its turn: it may hold all bytes.
    waiting.await_number(0)
    third.join(PATIENCE_S)
    assert not third.is_alive()
    with pytest.raises(LaneClosedError):
        working.take(8, 1)
    assert ended.wait(PATIENCE_S)
    assert budget.held == 30


def test_a_closed_lane_holds_nothing_and_keeps_nothing_waiting() -> None:
    budget = SharedBudget(10)
    lane = budget.open_lane()
    lane.await_number(0)
    lane.take(0, 10)
    ended: list[type[BaseException]] = []

    def take() -> None:
        try:
            lane.take(1, 10)
        except LaneClosedError as error:
            ended.append(type(error))

    stuck = in_thread(take)
    assert is_waiting(stuck)
    lane.close()
    lane.close()
    stuck.join(PATIENCE_S)
    # Loads in progress end later and change nothing any more.
    lane.resize(0, 7)
    assert (ended, budget.held) == ([LaneClosedError], 0)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=12), min_size=1, max_size=3),
    st.integers(1, 4),
)
def test_any_sizes_go_through_within_the_bound(shards: list[list[int]], batch: int) -> None:
    """Consumers take turns, keep `batch` images before they free them, and load everything from threads."""
    budget, turn, peaks = SharedBudget(100), threading.Lock(), [0]
    largest = max(max(sizes) for sizes in shards)

    def work(sizes: list[int]) -> None:
        lane = budget.open_lane()

        def load(number: int) -> None:
            lane.take(number, sizes[number])
            peaks[0] = max(peaks[0], budget.held)

        with ThreadPoolExecutor(len(sizes)) as pool:
            futures = [pool.submit(load, number) for number in reversed(range(len(sizes)))][::-1]
            with turn:
                held: list[int] = []
                for number, future in enumerate(futures):
                    lane.await_number(number)
                    future.result(PATIENCE_S)
                    held.append(number)
                    if len(held) == batch or sum(sizes[each] for each in held) > 50:
                        for each in held:
                            lane.give_back(each)
                        held.clear()
        lane.close()

    with ThreadPoolExecutor(len(shards)) as pool:
        for future in [pool.submit(work, sizes) for sizes in shards]:
            future.result(PATIENCE_S)
    assert budget.held == 0
    assert peaks[0] <= 100 + largest
