"""Holds a run's lease during maintenance, so that no driver and no other maintenance command works on it."""

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.terminal.console import say
from pipeline.runs.lease import Lease, RunHeldError, take_lease
from pipeline.storage.storage import Storage


@contextmanager
def hold_run(storage: Storage, output_uri: str, run: str) -> Iterator[Lease]:
    """Hold a run's lease inside the block.

    Raises:
        RunHeldError: another process holds it.
        StorageError: storage failed.
    """
    try:
        lease = take_lease(storage, output_uri, run, report=say)
    except RunHeldError as error:
        # The part after the semicolon is advice about drivers.
        holder = str(error).partition("; ")[0].rstrip(".")
        raise RunHeldError(f"{holder}; try again when that has ended.") from error
    try:
        yield lease
    finally:
        lease.release()
