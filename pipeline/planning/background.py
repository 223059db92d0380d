"""Planning beside the work: a thread lists the input while shards of the parts that are written are done."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing

from pipeline.planning.manifest import Manifest
from pipeline.planning.planner import Planner

# Listing looks at the request to stop between two images; longer than this only a store that hangs takes.
STOP_PATIENCE_S = 2.0


class BackgroundPlanner:
    """A manifest that is being written.

    `record` is told what is planned, at once and after each part; it runs in the planning's thread.
    """

    def __init__(self, planner: Planner, record: Callable[[Manifest], None]) -> None:
        self.manifest = planner.manifest
        self._planner = planner
        self._record = record
        self._is_stopped = threading.Event()
        self._future: Future[None] | None = None

    def run(self) -> None:
        """Plan all of it here and now.

        Raises:
            InputError: the input cannot be listed.
            StorageError: the manifest cannot be written.
        """
        self._record(self.manifest)
        with closing(self._planner.parts(self._is_stopped)) as parts:
            for manifest in parts:
                self._record(manifest)
                # Only now may its shards be worked on: the record of the run comes before its first commit.
                self.manifest = manifest

    def start(self) -> None:
        """Plan in a thread of its own."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="planning")
        self._future = pool.submit(self.run)
        pool.shutdown(wait=False)

    def wait(self, timeout_s: float) -> None:
        """Wait until planning has ended, one way or the other, but not longer."""
        if self._future is not None:
            wait([self._future], timeout_s)

    def check(self) -> None:
        """Raise what ended planning, if something did; see `run`."""
        if self._future is not None and self._future.done():
            self._future.result()

    def stop(self) -> bool:
        """Ask planning to stop and tell whether it has, so that nothing is written any more."""
        self._is_stopped.set()
        self.wait(STOP_PATIENCE_S)
        return self._future is None or self._future.done()
