"""Blocking work in few threads, each kind apart: a slow store must not hold up the tables."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from pipeline.errors import HtcError

# How soon a query stops after its reader has left.
POLL_S = 0.2
T = TypeVar("T")


class BusyError(HtcError):
    """So much is waiting that one more request would not be answered in time."""


class TimeLimitError(HtcError):
    """It took longer than its limit, and was stopped."""


class ReaderLeftError(HtcError):
    """The browser closed the connection."""


class Job:
    """One piece of work, which may be cancelled from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """Ask the work to stop; does nothing when it has ended."""
        with self._lock:
            self.is_cancelled = True
            if self._stop is not None:
                self._stop()

    def stoppable_by(self, stop: Callable[[], object] | None) -> None:
        """Name what stops the present step; None when there is no more to stop."""
        with self._lock:
            self._stop = stop
            if stop is not None and self.is_cancelled:
                stop()


class Threads:
    """A few threads for one kind of work."""

    def __init__(self, name: str, threads: int, *, most_waiting: int) -> None:
        """`most_waiting`: pieces of work that may wait for a thread; more are refused."""
        self._name = name
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"browse-{name}")
        self._threads = threads
        self._most_waiting = most_waiting
        self._jobs: set[Job] = set()

    async def run(self, work: Callable[[Job], T], request: Request, *, limit_s: float) -> T:
        """Run work, until it ends, the limit is reached or the browser leaves.

        Raises:
            BusyError: too much is waiting.
            TimeLimitError: the limit was reached, also by waiting.
            ReaderLeftError: the browser left.
        """
        if len(self._jobs) >= self._threads + self._most_waiting:
            raise BusyError("Too much is asked for at once; wait a moment, and load the page again.")
        job = Job()
        self._jobs.add(job)
        future: Future[T] = self._pool.submit(work, job)
        waited = asyncio.wrap_future(future)
        # Also of work that was abandoned: it holds its thread until then.
        waited.add_done_callback(lambda done: self._end(job, done))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_s
        try:
            while True:
                done, _ = await asyncio.wait({waited}, timeout=min(POLL_S, limit_s))
                if done:
                    return waited.result()
                if await request.is_disconnected():
                    raise ReaderLeftError("The browser left.")
                if loop.time() > deadline:
                    raise TimeLimitError(f"This took longer than {limit_s:g} s and was stopped.")
        finally:
            if not future.done() and not future.cancel():
                job.cancel()

    def start(self, work: Callable[[Job], object]) -> None:
        """Start work that nothing waits for; does nothing when there is enough to do already."""
        if len(self._jobs) < self._threads + self._most_waiting:
            job = Job()
            self._jobs.add(job)
            self._pool.submit(work, job).add_done_callback(lambda _: self._jobs.discard(job))

    def busy(self) -> int:
        """Return how many pieces of work run or wait."""
        return len(self._jobs)

    def close(self) -> None:
        """Cancel everything, without waiting for it."""
        for job in list(self._jobs):
            job.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _end(self, job: Job, done: "asyncio.Future[T]") -> None:
        self._jobs.discard(job)
        if not done.cancelled():
            # Read, so that asyncio does not report an error of work whose reader has left.
            done.exception()
