"""Removing a whole run: killed at any instant, it is a whole run still, or one that the next removal finishes.

A tombstone comes first: from then on no reader and no driver takes the run for one (`pipeline.output.run_record`). Rows
of `images` go before those of `instances`, so that whoever reads the folders without us never sees an image that is
said to have instances without them. The record goes late and the tombstone last, because it is what the next
removal looks for.
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

# Removed after everything else in the run's folder; the lease is its holder's to give back.
LAST = ("run.json", TOMBSTONE, "lease.json")


def remove_run(storage: Storage, output_uri: str, run: str, *, check: Callable[[], None], moment: str) -> None:
    """Remove a run, or finish its removal; the caller holds its lease, and removes the empty folders afterwards.

    Args:
        check: raises when the lease is lost; asked before each step.
        moment: UTC, ISO 8601, for the tombstone.

    Raises:
        RunError: the lease was lost.
        StorageError: storage failed; the run is no run any more, and the next removal finishes.
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
    """Remove what a removed run leaves of folders on a local disk; those that are not empty stay."""
    if not is_local(output_uri):
        return
    for uri in [*(partition_folder(output_uri, table, run) for table in TABLES), run_folder(output_uri, run)]:
        root = Path(local_path(uri))
        for folder in [*sorted((each for each in root.rglob("*") if each.is_dir()), reverse=True), root]:
            with suppress(OSError):
                folder.rmdir()


def _below(storage: Storage, folder: str) -> list[str]:
    return [listed.uri for listed in storage.list(folder, missing_ok=True)]
