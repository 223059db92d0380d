"""Work on thread pools: results in the order of their sources, loaded a bounded number ahead; parallel deletions."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, Self, TypeVar

S = TypeVar("S")
T = TypeVar("T")

DELETE_THREADS = 16


class Prefetch(Generic[S, T]):
    """Runs `load` over `sources` on a thread pool and yields the results in the order of the sources.

    Loading begins at construction. At most `ahead` sources are loading, or loaded and not yet yielded. An exception
    that `load` raises is raised at its source's place. Use as a context manager: on leaving, for whatever reason, it
    cancels what has not begun and waits for the rest.
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
            pool: has a thread for each of `ahead` sources, unless `load` never waits for other sources.
            on_wait: called with the number of the source, from 0, before its result is waited for.
            on_leave: called on leaving, before the loads in progress are waited for; it must end a `load` that waits
                for its turn.
        """
        self._pool = pool
        self._sources = iter(sources)
        self._load = load
        self._ahead = max(1, ahead)
        self._on_wait = on_wait
        self._on_leave = on_leave
        self._yielded = 0
        self._pending: deque[Future[T]] = deque()
        self._fill()

    def __iter__(self) -> Iterator[T]:
        while self._pending:
            # No name here for the result: it would keep the result alive until the next one is loaded.
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

    def wait_ready(self, timeout_s: float | None) -> bool:
        """Wait until the next result, or the end, comes without waiting; return whether it does."""
        if not self._pending:
            return True
        if self._on_wait is not None:
            self._on_wait(self._yielded)
        return bool(wait([self._pending[0]], timeout_s).done)

    def _next(self) -> T:
        if self._on_wait is not None:
            self._on_wait(self._yielded)
        result = self._pending.popleft().result()
        self._yielded += 1
        self._fill()
        return result

    def _fill(self) -> None:
        while len(self._pending) < self._ahead:
            for source in self._sources:
                self._pending.append(self._pool.submit(self._load, source))
                break
            else:
                return


def read_ahead(threads: int, read: Callable[[S], T], sources: Iterable[S]) -> Iterator[T]:
    """Yield `read(source)` for each source, in order, on threads of its own; see `Prefetch`.

    At most twice as many results as threads are read and not yet yielded.
    """
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool,
        Prefetch(pool, sources, read, ahead=2 * threads) as results,
    ):
        yield from results


def delete_all(delete: Callable[[str], object], uris: Iterable[str]) -> None:
    """Call `delete` for each uri, on 16 threads; the first exception is raised after the deletions in progress."""
    with ThreadPoolExecutor(DELETE_THREADS, thread_name_prefix="delete") as pool:
        for _ in pool.map(delete, uris):
            pass
