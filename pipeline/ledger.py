"""Which shard goes to which worker next: attempts, back-off and suspicion; plain bookkeeping without Ray."""

import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pipeline.reports import ShardFailure

# Two in flight: the next shard's reads overlap this one's compute.
SHARDS_IN_FLIGHT = 2
# A failing store gets room to recover; at half a minute a person starts to wonder.
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


@dataclass(frozen=True)
class Assignment:
    """One shard for one worker.

    attempt: 1 for the first, counting attempts that were not charged too.
    is_last: whether the shard is given up when this attempt fails.
    """

    index: int
    attempt: int
    is_last: bool


@dataclass
class _Record:
    """What is known of a shard that failed at least once."""

    attempts: int = 0
    charged: int = 0
    ready_at: float = 0.0
    last_worker: int | None = None
    is_suspect: bool = False


class ShardLedger:
    """The shards of a run that are not committed yet.

    A shard on which a worker died is a suspect: it goes to an idle worker and that worker takes nothing else
    meanwhile, so that a poison shard drags no neighbour along twice.
    """

    def __init__(self, todo: Iterable[int], *, max_attempts: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`todo`: shards in the order to begin them; `max_attempts`: charged attempts per shard."""
        self._fresh: deque[int] = deque(todo)
        self._max_attempts = max_attempts
        self._clock = clock
        self._retries: dict[int, _Record] = {}
        self._running: dict[int, int] = {}
        self._records: dict[int, _Record] = {}

    @property
    def left(self) -> int:
        """Shards neither committed nor given up, those in flight included."""
        return len(self._fresh) + len(self._retries) + len(self._running)

    @property
    def waiting(self) -> int:
        """Shards that no worker holds."""
        return len(self._fresh) + len(self._retries)

    def next_for(self, worker: int, held: Collection[int], *, has_peers: bool) -> Assignment | None:
        """Assign a shard to `worker`, which holds the shards `held`; None when it should rather wait.

        `has_peers`: whether other workers are there to take over a shard that failed on this one.
        """
        if len(held) >= SHARDS_IN_FLIGHT or any(self._is_suspect(index) for index in held):
            return None
        index = self._due_retry(worker, is_idle=not held, has_peers=has_peers)
        if index is not None:
            self._records[index] = self._retries.pop(index)
        elif self._fresh:
            index = self._fresh.popleft()
        else:
            return None
        record = self._records.setdefault(index, _Record())
        record.attempts += 1
        self._running[index] = worker
        return Assignment(index, record.attempts, is_last=record.charged + 1 >= self._max_attempts)

    def committed(self, index: int) -> None:
        """Note that the shard is done."""
        self._running.pop(index, None)
        self._records.pop(index, None)

    def failed(self, failure: ShardFailure) -> int | None:
        """Note a failed attempt.

        Returns:
            The number of attempts made when the shard has none left; None when it will be tried again.
        """
        worker = self._running.pop(failure.index)
        record = self._records.pop(failure.index)
        record.last_worker = worker
        if failure.is_charged:
            record.charged += 1
            record.is_suspect = record.is_suspect or failure.kind == "death"
        if record.charged >= self._max_attempts:
            return record.attempts
        record.ready_at = self._clock() + self._backoff_s(record.charged)
        self._retries[failure.index] = record
        return None

    def _is_suspect(self, index: int) -> bool:
        return index in self._records and self._records[index].is_suspect

    def _due_retry(self, worker: int, *, is_idle: bool, has_peers: bool) -> int | None:
        now = self._clock()
        for index, record in self._retries.items():
            if record.ready_at > now or (record.is_suspect and not is_idle):
                continue
            if has_peers and record.last_worker == worker:
                continue
            return index
        return None

    @staticmethod
    def _backoff_s(charged: int) -> float:
        longest = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** max(0, charged - 1))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
