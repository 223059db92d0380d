"""The shard queue: two in flight, retries elsewhere and later, suspects alone, speculative copies of late shards."""

import pytest

from pipeline.driver.shard_queue import (
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    MAX_UNCHARGED_DEATHS,
    RECLAIM_PATIENCE_S,
    STRAGGLER_FACTOR,
    InFlight,
    ShardQueue,
    Unsettled,
)
from pipeline.messages import Assignment, CommitRequest, PartialResult, ShardFailure, ShardOutcome, ShardResult
from tests.support.fakes.clock import HandClock

SHARD_IMAGES = 8


def queue_of(shards: int, *, max_attempts: int = 3) -> tuple[ShardQueue, HandClock]:
    clock = HandClock()
    queue = ShardQueue(max_attempts=max_attempts, count_images=lambda index: SHARD_IMAGES, clock=clock)
    queue.add(range(shards))
    return queue, clock


def failure(index: int, kind: str = "storage", *, is_charged: bool = True) -> ShardFailure:
    return ShardFailure(index, kind, "because", is_charged=is_charged)  # type: ignore[arg-type]


def piece_of(index: int, positions: tuple[int, ...]) -> PartialResult:
    return PartialResult(index, positions, ShardResult(index, {"ok": len(positions)}, 0, {}, 0, 0.0), (), ())


def take(queue: ShardQueue, worker: int, *held: int) -> Assignment:
    assignment = queue.next_for(worker, held, has_peers=False)
    assert assignment is not None
    return assignment


def test_a_worker_holds_two_shards_at_most() -> None:
    queue, _ = queue_of(5)
    first = queue.next_for(0, (), has_peers=False)
    second = queue.next_for(0, (0,), has_peers=False)
    assert first is not None
    assert second is not None
    assert (first.index, second.index) == (0, 1)
    assert queue.next_for(0, (0, 1), has_peers=False) is None


def test_a_failed_shard_waits_before_its_retry() -> None:
    queue, clock = queue_of(1)
    queue.next_for(0, (), has_peers=False)
    assert queue.failed(0, failure(0)) is Unsettled.REQUEUED
    assert queue.next_for(0, (), has_peers=False) is None
    clock.now += MAX_BACKOFF_S
    again = queue.next_for(0, (), has_peers=False)
    assert again is not None
    assert (again.index, again.attempt, again.is_last) == (0, 2, False)


def test_a_failed_shard_goes_to_another_worker_when_there_is_one() -> None:
    queue, clock = queue_of(1)
    queue.next_for(0, (), has_peers=True)
    queue.failed(0, failure(0))
    clock.now += MAX_BACKOFF_S
    assert queue.next_for(0, (), has_peers=True) is None
    assert queue.next_for(1, (), has_peers=True) is not None


def test_the_last_attempt_is_marked_and_then_the_shard_is_given_up() -> None:
    queue, clock = queue_of(1, max_attempts=2)
    queue.next_for(0, (), has_peers=False)
    queue.failed(0, failure(0))
    clock.now += MAX_BACKOFF_S
    last = queue.next_for(0, (), has_peers=False)
    assert last is not None
    assert last.is_last
    settled = queue.failed(0, failure(0))
    assert settled == ShardOutcome(0, 2, rest=failure(0))
    assert queue.left == 0


def test_a_preempted_attempt_is_not_charged() -> None:
    queue, clock = queue_of(1, max_attempts=1)
    for attempt in range(1, 6):
        clock.now += MAX_BACKOFF_S
        assignment = queue.next_for(0, (), has_peers=False)
        assert assignment is not None
        assert assignment.attempt == attempt
        assert queue.failed(0, failure(0, "death", is_charged=False)) is Unsettled.REQUEUED


def test_a_shard_on_which_a_worker_died_runs_alone() -> None:
    queue, clock = queue_of(3)
    queue.next_for(0, (), has_peers=False)
    queue.failed(0, failure(0, "death"))
    clock.now += MAX_BACKOFF_S
    busy = queue.next_for(1, (7,), has_peers=True)
    assert busy is not None
    assert busy.index == 1
    suspect = queue.next_for(2, (), has_peers=True)
    assert suspect is not None
    assert suspect.index == 0
    assert queue.next_for(2, (0,), has_peers=True) is None


