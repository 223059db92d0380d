"""Who gets which shard: two in flight, retries elsewhere and later, suspects alone, stragglers twice."""

import pytest

from pipeline.driver.shard_queue import (
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    RECLAIM_PATIENCE_S,
    STRAGGLER_FACTOR,
    ShardQueue,
)
from pipeline.messages import Assignment, CommitRequest, PartialResult, ShardFailure, ShardOutcome, ShardResult
from tests.support.fakes.clock import HandClock

SHARD_IMAGES = 8


def ledger_of(shards: int, *, max_attempts: int = 3) -> tuple[ShardQueue, HandClock]:
    clock = HandClock()
    ledger = ShardQueue(max_attempts=max_attempts, count_images=lambda index: SHARD_IMAGES, clock=clock)
    ledger.add(range(shards))
    return ledger, clock


def failure(index: int, kind: str = "storage", *, is_charged: bool = True) -> ShardFailure:
    return ShardFailure(index, kind, "because", is_charged=is_charged)  # type: ignore[arg-type]


def piece_of(index: int, positions: tuple[int, ...]) -> PartialResult:
    return PartialResult(index, positions, ShardResult(index, {"ok": len(positions)}, 0, {}, 0, 0.0), (), ())


def take(ledger: ShardQueue, worker: int, *held: int) -> Assignment:
    assignment = ledger.next_for(worker, held, has_peers=False)
    assert assignment is not None
    return assignment


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
    assert ledger.failed(0, failure(0)) is None
    assert ledger.next_for(0, (), has_peers=False) is None
    clock.now += MAX_BACKOFF_S
    again = ledger.next_for(0, (), has_peers=False)
    assert again is not None
    assert (again.index, again.attempt, again.is_last) == (0, 2, False)


def test_a_failed_shard_goes_to_another_worker_when_there_is_one() -> None:
    ledger, clock = ledger_of(1)
    ledger.next_for(0, (), has_peers=True)
    ledger.failed(0, failure(0))
    clock.now += MAX_BACKOFF_S
    assert ledger.next_for(0, (), has_peers=True) is None
    assert ledger.next_for(1, (), has_peers=True) is not None


def test_the_last_attempt_is_named_and_then_the_shard_is_given_up() -> None:
    ledger, clock = ledger_of(1, max_attempts=2)
    ledger.next_for(0, (), has_peers=False)
    ledger.failed(0, failure(0))
    clock.now += MAX_BACKOFF_S
    last = ledger.next_for(0, (), has_peers=False)
    assert last is not None
    assert last.is_last
    settled = ledger.failed(0, failure(0))
    assert settled == ShardOutcome(0, 2, rest=failure(0))
    assert ledger.left == 0


def test_a_preempted_attempt_is_not_charged() -> None:
    ledger, clock = ledger_of(1, max_attempts=1)
    for attempt in range(1, 6):
        clock.now += MAX_BACKOFF_S
        assignment = ledger.next_for(0, (), has_peers=False)
        assert assignment is not None
        assert assignment.attempt == attempt
        assert ledger.failed(0, failure(0, "death", is_charged=False)) is None


def test_a_shard_that_saw_a_worker_die_runs_alone() -> None:
    ledger, clock = ledger_of(3)
    ledger.next_for(0, (), has_peers=False)
    ledger.failed(0, failure(0, "death"))
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


def test_shards_that_are_planned_later_come_after_those_that_are_known() -> None:
    ledger, _ = ledger_of(1)
    ledger.add([1, 2])
    assert [take(ledger, worker).index for worker in range(3)] == [0, 1, 2]


def test_a_shard_that_kills_again_is_bisected_and_its_images_settled() -> None:
    ledger, clock = ledger_of(1)
    poison = 5
    kills = 0
    settled = None
    for worker in range(20):
        clock.now += MAX_BACKOFF_S
        assignment = take(ledger, worker)
        positions = assignment.positions or tuple(range(SHARD_IMAGES))
        if poison in positions:
            kills += 1
            settled = ledger.failed(worker, failure(0, "death"))
        else:
            settled = ledger.survived(worker, piece_of(0, positions))  # type: ignore[assignment]
        if settled:
            break
    assert settled is not None
    assert settled.verdicts == {poison: "because"}
    assert sorted(at for piece in settled.pieces for at in piece.positions) == [0, 1, 2, 3, 4, 6, 7]
    assert settled.rest is None
    assert ledger.left == 0
    # Twice as a whole, twice alone, and once for each halving at most.
    assert kills <= 2 + 3 + 2


