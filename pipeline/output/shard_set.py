"""ShardSet: which shards of a run are committed, as ranges, so that a million of them take little memory."""

from collections.abc import Iterable, Iterator, Set
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class ShardSet(Set[int]):
    """An immutable set of shard numbers; equal to any other set of the same numbers."""

    def __init__(self, firsts: ArrayLike = (), lasts: ArrayLike | None = None) -> None:
        """Build the union of ranges, in any order; they may overlap.

        Args:
            firsts: the first shard of each range, [N] int64.
            lasts: the last shard of each range, included, [N] int64; None for ranges of one shard.
        """
        starts = np.asarray(firsts, np.int64)
        stops = (starts if lasts is None else np.asarray(lasts, np.int64)) + 1
        order = np.argsort(starts, kind="stable")
        starts, stops = starts[order], np.maximum.accumulate(stops[order])
        # A range begins where the ranges before it have ended.
        is_first = np.ones(len(starts), bool)
        is_first[1:] = starts[1:] > stops[:-1]
        self._starts: NDArray[np.int64] = starts[is_first]
        self._stops: NDArray[np.int64] = (
            stops[np.append(np.flatnonzero(is_first)[1:] - 1, -1)] if len(starts) else stops
        )

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> set[Any]:
        # For the operators of sets.
        return set(it)

    def __contains__(self, shard: object) -> bool:
        """Return whether the set holds a shard."""
        at = int(np.searchsorted(self._starts, shard, "right")) - 1 if isinstance(shard, int) else -1
        return at >= 0 and bool(shard < self._stops[at])

    def __iter__(self) -> Iterator[int]:
        """Iterate over the shards, ascending."""
        for start, stop in zip(self._starts.tolist(), self._stops.tolist(), strict=True):
            yield from range(start, stop)

    def __len__(self) -> int:
        """Return the number of shards."""
        return int((self._stops - self._starts).sum())

    def mask(self, count: int) -> NDArray[np.bool_]:
        """Return which of the shards 0 to `count` - 1 it holds; [count] bool."""
        steps = np.zeros(count + 1, np.int8)
        # Ranges are disjoint and do not touch, so that no step is set twice.
        steps[self._starts[self._starts < count]] = 1
        steps[self._stops[self._stops < count]] = -1
        return np.cumsum(steps[:count], dtype=np.int8).astype(bool)

    def missing(self, start: int, stop: int) -> list[int]:
        """Return the shards from `start` to `stop` - 1 that it does not hold, ascending."""
        mask = self.mask(stop)[start:]
        found: list[int] = (np.flatnonzero(~mask) + start).tolist()
        return found

    def covers(self, count: int) -> bool:
        """Return whether it holds all shards from 0 to `count` - 1."""
        return count <= 0 or bool(len(self._starts) and self._starts[0] <= 0 and self._stops[0] >= count)
