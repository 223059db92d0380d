"""Compaction: many small parts of a run into few large ones, with every row counted exactly once at every instant.

A worker writes a part per shard, so that a run of a million images leaves thousands of files, and a query spends its
time on opening them. A range of neighbouring shards becomes one file in each table: the one of images last,
which commits it (`pipeline.output.parts`); only then are the small files removed. Killed at any instant, every row
still counts once, and the next call finishes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.concurrency import delete_all
from pipeline.errors import StorageError
from pipeline.job_spec.map_tables import MAP_TABLES
from pipeline.output.layout import COMMIT_ORDER, TableName
from pipeline.output.merge import count_rows, merge_parts
from pipeline.output.parts import Part, choose_parts, coverage_of, listed_parts, part_uri
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class Compacted:
    """What the compaction of a run did; files and bytes are of its tables together.

    ranges: shard ranges, each of which became one file in each table.
    """

    run: str
    ranges: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class ShardRange:
    """Parts of neighbouring shards that become one part."""

    parts: tuple[Part, ...]

    @property
    def part(self) -> Part:
        """The large part that replaces them."""
        return Part(self.parts[0].first, self.parts[-1].last, is_compacted=True)


Sizes = Mapping[TableName, Mapping[Part, int]]


def plan_shard_ranges(
    parts: Sequence[Part], sizes: Sizes, target_bytes: int, *, only_full: bool = False
) -> list[ShardRange]:
    """Choose which parts of single shards become one.

    Args:
        parts: the committed parts, in the order of shards; compacted ones stay as they are.
        sizes: bytes of each part, by the run's tables.
        target_bytes: most bytes of parts in one range and table.
        only_full: leave out ranges to which the next shard could still be added.
    """
    ranges: list[ShardRange] = []
    group: list[Part] = []
    tables = tuple(sizes)
    totals = dict.fromkeys(tables, 0)

    def close(*, is_full: bool) -> None:
        # A range of one part would only be copied.
        if len(group) > 1 and (is_full or not only_full):
            ranges.append(ShardRange(tuple(group)))
        group.clear()
        totals.update(dict.fromkeys(tables, 0))

    for part in parts:
        is_next = bool(group) and part.first == group[-1].last + 1
        is_full = any(totals[table] + sizes[table].get(part, 0) > target_bytes for table in tables)
        if part.is_compacted or not is_next or is_full:
            # A compacted neighbour stays as it is, so that nothing will be added.
            close(is_full=is_next)
        if not part.is_compacted:
            group.append(part)
            for table in tables:
                totals[table] += sizes[table].get(part, 0)
    close(is_full=False)
    return ranges


def compact_run(
    storage: Storage, output_uri: str, run: str, *, target_bytes: int, check: Callable[[], None]
) -> Compacted:
    """Compact a run that has all rows; the caller holds its lease.

    Args:
        check: raises when the lease is lost; called before files are replaced or removed.

    Raises:
        RunError: the lease was lost. Every row still counts once.
        DamagedFileError: a small part is damaged or missing.
        StorageError: storage failed, or a large part does not hold the rows that it should; likewise.
    """
    before = list_tables(storage, output_uri, run)
    sizes = {table: {part: listed.bytes or 0 for part, listed in found.items()} for table, found in before.items()}
    committed = choose_parts(list(before["images"]))
    check()
    _remove_uncommitted(storage, output_uri, run, {table: set(each) for table, each in before.items()}, set(committed))
    ranges = plan_shard_ranges(committed, sizes, target_bytes)
    for shard_range in ranges:
        replace_parts(storage, output_uri, run, shard_range, check, tables=tuple(before))
    after = list_tables(storage, output_uri, run)
    return Compacted(
        run=run,
        ranges=len(ranges),
        files_before=sum(map(len, before.values())),
        files_after=sum(map(len, after.values())),
        bytes_before=sum(sum(each.values()) for each in sizes.values()),
        bytes_after=sum(listed.bytes or 0 for each in after.values() for listed in each.values()),
    )


def list_tables(storage: Storage, output_uri: str, run: str) -> dict[TableName, dict[Part, ObjectInfo]]:
    """List the parts of a run in each table that it has, in the order in which they are written.

    A run has a table of maps if it has a part of it: then every shard wrote one.
    """
    found = {table: dict(listed_parts(storage, output_uri, table, run)) for table in COMMIT_ORDER}
    return {table: parts for table, parts in found.items() if parts or table not in MAP_TABLES}


def replace_parts(
    storage: Storage,
    output_uri: str,
    run: str,
    shard_range: ShardRange,
    check: Callable[[], None],
    *,
    tables: Sequence[TableName],
) -> None:
    """Write a range's files, the one of images last, and remove the files that they replace.

    Args:
        check: raises when the lease is lost; called before files are replaced or removed.
        tables: those of the run, in the order in which parts are written.

    Raises:
        StorageError: storage failed, or a part is damaged; every row still counts once.
    """
    for table in tables:
        sources = [part_uri(output_uri, table, run, part) for part in shard_range.parts]
        merged = merge_parts(storage, sources, table)
        target = part_uri(output_uri, table, run, shard_range.part)
        check()
        storage.write(target, merged.payload)
        found = count_rows(storage, target, table)
        if found != merged.rows:
            raise StorageError(f"{target} holds {found} rows instead of {merged.rows}; the small parts are kept.")
    check()
    delete_all(
        storage.delete,
        (part_uri(output_uri, table, run, part) for table in reversed(tables) for part in shard_range.parts),
    )


def _remove_uncommitted(
    storage: Storage, output_uri: str, run: str, present: Mapping[TableName, set[Part]], committed: set[Part]
) -> None:
    """Remove what an interrupted compaction left: small files that a large one replaces, and large files of other
    tables without their file of images."""
    for table in reversed(tuple(present)):
        delete_all(storage.delete, (part_uri(output_uri, table, run, part) for part in present[table] - committed))


def remove_replaced(
    storage: Storage, output_uri: str, run: str, present: Mapping[TableName, set[Part]], chosen: Sequence[Part]
) -> None:
    """Remove what a killed compaction left in a run that goes on; files of shards that are not committed stay.

    Args:
        present: all parts, by table.
        chosen: the parts that count.
    """
    compacted = [part for part in chosen if part.is_compacted]
    covers, kept = coverage_of(compacted), set(compacted)
    for table in reversed(tuple(present)):
        stale = [part for part in present[table] if (part not in kept if part.is_compacted else covers(part.first))]
        delete_all(storage.delete, (part_uri(output_uri, table, run, part) for part in stale))
