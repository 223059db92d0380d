"""The shards of a run: attempts, back-off, suspicion, speculative copies; plain bookkeeping without Ray.

The cost of a question does not grow with the shards in flight or in back-off: with thousands of workers, each asks at
each tick.
"""

import heapq
import itertools
import random
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from enum import Enum

from pipeline.driver.bisection import Bisection
from pipeline.messages import Assignment, CommitRequest, PartialResult, ShardFailure, ShardOutcome

# Two in flight: the next shard's reads overlap this one's compute.
SHARDS_IN_FLIGHT = 2
# A failing store gets time to recover; after half a minute a user starts to wonder.
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
# The first death may have been caused by another shard of the same worker, or by chance; at the second one the shard
# was alone.
DEATHS_BEFORE_BISECTION = 2
# A shard that takes half as long again as usual is worth an idle worker, rarely earlier.
STRAGGLER_FACTOR = 1.5
DURATIONS_KEPT = 101
# A worker answers within milliseconds; one that refused has begun to commit the shard, or not begun the shard at all.
RECLAIM_PATIENCE_S = 2.0
# A lost node is not the fault of the shards that were done there. But an image that takes all memory can take its
# whole node or pod away, again and again; of nodes that are lost by chance, hardly any shard meets so many.
MAX_UNCHARGED_DEATHS = 5


class Unsettled(Enum):
    """Why a report about a shard settles nothing.

    REQUEUED: the shard waits for another attempt.
    OTHER_ATTEMPT: another worker is still working on the shard; its attempt decides.
    IGNORED: the report is late; the shard is settled, or is another worker's by now.
    """

    REQUEUED = "requeued"
    OTHER_ATTEMPT = "other attempt"
    IGNORED = "ignored"


@dataclass
class _Record:
    """What is known of a shard that was begun.

    attempts: all of them. charged: those that count against the shard since anything of it was last done.
    deaths: workers that died on it. uncharged_deaths: those that were not charged, as their node was lost.
    """

    attempts: int = 0
    charged: int = 0
    deaths: int = 0
    uncharged_deaths: int = 0
    last_worker: int | None = None
    is_suspect: bool = False
    bisection: Bisection | None = None

    def settled(self, index: int, *, rest: ShardFailure | None = None) -> ShardOutcome:
        found = self.bisection
        if found is None:
            return ShardOutcome(index, self.attempts, rest=rest)
        return ShardOutcome(index, self.attempts, tuple(found.pieces), dict(found.verdicts), rest)


@dataclass
class _InFlight:
    """A shard that a worker is doing, and a second one as well when it takes long.

    copy_worker: the worker that makes the speculative copy. was_copied: whether there ever was one.
    piece: the result of the speculative copy, kept until the first worker has given up the commit.
    """

    worker: int
    start_s: float
    copy_worker: int | None = None
    was_copied: bool = False
    piece: PartialResult | None = None


@dataclass(frozen=True)
class InFlight:
    """A shard at a worker.

    attempt: 1 for the first. seconds: since it was assigned. copy_worker: has a speculative copy of it.
    images: those of this attempt while the shard is bisected, None otherwise.
    """

    shard: int
    worker: int
    attempt: int
    seconds: float
    copy_worker: int | None = None
    images: int | None = None


