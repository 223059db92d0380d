"""What goes between the ledger of shards and whoever does them; plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.messages import PieceReport, ShardFailure


@dataclass(frozen=True)
class Assignment:
    """One shard, or a piece of it, for one worker.

    attempt: 1 for the first, counting attempts that were not charged too.
    is_last: whether the shard is given up when this attempt fails.
    positions: the images to do, by their place in the shard; empty for all of them.
    is_copy: whether another worker is doing the same shard. is_drawn: whether it was drawn by lot.
    """

    index: int
    attempt: int
    is_last: bool
    positions: tuple[int, ...] = ()
    is_copy: bool = False
    is_drawn: bool = False

    @property
    def is_committed_by_worker(self) -> bool:
        """Whether the worker writes the tables itself; else it sends its rows, and the driver does."""
        return not self.positions and not self.is_copy


@dataclass(frozen=True)
class Settled:
    """A shard of which every image's end is known, for the driver to commit.

    pieces: the images that are done. verdicts: reasons of those that fail, by position.
    rest: why all others fail, when the shard is given up.
    """

    index: int
    attempts: int
    pieces: Sequence[PieceReport] = ()
    verdicts: Mapping[int, str] = field(default_factory=dict)
    rest: ShardFailure | None = None


@dataclass(frozen=True)
class Contest:
    """A copy of a shard is done before the shard itself: `worker` is to leave the commit to the driver."""

    worker: int
    index: int