def test_a_hang_names_its_image_and_the_rest_is_done_once_more() -> None:
    ledger, _ = ledger_of(1)
    take(ledger, 0)
    assert ledger.failed(0, ShardFailure(0, "hang", "hung", suspects=(3,))) is None
    rest = take(ledger, 1)
    assert rest.positions == (0, 1, 2, 4, 5, 6, 7)
    settled = ledger.survived(1, piece_of(0, rest.positions))
    assert isinstance(settled, ShardOutcome)
    assert settled.verdicts == {3: "hung"}


def test_storage_trouble_during_bisection_gives_up_what_is_not_settled() -> None:
    ledger, clock = ledger_of(1, max_attempts=2)
    take(ledger, 0)
    ledger.failed(0, ShardFailure(0, "hang", "hung", suspects=(3,)))
    assert not take(ledger, 1).is_last
    assert ledger.failed(1, failure(0)) is None
    clock.now += MAX_BACKOFF_S
    assert take(ledger, 2).is_last
    settled = ledger.failed(2, failure(0))
    assert settled is not None
    assert (settled.verdicts, settled.rest) == ({3: "hung"}, failure(0))


def straggling(*, late_s: float = 20.0) -> tuple[ShardQueue, HandClock]:
    """Worker 0 has taken ten seconds for shard 0, worker 1 has shard 1 in hand for `late_s`."""
    ledger, clock = ledger_of(2)
    take(ledger, 0)
    take(ledger, 1)
    clock.now = 10.0
    ledger.committed(0)
    clock.now = late_s
    return ledger, clock


def test_an_idle_worker_copies_the_shard_that_is_late_once() -> None:
    ledger, _ = straggling()
    copy = ledger.copy_for(0)
    assert copy is not None
    assert (copy.index, copy.attempt, copy.is_copy, copy.is_committed_by_worker) == (1, 2, True, False)
    assert ledger.copy_for(2) is None


def test_a_shard_that_is_not_late_is_left_alone() -> None:
    ledger, _ = straggling(late_s=12.0)
    assert ledger.copy_for(0) is None


def test_nothing_is_copied_while_anything_waits() -> None:
    ledger, _ = straggling()
    ledger.add([2])
    assert ledger.copy_for(0) is None


def test_the_copy_is_called_off_when_the_shard_is_committed_first() -> None:
    ledger, _ = straggling()
    ledger.copy_for(0)
    assert ledger.committed(1) == 0
    assert ledger.left == 0
    assert ledger.survived(0, piece_of(1, tuple(range(8)))) is None
    assert ledger.failed(0, failure(1, "abandoned", is_charged=False)) is None


def test_a_copy_that_is_first_waits_until_the_commit_is_left_to_the_driver() -> None:
    ledger, _ = straggling()
    ledger.copy_for(0)
    piece = piece_of(1, tuple(range(8)))
    assert ledger.survived(0, piece) == CommitRequest(1, 1)
    assert ledger.left == 1
    assert ledger.abandoned(1) == ShardOutcome(1, 2, (piece,))
    assert ledger.left == 0
    assert ledger.failed(1, failure(1, "abandoned", is_charged=False)) is None


def test_a_copy_that_is_first_stands_in_when_the_other_worker_dies() -> None:
    ledger, _ = straggling()
    ledger.copy_for(0)
    piece = piece_of(1, tuple(range(8)))
    ledger.survived(0, piece)
    assert ledger.failed(1, failure(1, "death")) == ShardOutcome(1, 2, (piece,))


def test_a_commit_that_had_begun_wins_over_the_copy() -> None:
    ledger, _ = straggling()
    ledger.copy_for(0)
    ledger.survived(0, piece_of(1, tuple(range(8))))
    assert ledger.is_running(1)
    assert ledger.committed(1) is None
    assert ledger.abandoned(1) is None


