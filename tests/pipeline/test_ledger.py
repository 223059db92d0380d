"""Who gets which shard: two in flight, retries elsewhere and later, suspects alone."""

import pytest

from pipeline.ledger import MAX_BACKOFF_S, ShardLedger
from pipeline.reports import ShardFailure


class HandClock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ledger_of(shards: int, *, max_attempts: int = 3) -> tuple[ShardLedger, HandClock]:
    clock = HandClock()
    return ShardLedger(range(shards), max_attempts=max_attempts, clock=clock), clock


def failure(index: int, kind: str = "storage", *, is_charged: bool = True) -> ShardFailure:
    return ShardFailure(index, kind, "because", is_charged=is_charged)  # type: ignore[arg-type]


def test_a_worker_holds_two_shards_at_most() -> None:
    ledger, _ = ledger_of(5)
    first = ledger.next_for(0, (), has_peers=False)
    second = ledger.next_for(0, (0,), has_peers=False)
    assert first is not None
    assert second is not None
    assert (first.index, second.index) == (0, 1)
    assert ledger.next_for(0, (0, 1), has_peers=False) is None


def test_a_failed_shard_waits_before_it_is_tried_again() -> None:
    ledger, clock = ledger_of(1)
    ledger.next_for(0, (), has_peers=False)
    assert ledger.failed(failure(0)) is None
    assert ledger.next_for(0, (), has_peers=False) is None
    clock.now += MAX_BACKOFF_S
    again = ledger.next_for(0, (), has_peers=False)
    assert again is not None
    assert (again.index, again.attempt, again.is_last) == (0, 2, False)


def test_a_failed_shard_goes_to_another_worker_when_there_is_one() -> None:
    ledger, clock = ledger_of(1)
    ledger.next_for(0, (), has_peers=True)
    ledger.failed(failure(0))
    clock.now += MAX_BACKOFF_S
    assert ledger.next_for(0, (), has_peers=True) is None
    assert ledger.next_for(1, (), has_peers=True) is not None


def test_the_last_attempt_is_named_and_then_the_shard_is_given_up() -> None:
    ledger, clock = ledger_of(1, max_attempts=2)
    ledger.next_for(0, (), has_peers=False)
    ledger.failed(failure(0))
    clock.now += MAX_BACKOFF_S
    last = ledger.next_for(0, (), has_peers=False)
    assert last is not None
    assert last.is_last
    assert ledger.failed(failure(0)) == 2
    assert ledger.left == 0


def test_a_preempted_attempt_is_not_charged() -> None:
    ledger, clock = ledger_of(1, max_attempts=1)
    for attempt in range(1, 6):
        clock.now += MAX_BACKOFF_S
        assignment = ledger.next_for(0, (), has_peers=False)
        assert assignment is not None
        assert assignment.attempt == attempt
        assert ledger.failed(failure(0, "death", is_charged=False)) is None


def test_a_shard_that_saw_a_worker_die_runs_alone() -> None:
    ledger, clock = ledger_of(3)
    ledger.next_for(0, (), has_peers=False)
    ledger.failed(failure(0, "death"))
    clock.now += MAX_BACKOFF_S
    busy = ledger.next_for(1, (7,), has_peers=True)
    assert busy is not None
    assert busy.index == 1
    suspect = ledger.next_for(2, (), has_peers=True)
    assert suspect is not None
    assert suspect.index == 0
    assert ledger.next_for(2, (0,), has_peers=True) is None


@pytest.mark.parametrize("shards", [0, 1, 7])
def test_everything_is_handed_out_once(shards: int) -> None:
    ledger, _ = ledger_of(shards)
    seen = []
    while (assignment := ledger.next_for(0, (), has_peers=False)) is not None:
        seen.append(assignment.index)
        ledger.committed(assignment.index)
    assert seen == list(range(shards))
    assert ledger.left == 0