class ShardQueue:
    """The shards of a run that are not committed yet.

    A shard on which a worker died is a suspect: it goes to an idle worker, and that worker gets nothing else meanwhile,
    so that a shard that kills workers costs no other shard an attempt twice. When it kills again it is bisected.
    Every method accepts late reports about a shard that is settled already, and ignores them.
    """

    def __init__(
        self,
        *,
        max_attempts: int,
        count_images: Callable[[int], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_attempts`: charged attempts per shard; `count_images`: returns a shard's number of images."""
        self._new: deque[int] = deque()
        self._max_attempts = max_attempts
        self._count_images = count_images
        self._clock = clock
        # Shards that wait for their next attempt. Their indices are also in `_later`, a heap by the time at which they
        # are due, and from then on in `_due`, the first due first: suspects, which need an idle worker, and others.
        self._retries: dict[int, _Record] = {}
        self._later: list[tuple[float, int, int]] = []
        self._requeued = itertools.count()
        self._due: dict[bool, OrderedDict[int, float]] = {False: OrderedDict(), True: OrderedDict()}
        self._running: dict[int, _InFlight] = {}
        # The running shards that may get a speculative copy, the first begun first.
        self._uncopied: OrderedDict[int, _InFlight] = OrderedDict()
        self._records: dict[int, _Record] = {}
        self._durations_s: deque[float] = deque(maxlen=DURATIONS_KEPT)
        self._usual_s: float | None = None
        # Shards that their workers were asked to give back, and when; the first request first.
        self._reclaimed: OrderedDict[int, float] = OrderedDict()

    @property
    def left(self) -> int:
        """Shards neither committed nor settled, those in flight included."""
        return self.waiting + len(self._running)

    @property
    def waiting(self) -> int:
        """Shards that no worker holds."""
        return len(self._new) + len(self._retries)

    @property
    def in_flight(self) -> int:
        """Shards that workers hold."""
        return len(self._running)

    @property
    def retrying(self) -> int:
        """Shards that wait for their next attempt."""
        return len(self._retries)

    @property
    def usual_s(self) -> float | None:
        """The median seconds of the shards done lately, from assignment to commit; None before the first."""
        if self._usual_s is None and self._durations_s:
            self._usual_s = statistics.median(self._durations_s)
        return self._usual_s

    def oldest(self, most: int) -> list[InFlight]:
        """Return the shards that workers hold for the longest time, the oldest first."""
        # Workers get shards one after the other: the dict is in the order of their start.
        now, found = self._clock(), []
        for index, run in itertools.islice(self._running.items(), most):
            record = self._records[index]
            images = len(record.bisection.group) if record.bisection else None
            found.append(
                InFlight(index, run.worker, record.attempts, round(now - run.start_s, 1), run.copy_worker, images)
            )
        return found

    @property
    def untouched(self) -> int:
        """Shards that no worker has held yet; samples are taken among these."""
        return len(self._new)

    @property
    def has_assignable(self) -> bool:
        """Whether a shard is new or its pause is over, so that `next_for` may assign one to some worker."""
        self._collect_due()
        return bool(self._new) or any(self._due.values())

    def add(self, indices: Iterable[int]) -> None:
        """Take further shards, in the order to begin them."""
        self._new.extend(indices)

    def next_for(
        self, worker: int, held: Collection[int], *, has_peers: bool, is_sampled: bool = False
    ) -> Assignment | None:
        """Assign a shard to `worker`, which holds the shards `held`; None when it has to wait.

        Args:
            has_peers: whether there are other workers to take over a shard that failed on this one.
            is_sampled: whether a new shard is sampled at random instead of taken in order; retries are not.
        """
        if len(held) >= SHARDS_IN_FLIGHT or any(self._is_suspect(index) for index in held):
            return None
        is_new = False
        index = self._due_retry(worker, held, has_peers=has_peers)
        if index is not None:
            record = self._retries.pop(index)
            del self._due[record.is_suspect][index]
            self._records[index] = record
        elif not self._new:
            return None
        else:
            index, is_new = self._take_new(is_sampled=is_sampled), True
        record = self._records.setdefault(index, _Record())
        record.attempts += 1
        positions = record.bisection.group if record.bisection else ()
        run = self._running[index] = _InFlight(worker, self._clock())
        if not positions and not record.is_suspect:
            self._uncopied[index] = run
        is_last = record.charged + 1 >= self._max_attempts
        return Assignment(index, record.attempts, is_last, positions, is_sampled=is_sampled and is_new)

    def speculative_copy_for(self, worker: int) -> Assignment | None:
        """Assign an idle worker the shard that runs the longest as well, when nothing waits and the shard is late."""
        if self.waiting or not self._durations_s:
            return None
        late_s = self._clock() - STRAGGLER_FACTOR * (self.usual_s or 0.0)
        index, run = next(iter(self._uncopied.items()), (None, None))
        if index is None or run is None or run.start_s > late_s:
            return None
        del self._uncopied[index]
        record = self._records[index]
        record.attempts += 1
        run.copy_worker, run.was_copied = worker, True
        return Assignment(index, record.attempts, is_last=False, is_speculative=True)

    def reclaim(self, queued: Iterable[tuple[int, int]], *, idle_workers: int) -> tuple[int, int] | None:
        """Choose a shard that is queued behind another one at its worker, for an idle worker to do it instead.

        Args:
            queued: pairs of a worker and the second shard that it holds; an iterator is read only as far as needed,
                so that further calls continue behind the pair that was chosen.
            idle_workers: workers that hold nothing; for each, at most one shard is requested at a time.

        Returns:
            One of the pairs, for the caller to request; `abandoned` records that it was given back. None when there is
            none, or when shards wait that no worker holds.
        """
        now = self._clock()
        still = self._reclaimed
        while still and now - next(iter(still.values())) >= RECLAIM_PATIENCE_S:
            still.popitem(last=False)
        if self.waiting or len(still) >= idle_workers:
            return None
        for worker, index in queued:
            run = self._running.get(index)
            if run is not None and run.worker == worker and not run.was_copied and index not in still:
                still[index] = now
                return worker, index
        return None

    def give_back(self, worker: int, index: int) -> bool:
        """Return whether a worker that leaves may be asked for a shard it has not begun; `abandoned` records it."""
        run = self._running.get(index)
        if run is None or run.worker != worker or run.was_copied:
            return False
        self._reclaimed.setdefault(index, self._clock())
        return True

    def may_end(self, index: int, *, within_s: float) -> bool:
        """Return whether a shard in flight may be done in time, by what shards usually take; true while unknown."""
        run = self._running.get(index)
        if run is None or not self._durations_s:
            return True
        usual_s = statistics.median(self._durations_s)
        return max(0.0, usual_s - (self._clock() - run.start_s)) <= within_s

    @property
    def copyable(self) -> int:
        """Shards in flight that may get a speculative copy yet."""
        return len(self._uncopied)

    @property
    def is_reclaiming(self) -> bool:
        """Whether a worker was asked to give a shard back and may still do it."""
        return bool(self._reclaimed)

    def is_running(self, index: int) -> bool:
        """Return whether a worker holds the shard and it is not settled."""
        return index in self._running

    def attempts(self, index: int) -> int | None:
        """Return how many attempts at a shard were begun; None for one that is settled or not begun."""
        record = self._records.get(index)
        return record.attempts if record else None

    def committed(self, index: int) -> int | None:
        """Record that a worker committed the shard; return the worker whose speculative copy is not needed any more."""
        run = self._leave(index) if index in self._running else None
        self._records.pop(index, None)
        self._reclaimed.pop(index, None)
        if run is None:
            return None
        self._durations_s.append(self._clock() - run.start_s)
        self._usual_s = None
        return run.copy_worker

    def survived(self, worker: int, piece: PartialResult) -> ShardOutcome | CommitRequest | Unsettled:
        """Record images that are done and that the driver commits.

        Returns:
            The shard's outcome when all of its images are settled. A request to the first worker to give up its commit
            when the speculative copy was done before. Otherwise why nothing is settled.
        """
        run = self._running.get(piece.index)
        if run is not None and run.copy_worker == worker:
            run.copy_worker, run.piece = None, piece
            return CommitRequest(run.worker, piece.index)
        if run is None or run.worker != worker:
            return Unsettled.IGNORED
        record = self._records[piece.index]
        if record.bisection is None:
            run.piece = piece
            return self._settle_with_copy(piece.index)
        record.bisection.survived(piece)
        record.charged = 0
        record.last_worker = None
        return self._requeue_or_settle(piece.index)

    def abandoned(self, index: int) -> ShardOutcome | Unsettled:
        """Record that the first worker leaves a shard's commit to the driver, or gave a queued shard back.

        Returns:
            The outcome of the speculative copy, or why nothing is settled.
        """
        run = self._running.get(index)
        was_reclaimed = self._reclaimed.pop(index, None) is not None
        if was_reclaimed and run is not None and run.piece is None and run.copy_worker is None:
            record = self._records[index]
            # The attempt had not begun.
            record.attempts -= 1
            record.last_worker = run.worker
            return self._requeue_or_settle(index)
        return self._settle_with_copy(index) if run is not None and run.piece is not None else Unsettled.IGNORED

    def failed(self, worker: int, failure: ShardFailure) -> ShardOutcome | Unsettled:
        """Record a failed attempt.

        Returns:
            The shard's outcome when the shard is given up, when its last image was settled, or when its speculative
            copy is done. Otherwise why nothing is settled.
        """
        index = failure.index
        self._reclaimed.pop(index, None)
        run = self._running.get(index)
        if run is not None and run.copy_worker == worker:
            run.copy_worker = None
            return Unsettled.OTHER_ATTEMPT
        if run is None or run.worker != worker:
            return Unsettled.IGNORED
        if run.piece is not None:
            return self._settle_with_copy(index)
        if run.copy_worker is not None:
            # The speculative copy becomes the only attempt, and is charged when it fails as well.
            run.worker, run.copy_worker = run.copy_worker, None
            return Unsettled.OTHER_ATTEMPT
        record = self._records[index]
        record.last_worker = worker
        if failure.kind == "death" and not failure.is_charged:
            record.uncharged_deaths += 1
            failure = replace(failure, is_charged=record.uncharged_deaths > MAX_UNCHARGED_DEATHS)
        if failure.is_charged and self._charge(record, failure):
            return self._settle(index, rest=failure)
        return self._requeue_or_settle(index, backoff_s=0.0 if record.bisection else self._backoff_s(record.charged))

    def _charge(self, record: _Record, failure: ShardFailure) -> bool:
        """Charge an attempt to its shard; return whether the shard is given up."""
        record.charged += 1
        if failure.kind in ("death", "hang"):
            record.is_suspect = True
            record.deaths += 1
            is_due = record.deaths >= DEATHS_BEFORE_BISECTION or record.charged >= self._max_attempts
            if record.bisection is None and (is_due or failure.kind == "hang"):
                record.bisection = Bisection(self._count_images(failure.index))
            if record.bisection is not None:
                record.bisection.killed(failure)
                record.charged = 0
                return record.bisection.is_given_up
        return record.charged >= self._max_attempts

    def _requeue_or_settle(self, index: int, *, backoff_s: float = 0.0) -> ShardOutcome | Unsettled:
        """Have the shard wait for its next attempt, unless bisection has settled all of its images."""
        record = self._records[index]
        if record.bisection is not None and not record.bisection.group:
            return self._settle(index)
        self._leave(index)
        self._retries[index] = self._records.pop(index)
        ready_at = self._clock() + backoff_s
        heapq.heappush(self._later, (ready_at, next(self._requeued), index))
        return Unsettled.REQUEUED

    def _settle(self, index: int, *, rest: ShardFailure | None = None) -> ShardOutcome:
        self._leave(index)
        return self._records.pop(index).settled(index, rest=rest)

    def _settle_with_copy(self, index: int) -> ShardOutcome:
        run, record = self._leave(index), self._records.pop(index)
        return ShardOutcome(index, record.attempts, (run.piece,) if run.piece else ())

    def _leave(self, index: int) -> _InFlight:
        self._uncopied.pop(index, None)
        return self._running.pop(index)

    def _take_new(self, *, is_sampled: bool) -> int:
        if not is_sampled:
            return self._new.popleft()
        place = random.randrange(len(self._new))  # noqa: S311 - a sample, not a secret
        index = self._new[place]
        del self._new[place]
        return index

    def _is_suspect(self, index: int) -> bool:
        return index in self._records and self._records[index].is_suspect

    def _collect_due(self) -> None:
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            ready_at, _, index = heapq.heappop(self._later)
            self._due[self._retries[index].is_suspect][index] = ready_at

    def _due_retry(self, worker: int, held: Collection[int], *, has_peers: bool) -> int | None:
        """Return the shard that is due for the longest time and that `worker` may take.

        Passes over shards that failed on this very worker, or that it still holds, and no others: all workers
        together look at each shard once or twice a tick.
        """
        self._collect_due()
        found: list[tuple[float, int]] = []
        for due in [self._due[False]] if held else self._due.values():
            for index, ready_at in due.items():
                # A worker may still hold a shard that it gave back.
                if index not in held and not (has_peers and self._retries[index].last_worker == worker):
                    found.append((ready_at, index))
                    break
        return min(found)[1] if found else None

    @staticmethod
    def _backoff_s(charged: int) -> float:
        longest = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** max(0, charged - 1))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
