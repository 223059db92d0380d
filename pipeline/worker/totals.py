"""The totals of one worker since its start, the shards in flight included."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.telemetry import StageClock, WorkerTotals
from pipeline.worker.byte_budget import ByteGauge


class WorkCounter:
    """Adds up the shards of one worker, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images = 0
        self._bytes_of_ended = 0
        self._stages_of_ended = StageClock()
        self._in_flight: list[tuple[StageClock, ByteGauge]] = []
        self._tiles: list[Callable[[], tuple[int, int]]] = []

    def counted(self, on_images: Callable[[int], None]) -> Callable[[int], None]:
        """Return a callback that counts images here and then calls `on_images`."""

        def count(images: int) -> None:
            with self._lock:
                self._images += images
            on_images(images)

        return count

    @contextmanager
    def track(self, clock: StageClock, bytes_read: ByteGauge) -> Iterator[None]:
        """Include a shard's seconds and bytes in the totals, from the beginning of the block on."""
        with self._lock:
            self._in_flight.append((clock, bytes_read))
        try:
            yield
        finally:
            with self._lock:
                self._in_flight.remove((clock, bytes_read))
                self._stages_of_ended.add(clock.seconds())
                self._bytes_of_ended += bytes_read.value

    @contextmanager
    def track_tiles(self, tiles: Callable[[], tuple[int, int]]) -> Iterator[None]:
        """Ask a shard for its tiles, done and all, during the block."""
        with self._lock:
            self._tiles.append(tiles)
        try:
            yield
        finally:
            with self._lock:
                self._tiles.remove(tiles)

    @property
    def tiles_in_work(self) -> tuple[int, int]:
        """Tiles done, and all tiles, of the images that are being cut now."""
        with self._lock:
            found = [tiles() for tiles in self._tiles]
        return sum(done for done, _ in found), sum(total for _, total in found)

    @property
    def images(self) -> int:
        """Images so far."""
        with self._lock:
            return self._images

    def totals(self, *, batch_size: int) -> WorkerTotals:
        """Return the totals so far."""
        with self._lock:
            stages = StageClock()
            stages.add(self._stages_of_ended.seconds())
            for clock, _ in self._in_flight:
                stages.add(clock.seconds())
            bytes_read = self._bytes_of_ended + sum(gauge.value for _, gauge in self._in_flight)
            return WorkerTotals(self._images, bytes_read, stages.seconds(), batch_size)
