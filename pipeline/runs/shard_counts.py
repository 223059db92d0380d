"""Shard counts: what the rows of each committed shard add up to, recorded so that a resumed run need not read them.

The driver writes them as it goes, many shards in one file: `runs/<run>/counts/counts-00007-9f3c01ab.parquet`. They are
derived data: a shard without counts, or whose file is damaged, is counted from its rows. Where several files have a
shard, the one with the highest number counts. A shard that is not committed any more is voided in a file of its own
kind, `voids-00008-….parquet`, before it may be committed again: so a damaged file never lets older counts stand for
newer rows.
"""

import io
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.messages import ShardResult
from pipeline.output.layout import counts_folder
from pipeline.output.part_files import read_part
from pipeline.storage.damage import damaged
from pipeline.storage.storage import Storage
from pipeline.storage.uris import base_name, join

_STATUSES = pa.list_(pa.struct([pa.field("status", pa.string()), pa.field("images", pa.int32())]))
FAILURE_TYPE = pa.struct([(name, pa.string()) for name in ("uri", "status", "reason")])
_VERSION_KEY, _VERSION = b"htc_counts_version", b"1"
COUNTS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        # Null where the shard is not committed any more; it counts as one without counts.
        pa.field("images", pa.int32()),
        pa.field("statuses", _STATUSES, nullable=False),
        pa.field("instances", pa.int64(), nullable=False),
        pa.field("repeats", pa.int32(), nullable=False),
        pa.field("failures", pa.list_(FAILURE_TYPE), nullable=False),
    ],
    metadata={_VERSION_KEY: _VERSION},
)
"""A row for each shard: its images, by status; its rows of `instances`; how many of the images that are not ok were
not ok before the run either; and those images."""
ROW_COLUMNS = ("image_id", "uri", "status", "error", "instances")
"""The columns of `images` that `counts_of_rows` needs."""

COUNTS_NAME = re.compile(r"(?:counts|voids)-(\d{5,})-[0-9a-f]{8}\.parquet")


@dataclass(frozen=True, order=True)
class CountsFile:
    """A file with counts of shards, or with shards that are voided."""

    number: int
    uri: str

    @property
    def is_void(self) -> bool:
        """Whether it voids shards: what it says of them, no older file can be asked for."""
        return base_name(self.uri).startswith("voids-")


def counts_uri(output_uri: str, run: str, number: int, *, is_void: bool = False) -> str:
    """Return a new name for the file `number`; drivers that do not know of each other never choose the same."""
    kind = "voids" if is_void else "counts"
    return join(counts_folder(output_uri, run), f"{kind}-{number:05d}-{secrets.token_hex(4)}.parquet")


def list_counts(storage: Storage, output_uri: str, run: str) -> list[CountsFile]:
    """List the files of a run, the ones that count first.

    Raises:
        StorageError: storage failed.
    """
    folder = counts_folder(output_uri, run)
    names = (match for name in storage.list_names(folder) if (match := COUNTS_NAME.fullmatch(name)))
    return sorted((CountsFile(int(name[1]), join(folder, name[0])) for name in names), reverse=True)


def read_counts(storage: Storage, uri: str) -> pa.Table | None:
    """Read a file; None when another release wrote it in another form.

    Raises:
        DamagedFileError: it is damaged.
        NotFoundError: it does not exist.
        StorageError: storage failed.
    """
    table = read_part(storage, uri, pa.schema([COUNTS_SCHEMA.field("shard")]))
    if (table.schema.metadata or {}).get(_VERSION_KEY) != _VERSION:
        return None
    if not table.schema.equals(COUNTS_SCHEMA):
        raise damaged(uri, "it has other columns than its version")
    table = table.combine_chunks()
    problem = _problem_of(table)
    if problem:
        raise damaged(uri, problem)
    return table


def _problem_of(table: pa.Table) -> str:
    shards = np.asarray(table.column("shard"))
    images = np.asarray(table.column("images").fill_null(0))
    if len(np.unique(shards)) < len(shards):
        return "it has a shard twice"
    by_status = pc.list_flatten(table.column("statuses")).combine_chunks()
    if not np.array_equal(_sums(table.column("statuses"), np.asarray(by_status.field("images"))), images):
        return "its images by status are not its images"
    ok = np.where(np.asarray(pc.equal(by_status.field("status"), "ok")), np.asarray(by_status.field("images")), 0)
    failures = np.asarray(pc.list_value_length(table.column("failures")))
    if not np.array_equal(images - _sums(table.column("statuses"), ok), failures):
        return "it names more or fewer images that are not ok than it counts"
    return ""


