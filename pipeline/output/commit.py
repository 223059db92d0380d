"""Commit of a shard: writes its parts, the part of `images` last, which commits the shard."""

import io
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.map_rows import ROW_KINDS, MapRows
from pipeline.output.parts import Part, part_uri
from pipeline.output.rows import ImageRow, InstanceRow
from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, MAP_SCHEMAS, RUN_NAME
from pipeline.storage.storage import Storage


def images_part(output_uri: str, run: str, shard: int) -> str:
    """Return the uri of a shard's part of `images`; a shard is committed when it exists."""
    return part_uri(output_uri, "images", run, Part(shard, shard))


def instances_part(output_uri: str, run: str, shard: int) -> str:
    """Return the uri of a shard's part of `instances`; it counts only when the part of `images` exists."""
    return part_uri(output_uri, "instances", run, Part(shard, shard))


def commit_shard(  # noqa: PLR0917 - where, then what: the order of the folder names, then of the tables
    storage: Storage,
    output_uri: str,
    run: str,
    shard_index: int,
    image_rows: Sequence[ImageRow],
    instance_rows: Sequence[InstanceRow],
    *,
    maps: MapRows | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """Write a shard's parts, the part of `images` last, which commits the shard.

    Args:
        maps: the rows of the tables of maps that the run has, each of which gets a part; None where it has none.
        confirm: called before the part of `images` is written; raises when this attempt may not commit the shard.

    Raises:
        StorageError: a part cannot be written; the shard is not committed.
    """
    instances = encode_part(instance_rows, INSTANCES_SCHEMA, InstanceRow, run=run)
    images = encode_part(image_rows, IMAGES_SCHEMA, ImageRow, run=run)
    for table, rows in (maps or {}).items():
        payload = encode_part(rows, MAP_SCHEMAS[table], ROW_KINDS[table], run=run)
        storage.write(part_uri(output_uri, table, run, Part(shard_index, shard_index)), payload)
    storage.write(instances_part(output_uri, run, shard_index), instances)
    confirm()
    storage.write(images_part(output_uri, run, shard_index), images)


def encode_part(rows: Sequence[Any], schema: pa.Schema, kind: type, *, run: str) -> bytes:
    """Encode rows of a run as a Parquet file.

    Args:
        rows: of type `kind`, a dataclass whose fields are the columns of `schema`, in their order.
        run: for the column `run_name`.
    """
    names = [field.name for field in fields(kind)]
    columns = list(zip(*([getattr(row, name) for name in names] for row in rows), strict=True))
    arrays = [pa.array(columns[index] if columns else [], type=field.type) for index, field in enumerate(schema)]
    return encode_table(pa.Table.from_arrays(arrays, schema=schema), run)


def encode_table(table: pa.Table, run: str) -> bytes:
    """Encode rows of a run as a Parquet file: Zstandard, a column `run_name`, a checksum of each page."""
    sink = io.BytesIO()
    pq.write_table(with_run_name(table, run), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def with_run_name(table: pa.Table, run: str) -> pa.Table:
    """Append the column `run_name`."""
    return table.append_column(RUN_NAME, pa.array([run], pa.string()).take(pa.array([0] * len(table), pa.int8())))
