"""One image on its way through the model as tiles: read a few ahead, given to the model one by one, joined at the end.

A tile is an image to the model, its batches, the watchdog and the memory's limits. To the shard the tiles are one
image: when the last one is encoded, what they found is joined, and the first thing that goes wrong is the outcome of
the whole image.

    reading thread:         the next tiles' pixels, a bounded number ahead; one at a time
    the shard's thread:     `wait_ready`, `next`: the tiles, in order, for the model
    the model's thread:     `take_encoding`, `fail`, `give_back`
    an encoding thread:     `join`
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from htc_model.masks.many_runs import ForegroundRuns
from htc_model.masks.no_data import cut_to, valid_runs
from htc_model.masks.seams import Joined, join_tiles
from htc_model.masks.tile_box import TileBox
from htc_model.structures import Detections
from pipeline.concurrency import Prefetch
from pipeline.inputs.windows import WindowedImage
from pipeline.messages import ImageFailure
from pipeline.worker.segmenter import DecodedImage
from pipeline.worker.tiling import TileGrid

# Pixels of tiles that are read before the model asks for them: some twenty tiles of 1024 x 1024.
AHEAD_BYTES = 64 * 2**20
MOST_AHEAD = 32

# A tile's pixels and, where only some of them hold data, which; None for a tile without any.
_Read = tuple[NDArray[np.uint8], ForegroundRuns | None] | None


class TiledImage:
    """The tiles of one image of a shard; closed when the shard ends, whatever happened."""

    def __init__(
        self,
        position: int,
        uri: str,
        windows: WindowedImage,
        grid: TileGrid,
        *,
        shard: int,
        thread: ThreadPoolExecutor,
        whole_bytes: int,
        boundary: Callable[[Callable[[], Any]], Any],
        charge: Callable[[int], None],
        on_complete: Callable[["TiledImage"], None],
    ) -> None:
        """Begin to read.

        Args:
            position: in the shard, whose index is `shard`.
            windows: the open image, which this object reads and closes.
            thread: a pool of one thread, which does that, as GDAL requires of a file's thread; it ends with the image.
            whole_bytes: of the decoded image, where it is held whole.
            boundary: runs the reading of one tile; returns its result, or the image's failure.
            charge: told how many bytes the image holds, whenever that changes.
            on_complete: called once, when the model is done with the last tile.
        """
        self.position, self.uri, self.grid, self.shard = position, uri, grid, shard
        self.size = grid.size
        self._windows = windows
        self._boundary, self._charge = boundary, charge
        self._on_complete = on_complete
        self._lock = threading.Lock()
        # Guarded by the lock.
        self._reserved = whole_bytes + ahead_tiles(grid) * grid.tile_bytes
        self._given_bytes = self._in_model = self._done = 0
        self._is_read = self._is_complete = False
        self._failures: dict[int, ImageFailure] = {}
        self._encodings: dict[int, Future[Detections | ImageFailure]] = {}
        self._valid: dict[int, ForegroundRuns] = {}
        self._pool = thread
        self._prefetch: Prefetch[int, tuple[int, _Read | ImageFailure]] = Prefetch(
            self._pool, range(len(grid)), self._read, ahead=ahead_tiles(grid)
        )
        self._tiles = iter(self._prefetch)

    @staticmethod
    def first_bytes(grid: TileGrid, whole_bytes: int) -> int:
        """Return how many bytes the image holds before the first tile is in the model."""
        return whole_bytes + ahead_tiles(grid) * grid.tile_bytes

    def wait_ready(self, timeout_s: float | None) -> bool:
        """Wait until `next` would not have to wait for pixels; return whether it would not."""
        return self._has_failed() or self._prefetch.wait_ready(timeout_s)

    def next(self) -> DecodedImage | None:
        """Return the next tile that holds data, None after the last one, or once the image has failed.

        It may be called again after None. Waits for one tile's pixels at most: None is also returned for a tile
        without data, see `is_read`.

        Raises:
            StorageError: the image cannot be read for now.
        """
        found = None if self._has_failed() else next(self._tiles, None)
        if found is None:
            self._end_reading()
            return None
        number, read = found
        if isinstance(read, ImageFailure):
            self.fail(number, read, is_in_model=False)
            self._end_reading()
            return None
        if read is None:
            with self._lock:
                self._done += 1
            return None
        pixels, valid = read
        with self._lock:
            self._in_model += 1
            self._given_bytes += pixels.nbytes
            if valid is not None:
                self._valid[number] = valid
            self._charge(self._reserved + self._given_bytes)
        return DecodedImage(self.position, self.uri, pixels, self.shard, tile=number)

    @property
    def is_read(self) -> bool:
        """Whether all tiles were given."""
        with self._lock:
            return self._is_read

    @property
    def tiles_done(self) -> int | None:
        """Tiles whose outcome is known, those without data included; None once the model is done with the image."""
        with self._lock:
            return None if self._is_complete else self._done

    def fail(self, number: int, failure: ImageFailure, *, is_in_model: bool = True) -> None:
        """Take a tile's failure, which is the image's."""
        with self._lock:
            self._failures[number] = failure
        if is_in_model:
            self._end_tile()

    def take_encoding(self, number: int, encoding: "Future[Detections | ImageFailure]") -> None:
        """Take what will be a tile's detections, in its own coordinates."""
        with self._lock:
            self._encodings[number] = encoding
        self._end_tile()

    def cut(self, number: int, found: Detections) -> Detections:
        """Cut a tile's masks to the pixels that hold data."""
        with self._lock:
            valid = self._valid.get(number)
        return found if valid is None else cut_to(found, valid)

    def give_back(self) -> None:
        """Take note that nothing refers to the pixels of one of the given tiles any more."""
        with self._lock:
            self._given_bytes -= self.grid.tile_bytes
            self._charge(self._reserved + self._given_bytes)

    def wait_encoded(self) -> None:
        """Wait until all tiles that went through the model are encoded."""
        with self._lock:
            encodings = list(self._encodings.values())
        # None of them waits for the caller: they were given to the same threads before.
        wait(encodings)

    def join(self) -> Joined | ImageFailure:
        """Join the encoded tiles; the first tile that failed is the image's failure."""
        with self._lock:
            encodings, failures = dict(self._encodings), dict(self._failures)
        found: list[tuple[TileBox, Detections]] = []
        for number, encoding in sorted(encodings.items()):
            result = encoding.result()
            if isinstance(result, ImageFailure):
                failures[number] = result
            else:
                found.append((self.grid[number], result))
        if failures:
            return self._failure(failures)
        return join_tiles(self.size, found)

    def close(self) -> None:
        """Stop reading, close the image, and wait for the encodings in progress; may be called again."""
        self._stop_reading()
        with self._lock:
            encodings = list(self._encodings.values())
        for encoding in encodings:
            encoding.cancel()
        wait(encodings)

    def _failure(self, failures: dict[int, ImageFailure]) -> ImageFailure:
        number = min(failures)
        first = failures[number]
        return ImageFailure(self.uri, first.status, f"{self.grid.describe(number)}: {first.reason}", first.traceback)

    def _has_failed(self) -> bool:
        with self._lock:
            return bool(self._failures)

    def _end_tile(self) -> None:
        with self._lock:
            self._in_model -= 1
            self._done += 1
        self._complete()

    def _end_reading(self) -> None:
        self._stop_reading()
        with self._lock:
            self._is_read = True
        self._complete()

    def _stop_reading(self) -> None:
        with self._lock:
            if self._reserved == 0:
                return
        self._prefetch.__exit__(None, None, None)
        try:
            self._pool.submit(self._windows.close).result()
        finally:
            self._pool.shutdown()
        with self._lock:
            self._reserved = 0
            self._charge(self._given_bytes)

    def _complete(self) -> None:
        with self._lock:
            if self._is_complete or not self._is_read or self._in_model:
                return
            self._is_complete = True
        self._on_complete(self)

    def _read(self, number: int) -> tuple[int, _Read | ImageFailure]:
        return number, self._boundary(lambda: self._read_tile(self.grid[number]))

    def _read_tile(self, box: TileBox) -> _Read:
        valid = self._windows.valid(*box)
        if valid is not None and not valid.any():
            return None
        pixels = self._windows.read(*box)
        return pixels, None if valid is None or valid.all() else valid_runs(valid)


def ahead_tiles(grid: TileGrid) -> int:
    """Return how many tiles of a grid are read ahead."""
    return max(1, min(MOST_AHEAD, AHEAD_BYTES // grid.tile_bytes, len(grid)))
