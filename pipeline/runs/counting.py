"""Counts the committed rows of a run: from the recorded counts of its shards, and from the rows of the others."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import DamagedFileError, NotFoundError, RunError, StorageError
from pipeline.messages import ShardResult
from pipeline.output.part_files import open_part, read_part
from pipeline.output.parts import CommittedShards, Part, committed_shards, part_uri
from pipeline.output.schema import IMAGES_SCHEMA
from pipeline.runs.row_counts import RowCounts
from pipeline.runs.shard_counts import (
    COUNTS_SCHEMA,
    ROW_COLUMNS,
    CountsFile,
    counts_of_reports,
    counts_of_rows,
    counts_uri,
    encode_counts,
    list_counts,
    read_counts,
    void_counts,
)
from pipeline.storage.damage import advice, warn
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local

log = logging.getLogger(__name__)

# Fewer shards are not worth a file: the next session reads their rows in less than a second.
LEAST_SHARDS = 64
# A killed driver leaves at most so many committed shards without counts; a million shards are a thousand files.
MOST_SHARDS = 1024
# In between, a file has this share of the shards recorded so far.
SHARE = 16
# Files that are read at once.
LOCAL_THREADS, REMOTE_THREADS = 8, 32
# Parts whose rows are in memory at once: some 10 MB.
BATCH_PARTS = 256

# Parts may be compacted or pruned while they are read.
ATTEMPTS = 3

T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True)
class RecordedCounts:
    """What is recorded of a run.

    rows: the counts of the recorded shards. is_counted: which of the planned shards these are, [shards] bool.
    voided: recorded shards that are not committed, ascending. next_number: of the next file.
    """

    rows: RowCounts
    is_counted: NDArray[np.bool_]
    voided: list[int]
    next_number: int


def count_recorded(storage: Storage, output_uri: str, run: str, is_committed: NDArray[np.bool_]) -> RecordedCounts:
    """Add up the recorded counts of the committed shards of a run; files that are damaged are left out (logged).

    Args:
        is_committed: of each planned shard, [shards] bool.

    Raises:
        StorageError: storage failed.
    """
    rows = RowCounts()
    is_known, is_counted = np.zeros_like(is_committed), np.zeros_like(is_committed)
    voided: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    files = list_counts(storage, output_uri, run)

    def read(file: CountsFile) -> tuple[CountsFile, pa.Table | None]:
        try:
            return file, read_counts(storage, file.uri)
        except DamagedFileError as error:
            # Its shards are counted from their rows.
            warn(error)
        except NotFoundError:
            log.info("%s was replaced while it was read", file.uri)
        return file, None

    for file, table in _read_ahead(read, files, _threads(output_uri)):
        if table is None and file.is_void:
            # It may void any shard of the older files.
            break
        if table is None:
            continue
        shards = np.asarray(table.column("shard"), np.int64)
        is_planned = (shards >= 0) & (shards < len(is_committed))
        places = np.where(is_planned, shards, 0)
        is_newest = is_planned & ~is_known[places]
        is_known[shards[is_newest]] = True
        has_counts = is_newest & np.asarray(table.column("images").is_valid())
        is_taken = has_counts & is_committed[places]
        is_counted[shards[is_taken]] = True
        voided.append(shards[has_counts & ~is_taken])
        rows.add_counts(table if is_taken.all() else table.filter(pa.array(is_taken)))
    return RecordedCounts(
        rows, is_counted, np.sort(np.concatenate(voided)).tolist(), files[0].number + 1 if files else 0
    )


def count_shards(
    storage: Storage,
    output_uri: str,
    run: str,
    committed: CommittedShards,
    *,
    is_wanted: NDArray[np.bool_],
    find_repeats: Callable[[], NDArray[np.int64]],
) -> Iterator[pa.Table]:
    """Count committed shards from their rows, some at a time; yields tables of `shard_counts.COUNTS_SCHEMA`.

    Args:
        committed: the shards of the run that are committed, as listed.
        is_wanted: which of the planned shards to count, [shards] bool; all of them committed.
        find_repeats: see `shard_counts.counts_of_rows`.

    Raises:
        DamagedFileError: a part is damaged.
        NotFoundError: a part does not exist any more.
        StorageError: storage failed.
    """
    find_repeats = cache(find_repeats)
    is_single = is_wanted.copy()
    for part in committed.compacted:
        is_single[part.first : part.last + 1] = False
        if is_wanted[part.first : part.last + 1].any():
            yield _count_compacted(storage, part_uri(output_uri, "images", run, part), is_wanted, find_repeats)

    def read(shard: int) -> pa.Table:
        uri = part_uri(output_uri, "images", run, Part(shard, shard))
        return read_part(storage, uri, IMAGES_SCHEMA, ROW_COLUMNS).select(ROW_COLUMNS).replace_schema_metadata(None)

    singles = np.flatnonzero(is_single)
    tables = _read_ahead(read, singles.tolist(), _threads(output_uri))
    for start in range(0, len(singles), BATCH_PARTS):
        batch = list(islice(tables, BATCH_PARTS))
        shards = np.repeat(singles[start : start + BATCH_PARTS], [len(table) for table in batch])
        yield counts_of_rows(pa.concat_tables(batch), shards, find_repeats)


def count_run(
    storage: Storage,
    output_uri: str,
    run: str,
    *,
    shard_count: int,
    find_repeats: Callable[[], NDArray[np.int64]],
    committed: CommittedShards | None = None,
) -> RowCounts:
    """Count the rows of a run; begin again when its parts are compacted or pruned meanwhile.

    Args:
        shard_count: planned shards; parts of later ones are ignored.
        find_repeats: see `shard_counts.counts_of_rows`.
        committed: as listed; None to list them.

    Raises:
        DamagedFileError: a part that has to be read is damaged or missing.
        StorageError: storage failed, or parts were compacted or pruned at each of ATTEMPTS attempts.
    """
    for _ in range(ATTEMPTS):
        if committed is None:
            committed = committed_shards(storage, output_uri, run)
        try:
            is_committed = committed.mask(shard_count)
            recorded = count_recorded(storage, output_uri, run, is_committed)
            left = is_committed & ~recorded.is_counted
            for counts in count_shards(storage, output_uri, run, committed, is_wanted=left, find_repeats=find_repeats):
                recorded.rows.add_counts(counts)
            return recorded.rows
        except NotFoundError as error:
            now = committed_shards(storage, output_uri, run)
            if now == committed and now.compacted == committed.compacted:
                raise missing_part(error, output_uri) from error
            committed = now
    raise StorageError(
        f"{output_uri} was compacted or pruned again and again while it was read; run the command again."
    )


def missing_part(error: NotFoundError, output_uri: str) -> DamagedFileError:
    """Return the error for a part that is listed and cannot be found."""
    return DamagedFileError(f"{str(error).rstrip('.')}, although its shard is committed; {advice(output_uri)}")


def _threads(uri: str) -> int:
    return LOCAL_THREADS if is_local(uri) else REMOTE_THREADS


def _read_ahead(read: Callable[[T], V], wanted: Iterable[T], threads: int) -> Iterator[V]:
    """Yield what `read` returns, in order; at most twice as many results as threads are in memory."""
    coming = iter(wanted)
    with ThreadPoolExecutor(threads, thread_name_prefix="count") as pool:
        begun: deque[Future[V]] = deque(pool.submit(read, each) for each in islice(coming, 2 * threads))
        try:
            while begun:
                found = begun.popleft().result()
                begun.extend(pool.submit(read, each) for each in islice(coming, 1))
                yield found
        finally:
            for each in begun:
                each.cancel()


def _count_compacted(
    storage: Storage, uri: str, is_wanted: NDArray[np.bool_], find_repeats: Callable[[], NDArray[np.int64]]
) -> pa.Table:
    """Count shards of a compacted part, whose rows may be in any order."""
    columns = [*ROW_COLUMNS, "shard"]
    kept = [pa.schema([IMAGES_SCHEMA.field(name) for name in columns]).empty_table()]
    with open_part(storage, uri, IMAGES_SCHEMA) as file:
        for batch in file.iter_batches(columns=columns):
            rows = pa.Table.from_batches([batch]).select(columns).replace_schema_metadata(None)
            shards = np.asarray(rows.column("shard"))
            is_planned = (shards >= 0) & (shards < len(is_wanted))
            rows = rows.filter(pa.array(is_planned & is_wanted[np.where(is_planned, shards, 0)]))
            # Names of images that are ok are most of the bytes, and are not needed.
            is_ok = pc.equal(rows.column("status"), "ok")
            uris = pc.if_else(is_ok, "", rows.column("uri"))
            kept.append(rows.set_column(columns.index("uri"), kept[0].schema.field("uri"), uris))
    rows = pa.concat_tables(kept).sort_by("shard")
    return counts_of_rows(rows, np.asarray(rows.column("shard"), np.int64), find_repeats)


def record_unrecorded(
    storage: Storage,
    output_uri: str,
    run: str,
    *,
    shard_count: int,
    find_repeats: Callable[[], NDArray[np.int64]],
    check_lease: Callable[[], None],
) -> None:
    """Record the counts of a run's committed shards that have none; the caller holds the lease.

    Args:
        shard_count, find_repeats: see `count_run`. check_lease: see `CountsRecorder`.

    Raises:
        RunError: the lease is lost.
        DamagedFileError: a part that has to be read is damaged.
        StorageError: storage failed.
    """
    committed = committed_shards(storage, output_uri, run)
    is_committed = committed.mask(shard_count)
    recorded = count_recorded(storage, output_uri, run, is_committed)
    recorder = CountsRecorder(storage, output_uri, run, check_lease=check_lease, next_number=recorded.next_number)
    recorder.void(recorded.voided)
    left = is_committed & ~recorded.is_counted
    for counts in count_shards(storage, output_uri, run, committed, is_wanted=left, find_repeats=find_repeats):
        recorder.add_counts(counts)
    recorder.flush(least_shards=1)


class CountsRecorder:
    """Writes the counts of committed shards as a run proceeds; called from one thread, by the holder of the lease.

    The order is safe against a kill at any instant: counts are written after the commit that they are of, and shards
    that are not committed any more are voided before one of them can be committed again.
    """

    def __init__(
        self,
        storage: Storage,
        output_uri: str,
        run: str,
        *,
        check_lease: Callable[[], None],
        next_number: int = 0,
        recorded: int = 0,
        least_shards: int = LEAST_SHARDS,
    ) -> None:
        """Record from the file `next_number` on.

        Args:
            check_lease: raises RunError when the lease is lost.
            recorded: how many shards are recorded already. least_shards: of a file.
        """
        self._storage = storage
        self._output_uri = output_uri
        self._run = run
        self._check_lease = check_lease
        self._next_number = next_number
        self._recorded = recorded
        self._least_shards = least_shards
        self._reports: list[ShardResult] = []
        self._counts: list[pa.Table] = []
        self._waiting = 0

    def void(self, shards: list[int]) -> None:
        """Record that shards are not committed any more.

        Raises:
            RunError: the lease is lost.
            StorageError: it cannot be written; then none of the shards may be committed.
        """
        if shards:
            self._check_lease()
            self._write(void_counts(shards), is_void=True)

    def add(self, report: ShardResult) -> None:
        """Record a committed shard, now or with later ones."""
        self._reports.append(report)
        self._added(1)

    def add_counts(self, counts: pa.Table) -> None:
        """Record the counts of committed shards, now or with later ones."""
        self._counts.append(counts)
        self._added(len(counts))

    def flush(self, *, least_shards: int | None = None) -> None:
        """Write what is not written yet, if it is `least_shards` or more; what cannot be written is dropped (logged).

        What is dropped is counted from its rows by the next session.
        """
        least = self._least_shards if least_shards is None else least_shards
        if not self._waiting or self._waiting < least:
            return
        counts = pa.concat_tables([COUNTS_SCHEMA.empty_table(), *self._counts, counts_of_reports(self._reports)])
        self._reports, self._counts, self._waiting = [], [], 0
        try:
            self._check_lease()
            self._write(counts)
        except RunError:
            # Taking new shards and writing the summary check the lease too, and report it.
            log.info("the lease on run %s is lost; the counts of %d shards are not written", self._run, len(counts))
        except StorageError as error:
            log.warning("the counts of %d shards were not written, which makes a resume slower: %s", len(counts), error)

    def _added(self, shards: int) -> None:
        self._waiting += shards
        if self._waiting >= max(self._least_shards, min(MOST_SHARDS, self._recorded // SHARE)):
            self.flush()

    def _write(self, counts: pa.Table, *, is_void: bool = False) -> None:
        uri = counts_uri(self._output_uri, self._run, self._next_number, is_void=is_void)
        # Also after a failure: the file may have been written all the same.
        self._next_number += 1
        self._storage.write(uri, encode_counts(counts))
        self._recorded += len(counts)