def test_the_copy_goes_on_alone_when_the_other_worker_dies() -> None:
    ledger, _ = straggling()
    ledger.copy_for(0)
    assert ledger.failed(1, failure(1, "death")) is None
    piece = piece_of(1, tuple(range(8)))
    assert ledger.survived(0, piece) == ShardOutcome(1, 2, (piece,))


def test_a_copy_that_fails_leaves_the_shard_to_its_worker() -> None:
    ledger, _ = straggling()
    ledger.copy_for(0)
    assert ledger.failed(0, failure(1, "death")) is None
    assert ledger.committed(1) is None
    assert ledger.left == 0


@pytest.mark.parametrize(
    ("failures", "longest_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (7, MAX_BACKOFF_S), (9, MAX_BACKOFF_S)]
)
def test_the_pause_before_a_retry_doubles_up_to_a_limit(failures: int, longest_s: float) -> None:
    assert FIRST_BACKOFF_S == 0.5
    pauses = []
    for _ in range(40):
        ledger, clock = ledger_of(1, max_attempts=100)
        for _ in range(failures):
            take(ledger, 0)
            ledger.failed(0, failure(0))
            waited = clock.now
            while ledger.next_for(0, (), has_peers=False) is None:
                clock.now += longest_s / 64
            pauses.append(clock.now - waited)
            # What was taken to measure the pause is given back uncharged, without a pause that grows.
            ledger.failed(0, failure(0, is_charged=False))
            clock.now += MAX_BACKOFF_S
        del pauses[:-1]
        assert longest_s / 2 <= pauses[0] <= longest_s * (1 + 1 / 32)


def test_a_sampled_shard_says_so_and_a_retry_or_one_in_order_does_not() -> None:
    ledger, clock = ledger_of(3)
    drawn = ledger.next_for(0, (), has_peers=False, is_sample=True)
    assert drawn is not None
    assert drawn.is_sample is True
    assert drawn.index in (0, 1, 2)
    in_order = ledger.next_for(1, (), has_peers=False)
    assert in_order is not None
    assert in_order.is_sample is False
    ledger.failed(0, failure(drawn.index))
    clock.now += MAX_BACKOFF_S
    again = ledger.next_for(0, (), has_peers=False, is_sample=True)
    assert again is not None
    assert (again.index, again.is_sample) == (drawn.index, False)


def test_the_shards_sampled_are_all_of_them_in_some_order() -> None:
    firsts = set()
    for _ in range(60):
        ledger, _ = ledger_of(4)
        taken = []
        for worker in range(4):
            assignment = ledger.next_for(worker, (), has_peers=False, is_sample=True)
            assert assignment is not None
            taken.append(assignment.index)
        assert sorted(taken) == [0, 1, 2, 3]
        firsts.add(taken[0])
    assert firsts == {0, 1, 2, 3}


def test_a_shard_is_late_from_half_as_long_again_as_usual() -> None:
    ledger, clock = ledger_of(2)
    take(ledger, 0)
    clock.now += 100.0
    ledger.committed(0)
    take(ledger, 0)
    clock.now += STRAGGLER_FACTOR * 100.0 - 0.001
    assert ledger.copy_for(1) is None
    clock.now += 0.001
    copy = ledger.copy_for(1)
    assert copy is not None
    assert (copy.index, copy.is_copy, copy.is_last) == (1, True, False)


def test_a_suspect_is_not_copied() -> None:
    ledger, clock = ledger_of(2)
    take(ledger, 0)
    clock.now += 1.0
    ledger.committed(0)
    take(ledger, 0)
    ledger.failed(0, failure(1, "death"))
    clock.now += MAX_BACKOFF_S
    take(ledger, 1)
    clock.now += 1000.0
    assert ledger.copy_for(2) is None


def test_deaths_lead_to_bisection_at_the_second_or_with_the_last_attempt() -> None:
    for max_attempts, deaths in ((5, 2), (2, 2), (1, 1)):
        ledger, clock = ledger_of(1, max_attempts=max_attempts)
        for number in range(deaths):
            assert take(ledger, 0).positions == (), (max_attempts, number)
            ledger.failed(0, failure(0, "death"))
            clock.now += MAX_BACKOFF_S
        assert take(ledger, 0).positions == tuple(range(SHARD_IMAGES // 2))


def test_what_is_settled_by_bisection_names_its_shard_and_its_attempts() -> None:
    ledger, clock = ledger_of(2)
    ledger.next_for(9, (), has_peers=False)
    attempts, settled = 0, None
    poison = 5
    while settled is None:
        clock.now += MAX_BACKOFF_S
        assignment = take(ledger, 0)
        attempts += 1
        positions = assignment.positions or tuple(range(SHARD_IMAGES))
        if poison in positions:
            settled = ledger.failed(0, failure(1, "death"))
        else:
            settled = ledger.survived(0, piece_of(1, positions))
    assert (settled.index, settled.attempts) == (1, attempts)
    assert set(settled.verdicts) == {poison}


def test_a_worker_that_survives_may_go_on_with_the_shard_whatever_its_peers() -> None:
    ledger, clock = ledger_of(1)
    for _ in range(2):
        take(ledger, 0)
        ledger.failed(0, failure(0, "death"))
        clock.now += MAX_BACKOFF_S
    half = take(ledger, 1)
    ledger.survived(1, piece_of(0, half.positions))
    rest = ledger.next_for(1, (), has_peers=True)
    assert rest is not None
    # Its attempts are counted anew: this is one of three.
    assert not rest.is_last


def test_news_of_a_shard_that_is_settled_is_ignored() -> None:
    ledger, _ = ledger_of(1)
    take(ledger, 0)
    assert ledger.committed(0) is None
    assert ledger.committed(0) is None
    assert ledger.abandoned(0) is None
    assert ledger.failed(0, failure(0)) is None


def test_a_shard_is_asked_back_once_and_given_back_without_an_attempt() -> None:
    ledger, clock = ledger_of(2)
    take(ledger, 0)
    take(ledger, 0, 0)
    assert ledger.reclaim([(0, 1)], idle_workers=1) == (0, 1)
    assert ledger.reclaim([(0, 1)], idle_workers=1) is None
    assert ledger.is_reclaiming
    # A worker that does not answer is not waited for.
    clock.now += RECLAIM_PATIENCE_S
    assert ledger.reclaim([], idle_workers=1) is None
    assert not ledger.is_reclaiming
    assert ledger.reclaim([(0, 1)], idle_workers=1) == (0, 1)
    assert ledger.abandoned(1) is None
    assert not ledger.is_reclaiming
    # With peers the worker that gave it back does not get it again.
    assert ledger.next_for(0, (0,), has_peers=True) is None
    given = ledger.next_for(1, (), has_peers=True)
    assert given is not None
    assert (given.index, given.attempt) == (1, 1)
    # One that nobody was asked for is not given back.
    assert ledger.abandoned(0) is None
    assert ledger.is_running(0)


@pytest.mark.parametrize("end", ["committed", "failed"])
def test_a_shard_that_ends_is_not_waited_for_any_more(end: str) -> None:
    ledger, _ = ledger_of(2)
    take(ledger, 0)
    take(ledger, 0, 0)
    assert ledger.reclaim([(0, 1)], idle_workers=1) == (0, 1)
    if end == "committed":
        ledger.committed(1)
    else:
        ledger.failed(0, failure(1))
    assert not ledger.is_reclaiming


def test_a_retry_that_is_not_due_or_not_for_this_worker_does_not_hide_the_next_one() -> None:
    ledger, clock = ledger_of(3)
    for worker in range(3):
        ledger.next_for(worker, (), has_peers=True)
    # The first waits, the second failed on this worker, the third is due.
    ledger.failed(1, failure(1, is_charged=False))
    clock.now += MAX_BACKOFF_S
    ledger.failed(2, failure(2, is_charged=False))
    clock.now += MAX_BACKOFF_S
    ledger.failed(0, failure(0))
    found = ledger.next_for(1, (), has_peers=True)
    assert found is not None
    assert found.index == 2
