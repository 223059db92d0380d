"""What the caller of `open_run` asks for, shared by finding, beginning and resuming a run."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from pipeline.job_spec.job import JobSpec
from pipeline.runs.lease import Lease
from pipeline.storage.storage import Storage

LeaseTaker = Callable[[str], Lease]
"""Takes the lease on the run of a name."""
InterruptDeferral = Callable[[], AbstractContextManager[None]]
"""Makes a context in which a request to stop is only recorded, and not raised."""


@dataclass(frozen=True)
class RunRequest:
    """The arguments of `pipeline.runs.open.open_run` that do not name a run.

    take_lease: None to open a run without a lease, for reading only. on_work: called when there are images to do, once
        or more often, from any thread.
    """

    spec: JobSpec
    fingerprint: Mapping[str, Any]
    storage: Storage
    take_lease: LeaseTaker | None = None
    patience_s: float | None = None
    defer_interrupts: InterruptDeferral = nullcontext
    workers: int | None = None
    on_work: Callable[[], None] = lambda: None

    @property
    def output_uri(self) -> str:
        """The output folder."""
        return self.spec.output.uri

    def lease(self, run: str, undo: ExitStack) -> Lease | None:
        """Take the lease on a run, and have `undo` release it; None where no lease is wanted.

        Raises:
            RunHeldError: another driver works on the run.
            StorageError: storage failed.
        """
        if self.take_lease is None:
            return None
        lease = self.take_lease(run)
        undo.callback(lease.release)
        return lease
