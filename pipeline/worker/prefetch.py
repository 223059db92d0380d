"""Prefetch: loads sources in order while the model works, a bounded number at once; `byte_budget` bounds the bytes."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, Self, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class ByteGauge:
    """A number of bytes, counted up and down from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0

    @property
    def value(self) -> int:
        """The number now."""
        with self._lock:
            return self._bytes

    def add(self, count: int) -> None:
        """Add `count` bytes, which may be negative."""
        with self._lock:
            self._bytes += count


class Prefetch(Generic[S, T]):
    """Runs `load` over `sources` on a thread pool and hands out the results in the order of the sources.

    Loading begins at construction. At most `ahead` sources are loading or loaded and not handed out. What `load` raises
    is raised in place of its result. Use as a context manager: on leaving, also by an exception, no load is left
    running.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        sources: Iterable[S],
        load: Callable[[S], T],
        *,
        ahead: int,
        on_wait: Callable[[int], None] | None = None,
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        """Begin to load.

        Args:
            pool: has a thread for each of `ahead` sources, or `load` does not wait for other sources.
            on_wait: called with the number of the source, from 0, before its result is waited for.
            on_leave: called on leaving, before the running loads are waited for; must end a `load` that waits for its
                turn.
        """
        self._pool = pool
        self._sources = iter(sources)
        self._load = load
        self._ahead = max(1, ahead)
        self._on_wait = on_wait
        self._on_leave = on_leave
        self._handed_out = 0
        self._pending: deque[Future[T]] = deque()
        self._fill()

    def __iter__(self) -> Iterator[T]:
        while self._pending:
            # Without a variable for the result, which would keep it alive until the next one is loaded.
            yield self._next()

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
        if self._on_leave is not None:
            self._on_leave()
        wait(self._pending)
        self._pending.clear()

    def _next(self) -> T:
        if self._on_wait is not None:
            self._on_wait(self._handed_out)
        result = self._pending.popleft().result()
        self._handed_out += 1
        self._fill()
        return result

    def _fill(self) -> None:
        while len(self._pending) < self._ahead:
            for source in self._sources:
                self._pending.append(self._pool.submit(self._load, source))
                break
            else:
                return
