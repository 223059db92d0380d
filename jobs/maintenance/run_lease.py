"""A run's lease while house is kept: no driver, and no other housekeeper, works on it meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.terminal.console import say
from pipeline.runs.lease import Lease, RunHeldError, take_lease
from pipeline.storage.storage import Storage


@contextmanager
def hold_run(storage: Storage, output_uri: str, run: str) -> Iterator[Lease]:
    """Hold a run's lease inside the block.

    Raises:
        RunHeldError: somebody else has it.
        StorageError: storage failed.
    """
    try:
        lease = take_lease(storage, output_uri, run, report=say)
    except RunHeldError as error:
        # What follows the semicolon is advice to drivers.
        who = str(error).partition("; ")[0].rstrip(".")
        raise RunHeldError(f"{who}; try again when that has ended.") from error
    try:
        yield lease
    finally:
        lease.release()
