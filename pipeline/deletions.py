"""The table `deletions`: images that were in the input once and are in its listing no more; marked, not forgotten.

A run's marks count once its planning is complete (run.json says so): they are written before that, and again when
planning was cut off in between.
"""

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotFoundError, StorageError
from pipeline.storage import Storage, join

if TYPE_CHECKING:
    from pipeline.records import RunRecord
    from pipeline.results import Results

DELETIONS_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        # The runs that hold its newest row, and its newest row that is ok, if there is one.
        pa.field("last_run", pa.string(), nullable=False),
        pa.field("last_ok_run", pa.string()),
    ],
    metadata={"htc_schema_version": "1"},
)


def deletions_folder(output_uri: str, run: str) -> str:
    """Name the folder of a run's marks."""
    return join(output_uri, "deletions", f"run={run}")


def deletion_parts(results: "Results", run: str) -> list[str]:
    """Return the uris of a run's marks; none while its planning is not complete."""
    record = next((each for each in results.records if each.run == run), None)
    if record is None or not counts(record):
        return []
    return list(_listed(results.storage, deletions_folder(results.output_uri, run)))


def counts(record: "RunRecord") -> bool:
    """Tell whether a run's marks count, and there may be some."""
    manifest = record.manifest
    return bool(manifest.get("is_planned", True)) and bool((manifest.get("selection") or {}).get("deleted"))


def read_deletions(results: "Results", run: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the images that a run found deleted.

    Raises:
        StorageError: they cannot be read.
    """
    names = [name for name in DELETIONS_SCHEMA.names if columns is None or name in columns]
    tables = [pa.schema([DELETIONS_SCHEMA.field(name) for name in names]).empty_table()]
    for uri in deletion_parts(results, run):
        try:
            tables.append(pq.read_table(io.BytesIO(results.storage.read(uri)), columns=names))
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{uri} is damaged: it is no whole Parquet file.") from error
    return pa.concat_tables(tables, promote_options="default")


def write_deletions(storage: Storage, output_uri: str, run: str, tables: Iterator[pa.Table]) -> int:
    """Write a run's marks, a file per table of DELETIONS_SCHEMA, in place of what a planning that was cut off has left.

    Returns:
        how many images are marked.
    """
    folder = deletions_folder(output_uri, run)
    stale = set(_listed(storage, folder))
    count = 0
    for number, table in enumerate(tables):
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        uri = join(folder, f"part-{number:05d}.parquet")
        storage.write(uri, sink.getvalue())
        stale.discard(uri)
        count += len(table)
    for uri in stale:
        storage.delete(uri)
    return count


def _listed(storage: Storage, folder: str) -> Iterator[str]:
    try:
        for listed in storage.list(folder, "part-*.parquet"):
            yield listed.uri
    except NotFoundError:
        return
