"""Concurrency limit for reads of a store (AIMD), and hedging: a slow read is sent a second time."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

# A read is slow when it takes three times as long as the 95th percentile, but never before a quarter of a second:
# below that a second request costs more than it saves. Ten seconds are slow, however long other reads take.
SLOW_FACTOR = 3.0
LEAST_SLOW_S = 0.25
MOST_SLOW_S = 10.0
# Reads until the percentile is known, and the number of recent reads that it is taken of.
FEWEST_READS = 20
READS_KEPT = 200
# Of a hundred reads, five may be sent twice.
HEDGED_SHARE = 0.05
MOST_HEDGES_SAVED = 5.0


class ReadLimiter:
    """Limits concurrent reads; the limit falls when the store asks for fewer requests, and then slowly rises again.

    SlowDown halves it, and each full round of successful reads raises it by one (additive increase, multiplicative
    decrease, as in TCP). Requests that began before it was halved do not halve it again.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._busy = 0
        self._halved = float("-inf")
        self._change = threading.Condition()

    @property
    def limit(self) -> int:
        """How many reads may run at once now."""
        return int(self._limit)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for one of the slots, and occupy it for the block."""
        with self._change:
            self._change.wait_for(lambda: self._busy < int(self._limit))
            self._busy += 1
        try:
            yield
        finally:
            with self._change:
                self._busy -= 1
                self._change.notify()

    def has_room(self) -> bool:
        """Return whether one more read would be within the limit."""
        return self._busy < int(self._limit)

    def record_success(self) -> None:
        """Record a successful read."""
        with self._change:
            self._limit = min(float(self._most), self._limit + 1 / self._limit)
            self._change.notify()

    def record_slow_down(self, began: float) -> None:
        """Halve the limit, if the refused request began (by `time.monotonic`) after the limit was halved last."""
        with self._change:
            if began >= self._halved:
                self._limit = max(1.0, self._limit / 2)
                self._halved = time.monotonic()


class HedgePolicy:
    """Decides when a read is slow and whether it may be sent a second time.

    is_on: false grants no second request.
    """

    def __init__(self, *, is_on: bool = True) -> None:
        self._is_on = is_on
        self._reads: deque[tuple[float, int]] = deque(maxlen=READS_KEPT)
        self._tokens = 1.0
        self._lock = threading.Lock()

    def record(self, seconds: float, read_bytes: int) -> None:
        """Record a successful read."""
        with self._lock:
            self._reads.append((seconds, read_bytes))
            self._tokens = min(MOST_HEDGES_SAVED, self._tokens + HEDGED_SHARE)

    def hedge_after_s(self, expected_bytes: int | None) -> float | None:
        """Return the seconds after which to send a read again; None while too few reads are recorded.

        Args:
            expected_bytes: the size of the read; above the mean the time grows in proportion. None counts as the mean.
        """
        with self._lock:
            if not self._is_on or len(self._reads) < FEWEST_READS:
                return None
            usual_s = sorted(seconds for seconds, _ in self._reads)[int(0.95 * len(self._reads))]
            usual_bytes = max(1.0, sum(size for _, size in self._reads) / len(self._reads))
        size_factor = max(1.0, (expected_bytes or 0) / usual_bytes)
        return min(max(SLOW_FACTOR * usual_s, LEAST_SLOW_S), MOST_SLOW_S) * size_factor

    def take(self) -> bool:
        """Grant a second request, unless the share of hedged reads is used up."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


def hedged(begin: Callable[[], Future[T]], hedge_after_s: float | None, may_hedge: Callable[[], bool]) -> T:
    """Send a request, a second time when it is slow, and return the answer that comes first.

    Args:
        begin: sends the request.
        hedge_after_s: the seconds after which it is slow; None is never.
        may_hedge: called once, when it is slow; whether to send it again.

    Raises:
        the error of the first request, when every one that was sent fails.
    """
    first = begin()
    wait([first], timeout=hedge_after_s)
    if first.done() or not may_hedge():
        return first.result()
    pending = {first, begin()}
    try:
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for each in done:
                if each.exception() is None:
                    return each.result()
    finally:
        for each in pending:
            each.cancel()
    return first.result()
