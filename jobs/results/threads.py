"""Work on many images in threads, a few ahead of who takes the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.machine_limits import usable_cpus

# Threads wait for storage, and decoding, drawing and writing leave Python's lock; more of them would only take memory.
_MAX_THREADS = 8

T = TypeVar("T")
S = TypeVar("S")


def in_order(function: Callable[[T], S], work: Iterable[T]) -> Iterator[S]:
    """Apply a function in threads, a few items ahead, and yield the results in order."""
    threads = min(_MAX_THREADS, usable_cpus() + 1)
    ahead: deque[Future[S]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for each in work:
                ahead.append(pool.submit(function, each))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