def _sums(lists: pa.ChunkedArray, values: NDArray[np.int32]) -> NDArray[np.int64]:
    """Sum the flattened values of each list; [lists] int64."""
    ends = np.cumsum(np.asarray(pc.list_value_length(lists)))
    totals = np.append(0, np.cumsum(values, dtype=np.int64))
    return np.asarray(np.diff(totals[np.append(0, ends).astype(np.int64)]))


def encode_counts(table: pa.Table) -> bytes:
    """Encode counts as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def counts_of_reports(reports: Sequence[ShardResult]) -> pa.Table:
    """Return the counts of committed shards, as their workers or the driver reported them."""
    columns: dict[str, list[Any]] = {
        "shard": [report.index for report in reports],
        "images": [report.images for report in reports],
        "statuses": [
            [{"status": status, "images": count} for status, count in report.statuses.items()] for report in reports
        ],
        "instances": [report.instances for report in reports],
        "repeats": [report.repeats for report in reports],
        "failures": [
            [{"uri": each.uri, "status": each.status, "reason": each.reason} for each in report.failures]
            for report in reports
        ],
    }
    return pa.Table.from_pydict(columns, schema=COUNTS_SCHEMA)


def void_counts(shards: Sequence[int]) -> pa.Table:
    """Return counts that say of shards that they are not committed."""
    count = len(shards)
    columns: dict[str, list[Any]] = {
        "shard": list(shards),
        "images": [None] * count,
        "statuses": [[]] * count,
        "instances": [0] * count,
        "repeats": [0] * count,
        "failures": [[]] * count,
    }
    return pa.Table.from_pydict(columns, schema=COUNTS_SCHEMA)


def counts_of_rows(
    rows: pa.Table, shards: NDArray[np.int64], find_repeats: Callable[[], NDArray[np.int64]]
) -> pa.Table:
    """Count rows of `images` by shard.

    Args:
        rows: with the columns ROW_COLUMNS, [N] rows.
        shards: of each row, [N] int64, ascending.
        find_repeats: returns the ids, [N] int64, of the images that were not ok before the run; called only when a row
            is not ok.
    """
    numbers, first = np.unique(shards, return_index=True)
    places = np.searchsorted(numbers, shards)
    statuses = rows.column("status").combine_chunks().dictionary_encode()
    names, codes = statuses.dictionary, np.asarray(statuses.indices)
    kinds = max(1, len(names))
    by_status = np.bincount(places * kinds + codes, minlength=len(numbers) * kinds).reshape(len(numbers), kinds)
    at, kind = np.nonzero(by_status)
    has_failed = np.asarray(pc.not_equal(rows.column("status"), "ok"))
    failed = rows.filter(pa.array(has_failed))
    repeats = np.zeros(len(rows), bool)
    if len(failed):
        repeats = has_failed & np.isin(np.asarray(rows.column("image_id")), find_repeats())
    failures = pa.StructArray.from_arrays(
        [
            failed.column("uri").combine_chunks(),
            failed.column("status").combine_chunks(),
            failed.column("error").fill_null("").combine_chunks(),
        ],
        fields=list(FAILURE_TYPE),
    )
    kept = pa.StructArray.from_arrays(
        [names.take(pa.array(kind)), pa.array(by_status[at, kind].astype(np.int32))], fields=list(_STATUSES.value_type)
    )
    columns = [
        pa.array(numbers.astype(np.int32)),
        pa.array(np.bincount(places, minlength=len(numbers)).astype(np.int32)),
        _lists(np.bincount(at, minlength=len(numbers)), kept, _STATUSES),
        pa.array(_grouped(np.asarray(rows.column("instances")), first)),
        pa.array(np.bincount(places[repeats], minlength=len(numbers)).astype(np.int32)),
        _lists(np.bincount(places[has_failed], minlength=len(numbers)), failures, pa.list_(FAILURE_TYPE)),
    ]
    return pa.Table.from_arrays(columns, schema=COUNTS_SCHEMA)


def _grouped(values: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.add.reduceat(values.astype(np.int64), first) if len(first) else np.empty(0, np.int64)


def _lists(lengths: NDArray[np.int64], values: pa.Array, kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32)), values, type=kind)
