"""Merges several Parquet parts of a table into one: the same rows in the same order of shards."""

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import NotFoundError, StorageError
from pipeline.output.commit import with_run_name
from pipeline.output.layout import TableName
from pipeline.output.part_files import check_columns, open_part, read_part
from pipeline.output.parts import run_of
from pipeline.output.schema import RUN_NAME, TABLE_SCHEMAS, stored_schema
from pipeline.storage.damage import missing
from pipeline.storage.storage import Storage

# So many parts are in memory at once, each with the rows of some hundred images.
PARTS_AT_ONCE = 16
# No check while reading: `_read_part` checks the columns, with an error of its own for those of a later version.
_ANY = pa.schema([])
SCHEMAS = {table: stored_schema(schema) for table, schema in TABLE_SCHEMAS.items()}
# About 5 MiB of instances, of which a lookup of one image reads the pages that it needs; DuckDB's own size is 122,880.
# The masks of maps are ten times as long: their outlines are those of the whole image.
ROW_GROUP_ROWS: Mapping[TableName, int] = {
    "images": 32_768,
    "instances": 32_768,
    "semantic": 8_192,
    "panoptic": 8_192,
}
# A lookup reads whole pages; 64 KiB holds the masks of some 50 images.
PAGE_BYTES = 64 << 10
# Rows are sorted by uri, so statistics say which row groups hold a uri; the ids are hashes, and a Bloom filter says it
# of them. ndv: how many ids of a row group keep the share of false hits (fpp), with four instances an image.
BLOOM_FILTERS: Mapping[TableName, dict[str, dict[str, float]]] = {
    "images": {"image_id": {"ndv": 32_768, "fpp": 0.01}},
    "instances": {"image_id": {"ndv": 8_192, "fpp": 0.01}},
    "semantic": {"image_id": {"ndv": 2_048, "fpp": 0.01}},
    "panoptic": {"image_id": {"ndv": 2_048, "fpp": 0.01}},
}
# The columns whose values repeat; for the others a dictionary costs time and space.
DICTIONARIES: Mapping[TableName, list[str]] = {
    "images": ["width", "height", "shard", "status", "error", "attempts", "instances", "model", "crs", "run_name"],
    "instances": [
        *("image_id", "uri", "instance", "category_id", "category", "mask.size.list.element", "model", "run_name"),
    ],
    "semantic": ["image_id", "uri", "class_id", "class", "mask.size.list.element", "model", "run_name"],
    "panoptic": [
        *("image_id", "uri", "segment", "category_id", "category", "instance"),
        *("mask.size.list.element", "model", "run_name"),
    ],
}
ORDER: Mapping[TableName, list[tuple[str, str]]] = {
    "images": [("uri", "ascending")],
    "instances": [("uri", "ascending"), ("instance", "ascending")],
    "semantic": [("uri", "ascending"), ("class_id", "ascending")],
    "panoptic": [("uri", "ascending"), ("segment", "ascending")],
}


@dataclass(frozen=True)
class Merged:
    """A merged part: the Parquet file and its number of rows."""

    payload: bytes
    rows: int


def merge_parts(storage: Storage, uris: Sequence[str], table: TableName) -> Merged:
    """Read parts of a run and encode them as one file.

    The rows of each part are sorted by uri, and of an image by instance, class or segment, and the parts stay in the
    given order. Images are planned in the order of their names, so the row groups' statistics show which of them hold a
    prefix.

    Raises:
        DamagedFileError: a part is damaged, or missing.
        StorageError: a part cannot be read, or was written by a later version.
    """
    schema, rows, expected = SCHEMAS[table], 0, 0
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        write_page_index=True,
        write_page_checksum=True,
        data_page_size=PAGE_BYTES,
        use_dictionary=DICTIONARIES[table],
        bloom_filter_options=BLOOM_FILTERS[table],
    ) as writer:
        waiting: list[pa.Table] = []
        for part in _read_parts(storage, uris, schema):
            expected += len(part)
            waiting.append(part if _is_sorted(part, table) else part.sort_by(ORDER[table]))
            if sum(map(len, waiting)) >= ROW_GROUP_ROWS[table]:
                rows += _write_groups(writer, waiting, ROW_GROUP_ROWS[table])
        if waiting or not rows:
            last = pa.concat_tables(waiting or [schema.empty_table()])
            writer.write_table(last, row_group_size=ROW_GROUP_ROWS[table])
            rows += len(last)
    if rows != expected:
        raise StorageError(f"{uris[0]} and its neighbours hold {expected} rows, but {rows} were written.")
    return Merged(sink.getvalue(), rows)


def count_rows(storage: Storage, uri: str, table: TableName) -> int:
    """Return the number of rows in a part's footer.

    Raises:
        DamagedFileError: the part is not a valid Parquet file, or not of the table.
        StorageError: storage failed.
    """
    with open_part(storage, uri, SCHEMAS[table]) as part:
        return int(part.metadata.num_rows)


def _is_sorted(part: pa.Table, table: TableName) -> bool:
    """Return whether the rows are in ORDER; workers write them so, and sorting copies all masks."""
    columns = [part.column(name).combine_chunks() for name, _ in ORDER[table]]
    later: pa.Array | None = None
    for column in reversed(columns):
        before, after = column[:-1], column[1:]
        is_later = pc.less(before, after)
        is_equal = pc.equal(before, after)
        later = pc.or_(is_later, is_equal if later is None else pc.and_(is_equal, later))
    return bool(pc.all(later).as_py())


def _write_groups(writer: pq.ParquetWriter, waiting: list[pa.Table], group_rows: int) -> int:
    """Write the full row groups of what is waiting, keep the rest, and return the number of rows written."""
    table = pa.concat_tables(waiting)
    count = len(table) // group_rows * group_rows
    writer.write_table(table.slice(0, count), row_group_size=group_rows)
    waiting[:] = [table.slice(count)]
    return count


def _read_parts(storage: Storage, uris: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
    def read(uri: str) -> pa.Table:
        return _read_part(storage, uri, schema)

    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        for start in range(0, len(uris), PARTS_AT_ONCE):
            yield from pool.map(read, uris[start : start + PARTS_AT_ONCE])


def _read_part(storage: Storage, uri: str, schema: pa.Schema) -> pa.Table:
    try:
        found = read_part(storage, uri, _ANY)
    except NotFoundError as error:
        # The caller holds the lease, so no other process has compacted or pruned the part.
        raise missing(uri, "its shard is committed, and its rows are needed") from error
    unknown = [name for name in found.schema.names if name not in schema.names]
    if unknown:
        raise StorageError(
            f"{uri} has columns that this version does not know ({', '.join(unknown)}); update htc-batch."
        )
    check_columns(uri, found.schema, schema)
    if RUN_NAME.name not in found.schema.names:
        found = with_run_name(found, run_of(uri))
    # Parts of an older release lack the columns that were added later; they are null there.
    table = pa.concat_tables([schema.empty_table(), found], promote_options="default")
    return table.select(schema.names).cast(schema)
