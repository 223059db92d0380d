"""Reading ahead: in threads, in order, never far in front of who consumes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def read_ahead(threads: int, read: Callable[[T], U], wanted: Iterable[T]) -> Iterator[U]:
    """Yield what `read` makes of each, in order; at most twice as many as there are threads lie waiting.

    What `read` raises is raised here. A reader who stops early waits for what is under way, and no longer.
    """
    coming = iter(wanted)
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        begun: deque[Future[U]] = deque(pool.submit(read, each) for each in islice(coming, 2 * threads))
        try:
            while begun:
                found = begun.popleft().result()
                begun.extend(pool.submit(read, each) for each in islice(coming, 1))
                yield found
        finally:
            for future in begun:
                future.cancel()