@pytest.mark.parametrize("shards", [0, 1, 7])
def test_everything_is_handed_out_once(shards: int) -> None:
    queue, _ = queue_of(shards)
    seen = []
    while (assignment := queue.next_for(0, (), has_peers=False)) is not None:
        seen.append(assignment.index)
        queue.committed(assignment.index)
    assert seen == list(range(shards))
    assert queue.left == 0


def test_shards_that_are_planned_later_come_after_those_that_are_known() -> None:
    queue, _ = queue_of(1)
    queue.add([1, 2])
    assert [take(queue, worker).index for worker in range(3)] == [0, 1, 2]


def test_a_shard_that_kills_again_is_bisected_and_its_images_settled() -> None:
    queue, clock = queue_of(1)
    lethal = 5
    kills = 0
    settled: object = None
    for worker in range(20):
        clock.now += MAX_BACKOFF_S
        assignment = take(queue, worker)
        positions = assignment.positions or tuple(range(SHARD_IMAGES))
        if lethal in positions:
            kills += 1
            settled = queue.failed(worker, failure(0, "death"))
        else:
            settled = queue.survived(worker, piece_of(0, positions))
        if isinstance(settled, ShardOutcome):
            break
    assert isinstance(settled, ShardOutcome)
    assert settled.verdicts == {lethal: "because"}
    assert sorted(at for piece in settled.pieces for at in piece.positions) == [0, 1, 2, 3, 4, 6, 7]
    assert settled.rest is None
    assert queue.left == 0
    # Twice as a complete shard, twice alone, and at most once for each bisection.
    assert kills <= 2 + 3 + 2


def test_a_hang_names_its_image_and_the_rest_is_done_once_more() -> None:
    queue, _ = queue_of(1)
    take(queue, 0)
    assert queue.failed(0, ShardFailure(0, "hang", "hung", suspects=(3,))) is Unsettled.REQUEUED
    rest = take(queue, 1)
    assert rest.positions == (0, 1, 2, 4, 5, 6, 7)
    settled = queue.survived(1, piece_of(0, rest.positions))
    assert isinstance(settled, ShardOutcome)
    assert settled.verdicts == {3: "hung"}


def test_storage_errors_during_bisection_give_up_the_unsettled_images() -> None:
    queue, clock = queue_of(1, max_attempts=2)
    take(queue, 0)
    queue.failed(0, ShardFailure(0, "hang", "hung", suspects=(3,)))
    assert not take(queue, 1).is_last
    assert queue.failed(1, failure(0)) is Unsettled.REQUEUED
    clock.now += MAX_BACKOFF_S
    assert take(queue, 2).is_last
    settled = queue.failed(2, failure(0))
    assert isinstance(settled, ShardOutcome)
    assert (settled.verdicts, settled.rest) == ({3: "hung"}, failure(0))


def straggling(*, late_s: float = 20.0) -> tuple[ShardQueue, HandClock]:
    """Worker 0 took ten seconds for shard 0, worker 1 has been doing shard 1 for `late_s`."""
    queue, clock = queue_of(2)
    take(queue, 0)
    take(queue, 1)
    clock.now = 10.0
    queue.committed(0)
    clock.now = late_s
    return queue, clock


def test_an_idle_worker_gets_one_speculative_copy_of_a_late_shard() -> None:
    queue, _ = straggling()
    copy = queue.speculative_copy_for(0)
    assert copy is not None
    assert (copy.index, copy.attempt, copy.is_speculative, copy.is_committed_by_worker) == (1, 2, True, False)
    assert queue.speculative_copy_for(2) is None


def test_a_shard_that_is_not_late_is_not_copied() -> None:
    queue, _ = straggling(late_s=12.0)
    assert queue.speculative_copy_for(0) is None


def test_nothing_is_copied_while_anything_waits() -> None:
    queue, _ = straggling()
    queue.add([2])
    assert queue.speculative_copy_for(0) is None


def test_the_copy_is_abandoned_when_the_shard_is_committed_first() -> None:
    queue, _ = straggling()
    queue.speculative_copy_for(0)
    assert queue.committed(1) == 0
    assert queue.left == 0
    assert queue.survived(0, piece_of(1, tuple(range(8)))) is Unsettled.IGNORED
    assert queue.failed(0, failure(1, "abandoned", is_charged=False)) is Unsettled.IGNORED


