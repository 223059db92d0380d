"""How many reads of a store are under way at once, and which of them is asked for a second time."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

# A read is slow when it takes three times as long as 95 of 100 do, but never before a quarter of a second: below
# that a second request costs more than it saves. After ten seconds nobody calls it quick, whatever the others did.
SLOW_FACTOR = 3.0
LEAST_SLOW_S = 0.25
MOST_SLOW_S = 10.0
# Enough to tell what is usual; and the memory of it, so that "usual" follows the store's mood.
FEWEST_READS = 20
READS_KEPT = 200
# Of a hundred reads, five may be asked for twice.
HEDGED_SHARE = 0.05
MOST_HEDGES_SAVED = 5.0


class ReadLimiter:
    """Lets so many reads go at once; fewer when the store asks for that, then slowly more again.

    Halved by a SlowDown and grown by one for each full round of reads that went well (additive increase,
    multiplicative decrease, as TCP does it). Requests that were under way when it was halved say nothing new.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._busy = 0
        self._halved = float("-inf")
        self._change = threading.Condition()

    @property
    def limit(self) -> int:
        """Reads that may be under way now."""
        return int(self._limit)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the places, waiting for it."""
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
        """Whether one more read would be within the limit."""
        return self._busy < int(self._limit)

    def note_success(self) -> None:
        """Count a read that went well."""
        with self._change:
            self._limit = min(float(self._most), self._limit + 1 / self._limit)
            self._change.notify()

    def note_slow_down(self, began: float) -> None:
        """Halve the limit, if the request that was refused began (by `time.monotonic`) after it was halved last."""
        with self._change:
            if began >= self._halved:
                self._limit = max(1.0, self._limit / 2)
                self._halved = time.monotonic()


class HedgePolicy:
    """Knows how long reads take, and grants a second request to those that take too long.

    is_on: never grants any when false.
    """

    def __init__(self, *, is_on: bool = True) -> None:
        self._is_on = is_on
        self._reads: deque[tuple[float, int]] = deque(maxlen=READS_KEPT)
        self._saved = 1.0
        self._lock = threading.Lock()

    def note(self, seconds: float, read_bytes: int) -> None:
        """Count a read that went well."""
        with self._lock:
            self._reads.append((seconds, read_bytes))
            self._saved = min(MOST_HEDGES_SAVED, self._saved + HEDGED_SHARE)

    def hedge_after_s(self, expected_bytes: int | None) -> float | None:
        """Return the seconds after which a read is slow; None while that is not known.

        Args:
            expected_bytes: of what is read; larger than usual is given longer, None counts as usual.
        """
        with self._lock:
            if not self._is_on or len(self._reads) < FEWEST_READS:
                return None
            usual_s = sorted(seconds for seconds, _ in self._reads)[int(0.95 * len(self._reads))]
            usual_bytes = max(1.0, sum(size for _, size in self._reads) / len(self._reads))
        stretch = max(1.0, (expected_bytes or 0) / usual_bytes)
        return min(max(SLOW_FACTOR * usual_s, LEAST_SLOW_S), MOST_SLOW_S) * stretch

    def take(self) -> bool:
        """Grant a second request, unless too many were granted of late."""
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
            return True


def hedged(begin: Callable[[], Future[T]], hedge_after_s: float | None, may_hedge: Callable[[], bool]) -> T:
    """Make a request, a second time when it is slow, and take the answer that comes first.

    Args:
        begin: sends the request.
        hedge_after_s: when it counts as slow; None is never.
        may_hedge: asked once, when it is slow.

    Raises:
        what the request raises, when every one that was sent fails.
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
