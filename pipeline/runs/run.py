"""RunHandle: an open run, what is planned of it, what is left to do, and its summary."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError, StorageError
from pipeline.inputs.shard import Shard
from pipeline.output.json_files import write_json
from pipeline.output.layout import run_folder
from pipeline.output.parts import CommittedShards, committed_shards
from pipeline.planning.background import BackgroundPlanner
from pipeline.planning.manifest import Manifest, ManifestReader
from pipeline.planning.repeated_failures import RepeatedFailures
from pipeline.runs.cleanup import remove_leftovers
from pipeline.runs.lease import Lease
from pipeline.runs.start_up import StartUp
from pipeline.runs.state import has_all_rows
from pipeline.runs.summary import read_summary
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

OpenedAs = Literal["new", "resumed", "complete"]


class RunHandle:
    """A run that this process has opened.

    Attributes:
        name: the run's name and its partition in the tables.
        output_uri: the folder of the tables.
        manifest: the input as far as it is planned; grows with each call of `take_new_shards`.
        start_up: when the parts of this session's start were done.
        state: "new", "resumed", or "complete" when it had all rows when it was opened.
        when_planned: called once by `take_new_shards`, when it first knows of all shards.
        committed: the shards that were committed when it was opened.
        passed_over: the run before it, when that lacks rows and could not be resumed; else "".
    """

    def __init__(
        self,
        storage: Storage,
        output_uri: str,
        name: str,
        planning: BackgroundPlanner | Manifest,
        *,
        is_new: bool,
        done: CommittedShards | None = None,
        lease: Lease | None = None,
    ) -> None:
        """`planning`: the manifest, or what is writing it. `done`: the committed shards; None to list them."""
        self.name = name
        self.output_uri = output_uri
        self._storage = storage
        self._lease = lease
        self._planning = planning if isinstance(planning, BackgroundPlanner) else None
        self.manifest = planning if isinstance(planning, Manifest) else planning.manifest
        self._folder = run_folder(output_uri, name)
        self._reader = ManifestReader(storage, join(self._folder, "manifest"), self.manifest)
        # Listed once: while the lease is held, no other driver commits.
        self.committed = committed_shards(storage, output_uri, name) if done is None else done
        self._repeats = RepeatedFailures(storage, output_uri, name)
        self._shards_taken = 0
        self.when_planned: Callable[[], None] | None = None
        self.passed_over = ""
        self.start_up = StartUp()
        self.state: OpenedAs = "new" if is_new else ("complete" if self.is_done else "resumed")

    @property
    def is_done(self) -> bool:
        """Whether nothing was left to do when it was opened; so it is for a new run without images."""
        return has_all_rows(self, self.committed)

    @property
    def image_count(self) -> int:
        """Images in the manifest, as far as it is planned."""
        return self.manifest.image_count

    @property
    def shard_count(self) -> int:
        """Shards in the manifest, as far as it is planned."""
        return self.manifest.shard_count

    @property
    def is_planned(self) -> bool:
        """Whether all shards are known; until then the counts grow."""
        return self.manifest.is_planned

    def todo(self) -> list[int]:
        """Return the shards that are not committed now, ascending; lists them each time."""
        return committed_shards(self._storage, self.output_uri, self.name).missing(0, self.shard_count)

    @property
    def shards_left(self) -> int:
        """Number of planned shards that were not committed when it was opened."""
        return self.shard_count - int(self.committed.mask(self.shard_count).sum())

    @property
    def has_lease(self) -> bool:
        """Whether it was opened to work on it."""
        return self._lease is not None

    def check_lease(self) -> None:
        """Check that no other driver has taken the run over.

        Raises:
            RunError: the lease is lost; nothing may be committed from now on.
        """
        if self._lease is not None:
            self._lease.check()

    def take_new_shards(self) -> list[int]:
        """Return the shards planned since the last call that were not committed before, ascending; call it regularly.

        Raises:
            InputError: the input cannot be listed.
            StorageError: the manifest cannot be written.
            RunError: the lease is lost; nothing may be committed from now on.
        """
        self.check_lease()
        if self._planning is not None:
            self._planning.check()
            was_planned = self.is_planned
            self.manifest = self._reader.manifest = self._planning.manifest
            if self.is_planned and not was_planned and self.when_planned is not None:
                self.when_planned()
        first, self._shards_taken = self._shards_taken, self.shard_count
        return self.committed.missing(first, self.shard_count)

    def read_shard(self, index: int) -> Shard:
        """Read one shard's images from the manifest."""
        shard = self._reader.read_shard(index)
        return self._repeats.with_flags(shard) if self.manifest.selection else shard

    def repeats(self) -> NDArray[np.int64]:
        """Return the image ids of the images that were not ok before this run, ascending; [N] int64."""
        return self._repeats.image_ids(self.manifest)

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Write summary.json; an earlier session's is replaced.

        Raises:
            StorageError: it cannot be written, or another driver has taken the run over.
        """
        try:
            self.check_lease()
        except RunError as error:
            raise StorageError(str(error)) from error
        write_json(self._storage, join(self._folder, "summary.json"), summary, is_redacted=True)

    def read_summary(self) -> dict[str, Any] | None:
        """Read summary.json; None when no session wrote one, or it is damaged, which is logged."""
        return read_summary(self._storage, self.output_uri, self.name)

    def close(self) -> None:
        """Stop planning, remove what dead attempts left, and release the lease."""
        has_stopped = self._planning is None or self._planning.stop()
        # A planner that hangs in storage may still write: its lease must expire first.
        if self._lease is None or not has_stopped:
            return
        with suppress(RunError):
            self._lease.check()
            remove_leftovers(self._storage, self.output_uri, self.name)
        self._lease.release()
