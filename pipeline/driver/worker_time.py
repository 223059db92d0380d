"""WorkerTime: the worker-seconds of a session, and the throughput of a worker while it has something to do."""

import itertools
import time
from collections.abc import Callable, Sequence

# Samples that are kept; when there are more, every other one is dropped.
MAX_SAMPLES = 240
# Parts of a session whose throughputs show how much it varies.
ROUNDS = 12


class WorkerTime:
    """Adds up the time of the workers between two looks at the pool.

    The clock is monotonic and in seconds. Workers that come or go between two looks count for the whole time between:
    what is paid is rather counted too high than too low, by less than the time between two looks for each.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._running = self._ready = self._busy = 0
        self.running_s = 0.0
        self.ready_s = 0.0
        self.busy_s = 0.0
        # Pairs of the busy seconds and the images done so far.
        self._samples: list[tuple[float, int]] = [(0.0, 0)]
        self._spacing_s = 0.0

    def record(self, *, running: int, ready: int, busy: int, images_done: int) -> None:
        """Record the pool as it is now.

        Args:
            running: workers whose process runs. ready: of these, with their model. busy: of these, with a shard.
            images_done: in this session, those of shards in flight included.
        """
        now = self._clock()
        past_s = 0.0 if self._last is None else now - self._last
        self.running_s += past_s * max(running, self._running)
        self.ready_s += past_s * self._ready
        self.busy_s += past_s * self._busy
        self._last = now
        self._running, self._ready, self._busy = running, ready, busy
        if self.busy_s - self._samples[-1][0] > self._spacing_s and images_done >= self._samples[-1][1]:
            self._samples.append((self.busy_s, images_done))
            if len(self._samples) > MAX_SAMPLES:
                self._samples = self._samples[::2]
                self._spacing_s = self.busy_s / (MAX_SAMPLES / 2)

    @property
    def running(self) -> int:
        """Workers whose process ran at the last look."""
        return self._running

    def images_per_s(self) -> list[float]:
        """Return the images per second of one busy worker in each of at most ROUNDS parts of the session."""
        total_s = self._samples[-1][0]
        ends = [(total_s * number / ROUNDS) for number in range(1, ROUNDS + 1)]
        marks = [self._samples[0], *(_first_at(self._samples, end_s) for end_s in ends)]
        rounds = itertools.pairwise(marks)
        return [(images - before) / (end - begin) for (begin, before), (end, images) in rounds if end > begin]


def _first_at(samples: Sequence[tuple[float, int]], busy_s: float) -> tuple[float, int]:
    return next((sample for sample in samples if sample[0] >= busy_s - 1e-9), samples[-1])
