"""Which shard goes to which worker next: attempts, back-off, suspicion, copies; plain bookkeeping without Ray."""

import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pipeline.driver.bisection import Bisection
from pipeline.messages import Assignment, CommitRequest, PartialResult, ShardFailure, ShardOutcome

# Two in flight: the next shard's reads overlap this one's compute.
SHARDS_IN_FLIGHT = 2
# A failing store gets room to recover; at half a minute a person starts to wonder.
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
# The first death may be of a neighbour's doing or by chance; the second one the shard died alone.
DEATHS_BEFORE_BISECTION = 2
# A shard that takes half as long again as usual is worth an idle worker, seldom earlier.
STRAGGLER_FACTOR = 1.5
DURATIONS_KEPT = 101
# A worker answers within milliseconds; one that refused has begun with the shard's commit, or not even with the shard.
RECLAIM_PATIENCE_S = 2.0


@dataclass
class _Record:
    """What is known of a shard that was begun."""

    attempts: int = 0
    charged: int = 0
    deaths: int = 0
    ready_at: float = 0.0
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
    """A shard in the hands of a worker, and of a second one when it is a straggler.

    piece: what the copy came to, kept until the first worker has let go of the commit.
    """

    worker: int
    start_s: float
    is_whole: bool
    copy: int | None = None
    is_copied: bool = False
    piece: PartialResult | None = None