def test_a_copy_that_is_first_waits_until_the_commit_is_left_to_the_driver() -> None:
    queue, _ = straggling()
    queue.speculative_copy_for(0)
    piece = piece_of(1, tuple(range(8)))
    assert queue.survived(0, piece) == CommitRequest(1, 1)
    assert queue.left == 1
    assert queue.abandoned(1) == ShardOutcome(1, 2, (piece,))
    assert queue.left == 0
    assert queue.failed(1, failure(1, "abandoned", is_charged=False)) is Unsettled.IGNORED


def test_a_copy_that_is_first_is_used_when_the_other_worker_dies() -> None:
    queue, _ = straggling()
    queue.speculative_copy_for(0)
    piece = piece_of(1, tuple(range(8)))
    queue.survived(0, piece)
    assert queue.failed(1, failure(1, "death")) == ShardOutcome(1, 2, (piece,))


def test_a_commit_that_had_begun_wins_over_the_copy() -> None:
    queue, _ = straggling()
    queue.speculative_copy_for(0)
    queue.survived(0, piece_of(1, tuple(range(8))))
    assert queue.is_running(1)
    assert queue.committed(1) is None
    assert queue.abandoned(1) is Unsettled.IGNORED


def test_the_copy_continues_alone_when_the_other_worker_dies() -> None:
    queue, _ = straggling()
    queue.speculative_copy_for(0)
    assert queue.failed(1, failure(1, "death")) is Unsettled.OTHER_ATTEMPT
    piece = piece_of(1, tuple(range(8)))
    assert queue.survived(0, piece) == ShardOutcome(1, 2, (piece,))


def test_a_copy_that_fails_leaves_the_shard_to_its_worker() -> None:
    queue, _ = straggling()
    queue.speculative_copy_for(0)
    assert queue.failed(0, failure(1, "death")) is Unsettled.OTHER_ATTEMPT
    assert queue.committed(1) is None
    assert queue.left == 0


