"""Loads what comes next while the model is busy: in order, bounded in number and bytes."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class ByteGauge:
    """Bytes held by somebody, counted up and down from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0

    @property
    def value(self) -> int:
        """Bytes held now."""
        with self._lock:
            return self._bytes

    def add(self, count: int) -> None:
        """Count `count` bytes more, or fewer when negative."""
        with self._lock:
            self._bytes += count


class ByteBudget:
    """Lets bytes into memory, at most so many at once; what is larger goes in alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._change = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold so many bytes, waiting until there is room for them."""
        with self._change:
            self._change.wait_for(lambda: self._held == 0 or self._held + count <= self._most)
            self._held += count
        try:
            yield
        finally:
            with self._change:
                self._held -= count
                self._change.notify_all()


class Prefetch(Generic[S, T]):
    """Runs `load` over `sources` on a thread pool and hands out the results in the order of the sources.

    Loading begins at construction. At most `ahead` sources are loading or loaded and not handed out, and no
    further one begins while `gauge` stands over `max_bytes`; those already begun may overshoot it. What
    `load` raises is raised at its source's place. Use as a context manager: on leaving, whatever the reason,
    nothing begun is left behind.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        sources: Iterable[S],
        load: Callable[[S], T],
        *,
        ahead: int,
        gauge: ByteGauge | None = None,
        max_bytes: int = 0,
    ) -> None:
        self._pool = pool
        self._sources = iter(sources)
        self._load = load
        self._ahead = max(1, ahead)
        self._gauge = gauge
        self._max_bytes = max_bytes
        self._pending: deque[Future[T]] = deque()
        self._fill()

    def __iter__(self) -> Iterator[T]:
        while self._pending:
            result = self._pending.popleft().result()
            self._fill()
            yield result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for future in self._pending:
            future.cancel()
        wait(self._pending)
        self._pending.clear()

    def _fill(self) -> None:
        # One source always goes on: its result is what brings the gauge down again.
        while len(self._pending) < self._ahead and not (self._pending and self._is_over_bytes()):
            for source in self._sources:
                self._pending.append(self._pool.submit(self._load, source))
                break
            else:
                return

    def _is_over_bytes(self) -> bool:
        return self._gauge is not None and self._gauge.value > self._max_bytes
