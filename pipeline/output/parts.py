"""Part: the files of a run's tables, one per shard as workers write them, or one per shard range once compacted.

`part-00042.parquet` holds shard 42, `parts-00000-00099.parquet` the shards 0 to 99. A part of `images` commits its
shards; the parts of the same name in the other tables count from then on. A compacted part replaces all parts of its
shard range. Compaction writes it before it removes these, so at any time a listing determines which parts hold each row
exactly once.
"""

import bisect
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from pipeline.output.layout import TableName, partition_folder
from pipeline.output.shard_set import ShardSet
from pipeline.storage.damage import damaged
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage
from pipeline.storage.uris import base_name, join

# What the names of parts begin with: of a single shard, and compacted.
SINGLE, COMPACTED = "part-", "parts-"
_NAME = re.compile(r"part-(\d{5,})\.parquet|parts-(\d{5,})-(\d{5,})\.parquet")


@dataclass(frozen=True, order=True, slots=True)
class Part:
    """A file of each table, with the shards `first` to `last`, both included.

    is_compacted: whether it replaces the parts of its shards; may be true for a range of one shard.
    """

    first: int
    last: int
    is_compacted: bool = False

    @property
    def name(self) -> str:
        """The file name."""
        if self.is_compacted:
            return f"parts-{self.first:05d}-{self.last:05d}.parquet"
        return f"part-{self.first:05d}.parquet"

    @property
    def shards(self) -> range:
        """The shards whose rows it holds."""
        return range(self.first, self.last + 1)


def parse_part(name: str) -> Part | None:
    """Parse a file name; None when it is not a part's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if match.group(1) is not None:
        return Part(int(match.group(1)), int(match.group(1)))
    first, last = int(match.group(2)), int(match.group(3))
    return Part(first, last, is_compacted=True) if first <= last else None


def run_of(uri: str) -> str:
    """Return the run of a part's uri."""
    return uri.split("/")[-2].removeprefix("run=")


def table_of(uri: str) -> str:
    """Return the table of a part's uri."""
    return uri.split("/")[-3]


def part_uri(output_uri: str, table: TableName, run: str, part: Part) -> str:
    """Return the uri of a part in a table."""
    return join(partition_folder(output_uri, table, run), part.name)


def committed_parts(storage: Storage, output_uri: str, run: str, *, shard_count: int | None = None) -> list[Part]:
    """Return the parts that hold the committed rows of a run, each row once, in the order of shards.

    Args:
        shard_count: the number of planned shards; parts of later shards are ignored. None when it is not known.

    Raises:
        DamagedFileError: two compacted parts share shards.
        StorageError: storage failed.
    """
    return _parts_that_count(output_uri, run, _named_parts(storage, output_uri, run), shard_count)


class CommittedShards(ShardSet):
    """The committed shards of a run.

    Attributes:
        compacted: the compacted parts that count, in the order of shards; every other shard has a part of its own.
    """

    def __init__(self, singles: ArrayLike = (), compacted: Sequence[Part] = ()) -> None:
        """`singles`: the shards with parts of their own, [N] int64, in any order."""
        own = np.asarray(singles, np.int64)
        firsts, lasts = [part.first for part in compacted], [part.last for part in compacted]
        super().__init__(np.append(own, firsts), np.append(own, lasts))
        self.compacted = tuple(compacted)


def committed_shards(storage: Storage, output_uri: str, run: str) -> CommittedShards:
    """Return the shards that are committed, in parts of their own or compacted.

    Raises:
        DamagedFileError: two compacted parts share shards.
        StorageError: storage failed.
    """
    singles, compacted = array("q"), []
    for part in _named_parts(storage, output_uri, run):
        if part.is_compacted:
            compacted.append(part)
        else:
            singles.append(part.first)
    return CommittedShards(
        np.frombuffer(singles, np.int64) if singles else (), _parts_that_count(output_uri, run, compacted, None)
    )


def shards_of(parts: Sequence[Part]) -> CommittedShards:
    """Return the shards of a run's committed parts, of which none overlap."""
    singles = [part.first for part in parts if not part.is_compacted]
    return CommittedShards(singles, [part for part in parts if part.is_compacted])


