"""The throughput of a session: images per second since its start and within the last minute, and the time left."""

import time
from collections import deque
from collections.abc import Callable

# Long enough to smooth over whole shards of slow workers, short enough to show that one has died.
WINDOW_S = 60.0


class Throughput:
    """Images per second since the start and within the last minute.

    The clock is monotonic and in seconds. Only images of this session count: those of an earlier one
    say nothing about the speed of this one.
    """

    def __init__(self, *, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._start = clock()
        self._done = 0
        self._samples: deque[tuple[float, int]] = deque([(self._start, 0)])

    @property
    def seconds(self) -> float:
        """Wall time since construction."""
        return self._clock() - self._start

    def record(self, images_done: int) -> None:
        """Record that `images_done` images are done in all; fewer than before (a lost shard) is valid."""
        now = self._clock()
        self._done = images_done
        self._samples.append((now, images_done))
        # Keep one sample at or before the window's edge, so that the samples span the whole window.
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window_s:
            self._samples.popleft()

    def lifetime_images_per_s(self) -> float:
        """Images per second since the start, start-up included; 0 before the first image."""
        return self._done / self.seconds if self.seconds > 0 else 0.0

    def window_images_per_s(self) -> float:
        """Images per second over the last window, never negative."""
        then, before = self._samples[0]
        elapsed = self._clock() - then
        return max(0.0, (self._done - before) / elapsed) if elapsed > 0 else 0.0

    def eta_s(self, images_left: int) -> float | None:
        """Return seconds until `images_left` more are done at the recent rate; None while unknown."""
        if images_left <= 0:
            return 0.0
        rate = self.window_images_per_s() or self.lifetime_images_per_s()
        return images_left / rate if rate > 0 else None
