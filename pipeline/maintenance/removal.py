"""Removal of a run: killed at any instant, the run is either untouched or left to the next removal to finish.

The order: first a tombstone, from then on readers and drivers ignore the run (`pipeline.output.run_record`); then rows
of `images` before those of `instances`, so that readers of the folders never find an image without the instances that
its row counts; then the record, and last the tombstone, by which the next removal finds an unfinished one.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.concurrency import delete_all
from pipeline.output.json_files import write_json
from pipeline.output.layout import TABLES, TOMBSTONE, partition_folder, run_folder, tombstone_uri
from pipeline.runs.cleanup import remove_leftovers
from pipeline.storage.storage import Storage
from pipeline.storage.uris import base_name, is_local, join, local_path

# Removed after everything else in the run's folder; the lease is released by its holder.
LAST = ("run.json", TOMBSTONE, "lease.json")


def remove_run(storage: Storage, output_uri: str, run: str, *, check: Callable[[], None], moment: str) -> None:
    """Remove a run, or finish its removal; the caller holds its lease, and removes the empty folders afterwards.

    Args:
        check: raises when the lease is lost; called before each step.
        moment: UTC, ISO 8601, for the tombstone.

    Raises:
        RunError: the lease was lost.
        StorageError: storage failed; readers ignore the run, and the next removal finishes.
    """
    check()
    if not storage.exists(tombstone_uri(output_uri, run)):
        write_json(storage, tombstone_uri(output_uri, run), {"run": run, "pruned": moment})
    remove_leftovers(storage, output_uri, run)
    for table in TABLES:
        check()
        delete_all(storage.delete, _below(storage, partition_folder(output_uri, table, run)))
    check()
    folder = run_folder(output_uri, run)
    delete_all(storage.delete, [uri for uri in _below(storage, folder) if base_name(uri) not in LAST])
    for name in LAST[:2]:
        check()
        storage.delete(join(folder, name))


def remove_empty_folders(output_uri: str, run: str) -> None:
    """Remove the empty folders of a removed run on a local disk; those that are not empty stay."""
    if not is_local(output_uri):
        return
    for uri in [*(partition_folder(output_uri, table, run) for table in TABLES), run_folder(output_uri, run)]:
        root = Path(local_path(uri))
        for folder in [*sorted((each for each in root.rglob("*") if each.is_dir()), reverse=True), root]:
            with suppress(OSError):
                folder.rmdir()


def _below(storage: Storage, folder: str) -> list[str]:
    return [listed.uri for listed in storage.list(folder, missing_ok=True)]