def committed_parts_by_run(storage: Storage, output_uri: str, shard_counts: Mapping[str, int]) -> dict[str, list[Part]]:
    """Return the committed parts of many runs, as `committed_parts` does, with one listing for all of them.

    Args:
        shard_counts: the number of planned shards, by run.

    Raises:
        DamagedFileError: two compacted parts share shards.
        StorageError: storage failed.
    """
    found: dict[str, list[Part]] = {run: [] for run in shard_counts}
    for part, listed in _list_parts(storage, join(output_uri, "images")):
        run = run_of(listed.uri)
        if run in found:
            found[run].append(part)
    for run, shard_count in shard_counts.items():
        parts = found[run]
        planned = [part for part in parts if part.last < shard_count]
        if sum(len(part.shards) for part in choose_parts(planned)) < shard_count:
            # Shards are missing: list the compacted parts again, see `_named_parts`.
            parts.extend(_named_parts(storage, output_uri, run, (COMPACTED,)))
    return {run: _parts_that_count(output_uri, run, parts, shard_counts[run]) for run, parts in found.items()}


def choose_parts(parts: Sequence[Part]) -> list[Part]:
    """Return the parts that count, in the order of shards: without those that a compacted part replaces."""
    compacted = sorted({part for part in parts if part.is_compacted}, key=lambda part: (part.first, -part.last))
    chosen: list[Part] = []
    for part in compacted:
        if not chosen or part.last > chosen[-1].last:
            chosen.append(part)
    covers = coverage_of(chosen)
    single = {part for part in parts if not part.is_compacted and not covers(part.first)}
    return sorted([*chosen, *single])


def coverage_of(compacted: Sequence[Part]) -> Callable[[int], bool]:
    """Return a function that says whether a shard is in one of some compacted parts, which are sorted."""
    firsts = array("q", (part.first for part in compacted))

    def covers(shard: int) -> bool:
        at = bisect.bisect_right(firsts, shard) - 1
        return at >= 0 and shard <= compacted[at].last

    return covers


def find_overlaps(chosen: Sequence[Part]) -> list[tuple[Part, Part]]:
    """Return the pairs of neighbouring parts that share shards; compaction never writes such parts."""
    return [(one, other) for one, other in pairwise(chosen) if other.first <= one.last]


def _parts_that_count(output_uri: str, run: str, parts: Iterable[Part], shard_count: int | None) -> list[Part]:
    """Return the parts that hold each row of a run once."""
    # Parts beyond the last shard are not of this run.
    chosen = choose_parts([part for part in parts if shard_count is None or part.last < shard_count])
    for one, other in find_overlaps(chosen):
        both = part_uri(output_uri, "images", run, other)
        raise damaged(both, f"{one.name} beside it holds some of the same shards, so that rows would count twice")
    return chosen


def listed_parts(storage: Storage, output_uri: str, table: TableName, run: str) -> list[tuple[Part, ObjectInfo]]:
    """List all parts of a run in a table, including those that do not count."""
    return list(_list_parts(storage, partition_folder(output_uri, table, run)))


def _named_parts(
    storage: Storage, output_uri: str, run: str, prefixes: Sequence[str] = (SINGLE, COMPACTED)
) -> Iterator[Part]:
    """List the parts of a run in `images` by their names, those with each prefix in turn.

    Compacted parts come last, because a listing is not a snapshot: while the parts of single shards are listed, a
    compacted part may replace some of them. It is written before they are removed, so that it is found afterwards.
    """
    folder = partition_folder(output_uri, "images", run)
    for prefix in prefixes:
        for name in storage.list_names(folder, prefix):
            part = parse_part(name)
            if part is not None:
                yield part


def _list_parts(storage: Storage, folder: str) -> Iterator[tuple[Part, ObjectInfo]]:
    for listed in storage.list(folder, missing_ok=True):
        part = parse_part(base_name(listed.uri))
        if part is not None:
            yield part, listed