@pytest.mark.parametrize(
    ("failures", "longest_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (7, MAX_BACKOFF_S), (9, MAX_BACKOFF_S)]
)
def test_the_pause_before_a_retry_doubles_up_to_a_limit(failures: int, longest_s: float) -> None:
    assert FIRST_BACKOFF_S == 0.5
    pauses = []
    for _ in range(40):
        queue, clock = queue_of(1, max_attempts=100)
        for _ in range(failures):
            take(queue, 0)
            queue.failed(0, failure(0))
            waited = clock.now
            while queue.next_for(0, (), has_peers=False) is None:
                clock.now += longest_s / 64
            pauses.append(clock.now - waited)
            # The shard that was taken to measure the pause fails uncharged, so that the pause does not grow.
            queue.failed(0, failure(0, is_charged=False))
            clock.now += MAX_BACKOFF_S
        del pauses[:-1]
        assert longest_s / 2 <= pauses[0] <= longest_s * (1 + 1 / 32)


def test_a_sampled_shard_is_marked_and_a_retry_or_one_in_order_is_not() -> None:
    queue, clock = queue_of(3)
    sampled = queue.next_for(0, (), has_peers=False, is_sampled=True)
    assert sampled is not None
    assert sampled.is_sampled is True
    assert sampled.index in (0, 1, 2)
    in_order = queue.next_for(1, (), has_peers=False)
    assert in_order is not None
    assert in_order.is_sampled is False
    queue.failed(0, failure(sampled.index))
    clock.now += MAX_BACKOFF_S
    again = queue.next_for(0, (), has_peers=False, is_sampled=True)
    assert again is not None
    assert (again.index, again.is_sampled) == (sampled.index, False)


def test_the_shards_sampled_are_all_of_them_in_some_order() -> None:
    firsts = set()
    for _ in range(60):
        queue, _ = queue_of(4)
        taken = []
        for worker in range(4):
            assignment = queue.next_for(worker, (), has_peers=False, is_sampled=True)
            assert assignment is not None
            taken.append(assignment.index)
        assert sorted(taken) == [0, 1, 2, 3]
        firsts.add(taken[0])
    assert firsts == {0, 1, 2, 3}


def test_a_shard_is_late_from_half_as_long_again_as_usual() -> None:
    queue, clock = queue_of(2)
    take(queue, 0)
    clock.now += 100.0
    queue.committed(0)
    take(queue, 0)
    clock.now += STRAGGLER_FACTOR * 100.0 - 0.001
    assert queue.speculative_copy_for(1) is None
    clock.now += 0.001
    copy = queue.speculative_copy_for(1)
    assert copy is not None
    assert (copy.index, copy.is_speculative, copy.is_last) == (1, True, False)


def test_a_suspect_is_not_copied() -> None:
    queue, clock = queue_of(2)
    take(queue, 0)
    clock.now += 1.0
    queue.committed(0)
    take(queue, 0)
    queue.failed(0, failure(1, "death"))
    clock.now += MAX_BACKOFF_S
    take(queue, 1)
    clock.now += 1000.0
    assert queue.speculative_copy_for(2) is None


def test_deaths_lead_to_bisection_at_the_second_or_with_the_last_attempt() -> None:
    for max_attempts, deaths in ((5, 2), (2, 2), (1, 1)):
        queue, clock = queue_of(1, max_attempts=max_attempts)
        for number in range(deaths):
            assert take(queue, 0).positions == (), (max_attempts, number)
            queue.failed(0, failure(0, "death"))
            clock.now += MAX_BACKOFF_S
        assert take(queue, 0).positions == tuple(range(SHARD_IMAGES // 2))


def test_what_is_settled_by_bisection_names_its_shard_and_its_attempts() -> None:
    queue, clock = queue_of(2)
    queue.next_for(9, (), has_peers=False)
    attempts, settled = 0, Unsettled.REQUEUED
    lethal = 5
    while not isinstance(settled, ShardOutcome):
        clock.now += MAX_BACKOFF_S
        assignment = take(queue, 0)
        attempts += 1
        positions = assignment.positions or tuple(range(SHARD_IMAGES))
        if lethal in positions:
            settled = queue.failed(0, failure(1, "death"))
        else:
            settled = queue.survived(0, piece_of(1, positions))
    assert (settled.index, settled.attempts) == (1, attempts)
    assert set(settled.verdicts) == {lethal}


def test_a_worker_that_survives_may_continue_with_the_shard_although_it_has_peers() -> None:
    queue, clock = queue_of(1)
    for _ in range(2):
        take(queue, 0)
        queue.failed(0, failure(0, "death"))
        clock.now += MAX_BACKOFF_S
    half = take(queue, 1)
    queue.survived(1, piece_of(0, half.positions))
    rest = queue.next_for(1, (), has_peers=True)
    assert rest is not None
    # Its attempts are counted anew: this is one of three.
    assert not rest.is_last


def test_reports_about_a_settled_shard_are_ignored() -> None:
    queue, _ = queue_of(1)
    take(queue, 0)
    assert queue.committed(0) is None
    assert queue.committed(0) is None
    assert queue.abandoned(0) is Unsettled.IGNORED
    assert queue.failed(0, failure(0)) is Unsettled.IGNORED


def test_a_queued_shard_is_reclaimed_once_and_is_charged_no_attempt() -> None:
    queue, clock = queue_of(2)
    take(queue, 0)
    take(queue, 0, 0)
    assert queue.reclaim([(0, 1)], idle_workers=1) == (0, 1)
    assert queue.reclaim([(0, 1)], idle_workers=1) is None
    assert queue.is_reclaiming
    # A worker that does not answer is not waited for.
    clock.now += RECLAIM_PATIENCE_S
    assert queue.reclaim([], idle_workers=1) is None
    assert not queue.is_reclaiming
    assert queue.reclaim([(0, 1)], idle_workers=1) == (0, 1)
    assert queue.abandoned(1) is Unsettled.REQUEUED
    assert not queue.is_reclaiming
    # With peers the worker that gave it back does not get it again.
    assert queue.next_for(0, (0,), has_peers=True) is None
    given = queue.next_for(1, (), has_peers=True)
    assert given is not None
    assert (given.index, given.attempt) == (1, 1)
    # A shard that was not reclaimed cannot be given back.
    assert queue.abandoned(0) is Unsettled.IGNORED
    assert queue.is_running(0)


@pytest.mark.parametrize("end", ["committed", "failed"])
def test_a_reclaimed_shard_that_ends_is_not_waited_for(end: str) -> None:
    queue, _ = queue_of(2)
    take(queue, 0)
    take(queue, 0, 0)
    assert queue.reclaim([(0, 1)], idle_workers=1) == (0, 1)
    if end == "committed":
        queue.committed(1)
    else:
        queue.failed(0, failure(1))
    assert not queue.is_reclaiming


def test_a_retry_that_is_not_due_or_not_for_this_worker_does_not_hide_the_next_one() -> None:
    queue, clock = queue_of(3)
    for worker in range(3):
        queue.next_for(worker, (), has_peers=True)
    # The first waits, the second failed on this worker, the third is due.
    queue.failed(1, failure(1, is_charged=False))
    clock.now += MAX_BACKOFF_S
    queue.failed(2, failure(2, is_charged=False))
    clock.now += MAX_BACKOFF_S
    queue.failed(0, failure(0))
    found = queue.next_for(1, (), has_peers=True)
    assert found is not None
    assert found.index == 2


def test_lost_nodes_cost_a_shard_no_attempt_and_do_not_make_it_a_suspect() -> None:
    queue, clock = queue_of(3, max_attempts=1)
    for attempt in range(1, MAX_UNCHARGED_DEATHS + 1):
        assignment = take(queue, 0)
        assert (assignment.index, assignment.attempt, assignment.positions) == (0, attempt, ())
        assert queue.failed(0, failure(0, "death", is_charged=False)) is Unsettled.REQUEUED
        clock.now += MAX_BACKOFF_S
    # No suspect, so that its worker gets another shard beside it.
    assert take(queue, 0).index == 0
    assert take(queue, 0, 0).index == 1


def test_an_image_that_takes_its_whole_node_away_each_time_is_searched_for() -> None:
    queue, clock = queue_of(1, max_attempts=2)
    deaths = 0
    while not take(queue, 0).positions:
        queue.failed(0, failure(0, "death", is_charged=False))
        clock.now += MAX_BACKOFF_S
        deaths += 1
    assert deaths == MAX_UNCHARGED_DEATHS + 2


def test_a_worker_that_leaves_gives_back_what_it_has_not_begun() -> None:
    queue, _ = queue_of(2)
    take(queue, 0)
    take(queue, 0, 0)
    assert queue.give_back(0, 1)
    assert not queue.give_back(1, 0)
    assert queue.abandoned(1) is Unsettled.REQUEUED
    again = take(queue, 1)
    assert (again.index, again.attempt) == (1, 1)


def test_whether_a_shard_can_end_in_time_is_judged_by_the_usual_time() -> None:
    queue, clock = queue_of(3)
    take(queue, 0)
    assert queue.may_end(0, within_s=1.0)
    clock.now += 10.0
    queue.committed(0)
    take(queue, 0)
    assert not queue.may_end(1, within_s=9.0)
    assert queue.may_end(1, within_s=10.0)
    clock.now += 4.0
    assert queue.may_end(1, within_s=6.0)


def test_the_shards_that_are_in_flight_for_the_longest_time_are_described() -> None:
    queue, clock = queue_of(4)
    take(queue, 0)
    clock.now = 5.0
    take(queue, 1)
    take(queue, 1, 1)
    assert (queue.in_flight, queue.waiting, queue.retrying, queue.usual_s) == (3, 1, 0, None)
    assert queue.oldest(2) == [InFlight(0, 0, 1, 5.0), InFlight(1, 1, 1, 0.0)]
    queue.failed(0, failure(0))
    assert (queue.in_flight, queue.waiting, queue.retrying) == (2, 2, 1)
    clock.now += MAX_BACKOFF_S
    take(queue, 0)
    queue.committed(1)
    assert queue.usual_s == MAX_BACKOFF_S
    # A further attempt is as young as it is.
    assert queue.oldest(9) == [InFlight(2, 1, 1, MAX_BACKOFF_S), InFlight(0, 0, 2, 0.0)]
    for _ in range(2):
        queue.failed(0, failure(0, "death"))
        clock.now += MAX_BACKOFF_S
        take(queue, 0)
    # Bisected: half of its images, in this attempt.
    assert queue.oldest(9)[-1] == InFlight(0, 0, 4, 0.0, None, SHARD_IMAGES // 2)
