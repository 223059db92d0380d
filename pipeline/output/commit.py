"""Writing one shard's parts: the part of `images` comes last, and its appearance is the commit."""

import io
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.parts import Part, committed_parts, part_uri
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    pass
from pipeline.output.rows import ImageRow, InstanceRow
from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, RUN_NAME


def images_part(output_uri: str, run: str, shard: int) -> str:
    """Name a shard's part of `images`; its existence commits the shard."""
    return part_uri(output_uri, "images", run, Part(shard, shard))


def instances_part(output_uri: str, run: str, shard: int) -> str:
    """Name a shard's part of `instances`; it counts only beside its part of `images`."""
    return part_uri(output_uri, "instances", run, Part(shard, shard))


def commit_shard(  # noqa: PLR0917 - where, then what: the order of the folder names, then of the tables
    storage: Storage,
    output_uri: str,
    run: str,
    shard_index: int,
    image_rows: Sequence[ImageRow],
    instance_rows: Sequence[InstanceRow],
    *,
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """Write a shard's two parts, the images part last, because it commits.

    Args:
        confirm: called between the two; raises when the second may not be written any more.

    Raises:
        StorageError: a part cannot be written; the shard is not committed then.
    """
    instances = encode_part(instance_rows, INSTANCES_SCHEMA, InstanceRow, run=run)
    images = encode_part(image_rows, IMAGES_SCHEMA, ImageRow, run=run)
    storage.write(instances_part(output_uri, run, shard_index), instances)
    confirm()
    storage.write(images_part(output_uri, run, shard_index), images)


def encode_part(rows: Sequence[Any], schema: pa.Schema, kind: type, *, run: str) -> bytes:
    """Encode rows (dataclasses whose fields are the schema's columns) of a run as one Parquet file, Zstandard."""
    names = [field.name for field in fields(kind)]
    columns = list(zip(*([getattr(row, name) for name in names] for row in rows), strict=True))
    arrays = [
        pa.array(columns[index] if columns else [], type=schema.field(name).type) for index, name in enumerate(names)
    ]
    return encode_table(pa.Table.from_arrays(arrays, schema=schema), run)


def encode_table(table: pa.Table, run: str) -> bytes:
    """Encode rows of a run as one Parquet file, with the run's name and with checksums, which tell a damaged page."""
    sink = io.BytesIO()
    pq.write_table(with_run_name(table, run), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def with_run_name(table: pa.Table, run: str) -> pa.Table:
    """Append the run's name to rows as files hold them."""
    return table.append_column(RUN_NAME, pa.array([run], pa.string()).take(pa.array([0] * len(table), pa.int8())))


def committed_shards(storage: Storage, output_uri: str, run: str) -> set[int]:
    """Return the shards whose images part is there, also when it was compacted with others.

    Raises:
        DamagedFileError: two files hold the same shards.
    """
    return {shard for part in committed_parts(storage, output_uri, run) for shard in part.shards}
