"""The table `deletions`: a record of each image that earlier runs found in the input and that is no longer listed.

An incremental run writes its deletion records before its run.json says that planning is complete. They count from then
on; planning that is interrupted before that writes them again.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.output.commit import encode_table
from pipeline.output.layout import partition_folder, record_uri, tombstone_uri
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
        # The run with the image's newest row, and the run with its newest ok row, if it has one.
        pa.field("last_run", pa.string(), nullable=False),
        pa.field("last_ok_run", pa.string()),
    ],
    metadata={"htc_schema_version": "1"},
)


def deletions_folder(output_uri: str, run: str) -> str:
    """Return the folder of a run's deletion records."""
    return partition_folder(output_uri, "deletions", run)


def deletion_parts(results: "Results", run: str) -> list[str]:
    """Return the uris of a run's parts of `deletions`; none while its planning is not complete.

    Raises:
        DamagedFileError: a part is missing, and the run was not pruned meanwhile.
    """
    record = next((each for each in results.records if each.run == run), None)
    if record is None or not has_deletions(record):
        return []
    folder = deletions_folder(results.output_uri, run)
    found = set(_list_parts(results.storage, folder))
    # Parts are numbered from 0. Only `htc doctor`, which reads all of them, notices that the last ones are missing.
    for number in range(max(1, len(found))):
        uri = _part_uri(folder, number)
        if uri not in found and not _is_pruned(results, run):
            raise missing(uri, f"the run {run} found images deleted")
    return sorted(found)


def has_deletions(record: "RunRecord") -> bool:
    """Return whether a run has deletion records that count: its planning is complete, and found images deleted."""
    manifest = record.manifest
    return bool(manifest.get("is_planned", True)) and bool((manifest.get("selection") or {}).get("deleted"))


def write_deletions(storage: Storage, output_uri: str, run: str, tables: Iterator[pa.Table]) -> int:
    """Write a run's deletion records, one part per table, and remove the parts of an interrupted planning.

    Args:
        tables: of DELETIONS_SCHEMA.

    Returns:
        The number of records.

    Raises:
        StorageError: storage failed.
    """
    folder = deletions_folder(output_uri, run)
    stale = set(_list_parts(storage, folder))
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
    storage, output_uri = results.storage, results.output_uri
    return storage.exists(tombstone_uri(output_uri, run)) or not storage.exists(record_uri(output_uri, run))


def _list_parts(storage: Storage, folder: str) -> Iterator[str]:
    for listed in storage.list(folder, "part-*.parquet", missing_ok=True):
        yield listed.uri
