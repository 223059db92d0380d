"""Watchdog of a worker: detects images that hang in one step."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

from pipeline.messages import Hang

Step = Literal["decoding", "the model", "mask encoding"]


@dataclass(frozen=True)
class _InFlight:
    images: tuple[tuple[int, int], ...]
    step: Step
    start_s: float

    def hang(self, seconds: float) -> Hang:
        index = self.images[0][0]
        # Tiles of one image are at one position.
        positions = tuple(dict.fromkeys(position for shard, position in self.images if shard == index))
        is_shared = any(shard != index for shard, _ in self.images)
        return Hang(index, positions, self._reason(seconds), is_shared=is_shared)

    def _reason(self, seconds: float) -> str:
        batch = f" with {len(self.images)} images" if len(self.images) > 1 else ""
        return f"{self.step} hung for {seconds:.0f} s{batch}; the limit is retry.image_timeout_s"


class Watchdog:
    """Watches the images that are in a step of one worker; used from all of its threads."""

    def __init__(self, timeout_s: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`timeout_s`: for one image in one step, n times as long for a batch of n; None for no limit."""
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._in_flight: dict[int, _InFlight] = {}

    def on(self, index: int, positions: Sequence[int], step: Step) -> AbstractContextManager[None]:
        """Watch images of shard `index` during the block."""
        return self.on_images([(index, position) for position in positions], step)

    @contextmanager
    def on_images(self, images: Sequence[tuple[int, int]], step: Step) -> Iterator[None]:
        """Watch images, given by shard and position, during the block; a batch may hold those of two shards."""
        entry = _InFlight(tuple(sorted(images)), step, self._clock())
        with self._lock:
            number = next(self._numbers)
            self._in_flight[number] = entry
        try:
            yield
        finally:
            with self._lock:
                del self._in_flight[number]

    def hang(self) -> Hang | None:
        """Return the images that are over their time the longest; None when there are none."""
        if self._timeout_s is None:
            return None
        now = self._clock()
        with self._lock:
            late = [
                (now - entry.start_s - self._timeout_s * len(entry.images), entry) for entry in self._in_flight.values()
            ]
        if not late:
            return None
        over_s, entry = max(late, key=lambda pair: pair[0])
        if over_s < 0:
            return None
        return entry.hang(now - entry.start_s)
