"""The table `deletions`: images that were in the input once and are in its listing no more; marked, not forgotten.

A run's marks count once its planning is complete (run.json says so): they are written before that, and again when
planning was cut off in between.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.output.commit import encode_table
from pipeline.output.part_files import read_part
from pipeline.storage.damage import missing
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

if TYPE_CHECKING:
    from pipeline.output.results import Results
    from pipeline.output.run_record import RunRecord

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
    """Return the uris of a run's marks; none while its planning is not complete.

    Raises:
        DamagedFileError: a file of them is missing, and the run was not pruned meanwhile.
    """
    record = next((each for each in results.records if each.run == run), None)
    if record is None or not counts(record):
        return []
    folder = deletions_folder(results.output_uri, run)
    found = set(_listed(results.storage, folder))
    # Their files are numbered from 0. That the last ones are missing is seen by `htc doctor`, which reads all.
    for number in range(max(1, len(found))):
        uri = _part_uri(folder, number)
        if uri not in found and not _is_pruned(results, run):
            raise missing(uri, f"the run {run} found images deleted")
    return sorted(found)


def counts(record: "RunRecord") -> bool:
    """Tell whether a run's marks count, and there may be some."""
    manifest = record.manifest
    return bool(manifest.get("is_planned", True)) and bool((manifest.get("selection") or {}).get("deleted"))


def read_deletions(results: "Results", run: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the images that a run found deleted.

    Raises:
        DamagedFileError: a file of theirs is damaged.
        StorageError: they cannot be read.
    """
    names = [name for name in DELETIONS_SCHEMA.names if columns is None or name in columns]
    tables = [pa.schema([DELETIONS_SCHEMA.field(name) for name in names]).empty_table()]
    tables += [read_part(results.storage, uri, DELETIONS_SCHEMA, names) for uri in deletion_parts(results, run)]
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
        uri = _part_uri(folder, number)
        storage.write(uri, encode_table(table, run))
        stale.discard(uri)
        count += len(table)
    for uri in stale:
        storage.delete(uri)
    return count


def _part_uri(folder: str, number: int) -> str:
    return join(folder, f"part-{number:05d}.parquet")


def _is_pruned(results: "Results", run: str) -> bool:
    from pipeline.output.layout import run_folder, tombstone_uri

    record_uri = join(run_folder(results.output_uri, run), "run.json")
    return results.storage.exists(tombstone_uri(results.output_uri, run)) or not results.storage.exists(record_uri)


def _listed(storage: Storage, folder: str) -> Iterator[str]:
    for listed in storage.list(folder, "part-*.parquet", missing_ok=True):
        yield listed.uri
