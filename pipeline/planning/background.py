"""BackgroundPlanner: plans in a thread while the workers do the shards that are already planned."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing

from pipeline.planning.manifest import Manifest
from pipeline.planning.planner import Planner

# Planning checks for a request to stop after each image; only a store that hangs takes longer than this.
STOP_PATIENCE_S = 2.0


class BackgroundPlanner:
    """Runs a planner, in a thread or at once.

    Attributes:
        manifest: the part of the manifest whose shards may be done.
    """

    def __init__(self, planner: Planner, record: Callable[[Manifest], None]) -> None:
        """`record`: stores what is planned, at the beginning and after each part; called in the planner's thread."""
        self.manifest = planner.manifest
        self._planner = planner
        self._record = record
        self._is_stopped = threading.Event()
        self._future: Future[None] | None = None

    def run(self) -> None:
        """Plan the whole input in this thread.

        Raises:
            InputError: the input cannot be listed.
            StorageError: the manifest cannot be written.
        """
        self._record(self.manifest)
        with closing(self._planner.parts(self._is_stopped)) as parts:
            for manifest in parts:
                self._record(manifest)
                # Only now may its shards be done: the run's record must be written before the first commit.
                self.manifest = manifest

    def start(self) -> None:
        """Plan in a new thread."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="planning")
        self._future = pool.submit(self.run)
        pool.shutdown(wait=False)

    def wait(self, timeout_s: float) -> None:
        """Wait until planning has ended, with or without an error, at most `timeout_s`."""
        if self._future is not None:
            wait([self._future], timeout_s)

    def check(self) -> None:
        """Raise the error that ended planning, if there was one; see `run`."""
        if self._future is not None and self._future.done():
            self._future.result()

    def stop(self) -> bool:
        """Ask planning to stop, and return whether it has, so that it writes nothing any more."""
        self._is_stopped.set()
        self.wait(STOP_PATIENCE_S)
        return self._future is None or self._future.done()