class ShardQueue:
    """The shards of a run that are not committed yet.

    A shard on which a worker died is a suspect: it goes to an idle worker and that worker takes nothing else
    meanwhile, so that a poison shard drags no neighbour along twice. When it kills again it is bisected.
    Every method takes late news about a shard that is settled already, and ignores them.
    """

    def __init__(
        self,
        *,
        max_attempts: int,
        count_images: Callable[[int], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_attempts`: charged attempts per shard; `count_images`: tells a shard's size."""
        self._fresh: deque[int] = deque()
        self._max_attempts = max_attempts
        self._count_images = count_images
        self._clock = clock
        self._retries: dict[int, _Record] = {}
        self._running: dict[int, _InFlight] = {}
        self._records: dict[int, _Record] = {}
        self._durations_s: deque[float] = deque(maxlen=DURATIONS_KEPT)
        # Shards that their workers were asked to give back, and when.
        self._reclaimed: dict[int, float] = {}

    @property
    def left(self) -> int:
        """Shards neither committed nor settled, those in flight included."""
        return self.waiting + len(self._running)

    @property
    def waiting(self) -> int:
        """Shards that no worker holds."""
        return len(self._fresh) + len(self._retries)

    @property
    def untouched(self) -> int:
        """Shards that no worker has held yet: those among which one is sampled."""
        return len(self._fresh)

    def add(self, indices: Iterable[int]) -> None:
        """Take further shards, in the order to begin them."""
        self._fresh.extend(indices)

    def next_for(
        self, worker: int, held: Collection[int], *, has_peers: bool, is_sample: bool = False
    ) -> Assignment | None:
        """Assign a shard to `worker`, which holds the shards `held`; None when it should rather wait.

        Args:
            has_peers: whether other workers are there to take over a shard that failed on this one.
            is_sample: whether a fresh shard is sampled from all of these instead of taken in order; retries are not.
        """
        if len(held) >= SHARDS_IN_FLIGHT or any(self._is_suspect(index) for index in held):
            return None
        is_fresh = False
        index = self._due_retry(worker, held, has_peers=has_peers)
        if index is not None:
            self._records[index] = self._retries.pop(index)
        elif not self._fresh:
            return None
        else:
            index, is_fresh = self._take_fresh(is_sample=is_sample), True
        record = self._records.setdefault(index, _Record())
        record.attempts += 1
        positions = record.bisection.group if record.bisection else ()
        self._running[index] = _InFlight(worker, self._clock(), is_whole=not positions)
        is_last = record.charged + 1 >= self._max_attempts
        return Assignment(index, record.attempts, is_last, positions, is_sample=is_sample and is_fresh)

    def copy_for(self, worker: int) -> Assignment | None:
        """Assign an idle worker a copy of the shard that runs the longest, when nothing waits and it is late."""
        if self.waiting or not self._durations_s:
            return None
        late_s = self._clock() - STRAGGLER_FACTOR * statistics.median(self._durations_s)
        late = [
            (run.start_s, index)
            for index, run in self._running.items()
            if run.is_whole and not run.is_copied and not self._is_suspect(index) and run.start_s <= late_s
        ]
        if not late:
            return None
        _, index = min(late)
        record, run = self._records[index], self._running[index]
        record.attempts += 1
        run.copy, run.is_copied = worker, True
        return Assignment(index, record.attempts, is_last=False, is_copy=True)

    def reclaim(self, queued: Iterable[tuple[int, int]], *, idle_workers: int) -> tuple[int, int] | None:
        """Choose a shard that is queued behind another one in its worker, for an idle worker to do it instead.

        Args:
            queued: workers with the shard that is second in each.
            idle_workers: workers that hold nothing; for each, one shard at most is asked back at a time.

        Returns:
            One of the pairs, to be asked for; `abandoned` notes that it was given back. None when there is none, or
            when shards wait that no worker holds.
        """
        now = self._clock()
        still = {index: since for index, since in self._reclaimed.items() if now - since < RECLAIM_PATIENCE_S}
        self._reclaimed = still
        if self.waiting or len(still) >= idle_workers:
            return None
        for worker, index in queued:
            run = self._running.get(index)
            if run is not None and run.worker == worker and not run.is_copied and index not in still:
                still[index] = now
                return worker, index
        return None

    @property
    def is_reclaiming(self) -> bool:
        """Whether a worker was asked to give a shard back and may still do so."""
        return bool(self._reclaimed)

    def is_running(self, index: int) -> bool:
        """Whether a worker has the shard in hand and its end is still open."""
        return index in self._running

    def committed(self, index: int) -> int | None:
        """Note that a worker committed the shard; returns the worker that makes a copy for nothing now."""
        run = self._running.pop(index, None)
        self._records.pop(index, None)
        self._reclaimed.pop(index, None)
        if run is None:
            return None
        self._durations_s.append(self._clock() - run.start_s)
        return run.copy

    def survived(self, worker: int, piece: PartialResult) -> ShardOutcome | CommitRequest | None:
        """Note images that are done and for the driver to commit."""
        run = self._running.get(piece.index)
        if run is not None and run.copy == worker:
            run.copy, run.piece = None, piece
            return CommitRequest(run.worker, piece.index)
        if run is None or run.worker != worker:
            return None
        record = self._records[piece.index]
        if record.bisection is None:
            run.piece = piece
            return self._settle_with_copy(piece.index)
        record.bisection.survived(piece)
        record.charged = 0
        record.last_worker = None
        return self._go_on(piece.index)

    def abandoned(self, index: int) -> ShardOutcome | None:
        """Note that the first worker leaves the commit of a shard to the driver, or gave a queued shard back."""
        run = self._running.get(index)
        if self._reclaimed.pop(index, None) is not None and run is not None and run.piece is None and run.copy is None:
            record = self._records[index]
            # It was not begun with.
            record.attempts -= 1
            record.last_worker = run.worker
            return self._go_on(index)
        return self._settle_with_copy(index) if run is not None and run.piece is not None else None

    def failed(self, worker: int, failure: ShardFailure) -> ShardOutcome | None:
        """Note a failed attempt; returns the shard when it is settled by that."""
        index = failure.index
        self._reclaimed.pop(index, None)
        run = self._running.get(index)
        if run is not None and run.copy == worker:
            run.copy = None
            return None
        if run is None or run.worker != worker:
            return None
        if run.piece is not None:
            return self._settle_with_copy(index)
        if run.copy is not None:
            # The copy goes on as the only attempt, and is charged when it fails as well.
            run.worker, run.copy = run.copy, None
            return None
        record = self._records[index]
        record.last_worker = worker
        if failure.is_charged and self._charge(record, failure):
            return self._settle(index, rest=failure)
        return self._go_on(index, backoff_s=0.0 if record.bisection else self._backoff_s(record.charged))

    def _charge(self, record: _Record, failure: ShardFailure) -> bool:
        """Charge an attempt to its shard; returns whether the shard is given up."""
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
                return record.bisection.is_hopeless
        return record.charged >= self._max_attempts

    def _go_on(self, index: int, *, backoff_s: float = 0.0) -> ShardOutcome | None:
        record = self._records[index]
        if record.bisection is not None and not record.bisection.group:
            return self._settle(index)
        del self._running[index], self._records[index]
        record.ready_at = self._clock() + backoff_s
        self._retries[index] = record
        return None

    def _settle(self, index: int, *, rest: ShardFailure | None = None) -> ShardOutcome:
        del self._running[index]
        return self._records.pop(index).settled(index, rest=rest)

    def _settle_with_copy(self, index: int) -> ShardOutcome:
        run, record = self._running.pop(index), self._records.pop(index)
        return ShardOutcome(index, record.attempts, (run.piece,) if run.piece else ())

    def _take_fresh(self, *, is_sample: bool) -> int:
        if not is_sample:
            return self._fresh.popleft()
        place = random.randrange(len(self._fresh))  # noqa: S311 - a sample, not a secret
        index = self._fresh[place]
        del self._fresh[place]
        return index

    def _is_suspect(self, index: int) -> bool:
        return index in self._records and self._records[index].is_suspect

    def _due_retry(self, worker: int, held: Collection[int], *, has_peers: bool) -> int | None:
        now = self._clock()
        for index, record in self._retries.items():
            # A worker may still hold a shard that it gave back.
            if record.ready_at > now or (record.is_suspect and held) or index in held:
                continue
            if has_peers and record.last_worker == worker:
                continue
            return index
        return None

    @staticmethod
    def _backoff_s(charged: int) -> float:
        longest = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** max(0, charged - 1))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
