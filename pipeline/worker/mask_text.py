"""Makes the text of masks in processes of their own, off the worker's interpreter lock; imports no torch.

For 100 masks on an image of 640 x 480 the text takes 0.3 ms of one core, on one of 2 megapixels 0.75 ms: at 300 images
a second 10 % and 23 % of a core, most of it in numpy without the lock. So it is done in the worker by default.
"""

import logging
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from htc_model.masks.rle import encode_runs_of_sizes

if TYPE_CHECKING:
    from htc_model.masks.batch_runs import MaskRuns
    from htc_model.structures import Rle

log = logging.getLogger(__name__)


class TextProcesses:
    """Makes the text of masks in other processes; those that die are replaced once, then this process does it."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = self._open()
        self._deaths = 0

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that have been started and not replaced."""
        with self._lock:
            return tuple(self._pool._processes) if self._pool is not None and self._pool._processes else ()

    def encode(self, runs: "MaskRuns") -> "list[Rle]":
        """Return `runs.encode()`; made here when the process that had them has died."""
        with self._lock:
            pool = self._pool
        if pool is None:
            return runs.encode()
        try:
            # Not the object, whose module needs torch.
            return pool.submit(encode_text, runs.begins, runs.ends, runs.run_counts, runs.sizes).result()
        except (BrokenProcessPool, RuntimeError) as error:
            self._replace(pool, error)
            return runs.encode()

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def _open(self) -> ProcessPoolExecutor:
        # Forked children of a process with threads and CUDA would hang.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._processes, mp_context=context, initializer=end_with_parent)

    def _replace(self, pool: ProcessPoolExecutor, error: Exception) -> None:
        with self._lock:
            if self._pool is not pool:
                return
            self._deaths += 1
            self._pool = self._open() if self._deaths == 1 else None
            rest = "new ones take over" if self._pool is not None else "masks are encoded in the worker from now on"
        log.warning("a process that encodes masks died (%s); %s", error, rest)
        pool.shutdown(wait=False, cancel_futures=True)


def encode_text(
    begins: NDArray[np.signedinteger],
    ends: NDArray[np.signedinteger],
    run_counts: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> "list[Rle]":
    """Encode masks from the fields of `MaskRuns`; what the processes run."""
    return encode_runs_of_sizes(begins.astype(np.int64), ends.astype(np.int64), run_counts, sizes)


def end_with_parent() -> None:
    """Have this process end when the worker does, however that ends: nothing else would end it then."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
