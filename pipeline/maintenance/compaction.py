"""Many small parts of a complete run into few large ones, with every row seen exactly once at every instant.

A worker writes a part per shard, so that a run of a million images leaves thousands of files, and a query spends its
time on opening them. A stretch of neighbouring shards becomes one file of each table: instances first, then images,
whose appearance is the switch (`pipeline.output.parts`), and only then are the small ones removed. Killed at any
instant, what is there still counts once, and the next call finishes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.concurrency import delete_all
from pipeline.errors import StorageError
from pipeline.output.layout import COMMIT_ORDER, TableName
from pipeline.output.merge import count_rows, merge_parts
from pipeline.output.parts import Part, choose_parts, listed_parts, part_uri
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class Compacted:
    """What compacting a run came to; files and bytes are of both tables together.

    stretches: large files made of each table.
    """

    run: str
    stretches: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Stretch:
    """Neighbouring single parts that become one."""

    parts: tuple[Part, ...]

    @property
    def part(self) -> Part:
        """The large part that stands for them."""
        return Part(self.parts[0].first, self.parts[-1].last, is_compacted=True)


Sizes = Mapping[TableName, Mapping[Part, int]]


def plan_stretches(parts: Sequence[Part], sizes: Sizes, target_bytes: int) -> list[Stretch]:
    """Choose which single parts become one.

    Args:
        parts: those that count, in the order of shards; compacted ones stay as they are.
        sizes: bytes of each part, by table.
        target_bytes: what the parts of a stretch may come to in one table.
    """
    stretches: list[Stretch] = []
    group: list[Part] = []
    totals = dict.fromkeys(COMMIT_ORDER, 0)

    def close() -> None:
        # One file made of one file would be work for nothing.
        if len(group) > 1:
            stretches.append(Stretch(tuple(group)))
        group.clear()
        totals.update(dict.fromkeys(COMMIT_ORDER, 0))

    for part in parts:
        is_next = bool(group) and part.first == group[-1].last + 1
        is_full = any(totals[table] + sizes[table].get(part, 0) > target_bytes for table in COMMIT_ORDER)
        if part.is_compacted or not is_next or is_full:
            close()
        if not part.is_compacted:
            group.append(part)
            for table in COMMIT_ORDER:
                totals[table] += sizes[table].get(part, 0)
    close()
    return stretches


def compact_run(
    storage: Storage, output_uri: str, run: str, *, target_bytes: int, check: Callable[[], None]
) -> Compacted:
    """Compact a complete run; the caller holds its lease.

    Args:
        check: raises when the lease is lost; asked before anything is switched or removed.

    Raises:
        RunError: the lease was lost. What is there still counts once.
        DamagedFileError: a small part is damaged or missing.
        StorageError: storage failed, or what was written does not hold the rows that it should; likewise.
    """
    before = {table: dict(listed_parts(storage, output_uri, table, run)) for table in COMMIT_ORDER}
    sizes = {table: {part: listed.bytes or 0 for part, listed in before[table].items()} for table in COMMIT_ORDER}
    counting = choose_parts(list(before["images"]))
    check()
    _remove_others(storage, output_uri, run, {table: set(before[table]) for table in COMMIT_ORDER}, set(counting))
    stretches = plan_stretches(counting, sizes, target_bytes)
    for stretch in stretches:
        _switch(storage, output_uri, run, stretch, check)
    after = {table: dict(listed_parts(storage, output_uri, table, run)) for table in COMMIT_ORDER}
    return Compacted(
        run=run,
        stretches=len(stretches),
        files_before=sum(map(len, before.values())),
        files_after=sum(map(len, after.values())),
        bytes_before=sum(sum(each.values()) for each in sizes.values()),
        bytes_after=sum(listed.bytes or 0 for each in after.values() for listed in each.values()),
    )


def _switch(storage: Storage, output_uri: str, run: str, stretch: Stretch, check: Callable[[], None]) -> None:
    """Write a stretch's two files, the one of images last, and remove what they stand for."""
    for table in COMMIT_ORDER:
        sources = [part_uri(output_uri, table, run, part) for part in stretch.parts]
        merged = merge_parts(storage, sources, table)
        target = part_uri(output_uri, table, run, stretch.part)
        check()
        storage.write(target, merged.payload)
        found = count_rows(storage, target, table)
        if found != merged.rows:
            raise StorageError(f"{target} holds {found} rows instead of {merged.rows}; the small parts are kept.")
    check()
    for table in reversed(COMMIT_ORDER):
        delete_all(storage.delete, (part_uri(output_uri, table, run, part) for part in stretch.parts))


def _remove_others(
    storage: Storage, output_uri: str, run: str, present: Mapping[TableName, set[Part]], counting: set[Part]
) -> None:
    """Remove what a compaction that was cut off left: small files that a large one stands for, large ones of
    instances without theirs of images."""
    for table in reversed(COMMIT_ORDER):
        delete_all(storage.delete, (part_uri(output_uri, table, run, part) for part in present[table] - counting))
