"""Compaction of a run while its driver works on it, so that a large run never has millions of small files."""

import logging
import threading
import time
from collections.abc import Callable, Collection

from pipeline.errors import RunError, StorageError
from pipeline.maintenance.compaction import list_tables, plan_shard_ranges, remove_replaced, replace_parts
from pipeline.maintenance.publications import read_publications
from pipeline.output.parts import Part, choose_parts
from pipeline.storage.storage import Storage

log = logging.getLogger(__name__)

# A look lists the run's parts, of which compaction leaves few.
LOOK_EVERY_S = 60.0


class _EndedError(Exception):
    """The driver ends: no more files are replaced."""


class RunningCompaction:
    """Merges the parts of shards that are done, in a thread, as soon as a shard range fills a file.

    Only shards that the driver has counted are touched, because it does no other work on them. Every row counts once at
    every instant, as in `pipeline.maintenance.compaction`; after a kill the next session or `htc compact` goes on. What
    cannot be compacted is left as it is, which is logged: it costs time in queries, and no row.
    """

    def __init__(
        self,
        storage: Storage,
        output_uri: str,
        run: str,
        *,
        target_bytes: int,
        check: Callable[[], None],
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        """Prepare; the thread begins with the first look.

        Args:
            target_bytes: most bytes of a file.
            check: raises RunError when the run's lease is lost; called before files are replaced or removed.
            look_every_s: how often it looks for full shard ranges, at most.
        """
        self._storage = storage
        self._output_uri = output_uri
        self._run = run
        self._target_bytes = target_bytes
        self._check_lease = check
        self._look_every_s = look_every_s
        self._counted: set[int] = set()
        self._last_look_s = time.monotonic()
        self._is_ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._has_failed = False

    def committed(self, shard: int) -> None:
        """Note that a shard is committed and counted, and look for full ranges when it is time to."""
        if self._has_failed or self._is_ended.is_set():
            return
        self._counted.add(shard)
        if not self._is_due():
            return
        self._last_look_s = time.monotonic()
        counted = frozenset(self._counted)
        self._thread = threading.Thread(target=self._look, args=(counted,), name="compaction", daemon=True)
        self._thread.start()

    def _is_due(self) -> bool:
        is_busy = self._thread is not None and self._thread.is_alive()
        return not is_busy and time.monotonic() - self._last_look_s >= self._look_every_s

    def close(self) -> None:
        """End it; a file that is being merged is given up, one that is being written is finished."""
        self._is_ended.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self, counted: frozenset[int]) -> None:
        try:
            if read_publications(self._storage, self._output_uri, self._run):
                # The tables of a catalog name its files.
                return
            compact_full_ranges(
                self._storage,
                self._output_uri,
                self._run,
                counted,
                target_bytes=self._target_bytes,
                check=self._check,
                on_done=lambda part: self._counted.difference_update(part.shards),
            )
        except _EndedError:
            return
        except (RunError, StorageError) as error:
            self._has_failed = True
            log.warning("The run %s is not compacted any further while it goes on: %s", self._run, error)

    def _check(self) -> None:
        if self._is_ended.is_set():
            raise _EndedError
        self._check_lease()


def compact_full_ranges(
    storage: Storage,
    output_uri: str,
    run: str,
    counted: Collection[int],
    *,
    target_bytes: int,
    check: Callable[[], None],
    on_done: Callable[[Part], None] = lambda _: None,
) -> None:
    """Compact the ranges of neighbouring shards that fill a file; the caller holds the run's lease.

    What an earlier compaction left when it was killed is removed first, and what a worker that was given up has
    written of a shard that is in a compacted part.

    Args:
        counted: the shards that may be compacted.
        target_bytes: most bytes of a file.
        check: called before files are replaced or removed; what it raises ends the compaction.
        on_done: called with each compacted part.

    Raises:
        StorageError: storage failed, or a part is damaged; every row still counts once.
    """
    listed = list_tables(storage, output_uri, run)
    sizes = {table: {part: info.bytes or 0 for part, info in found.items()} for table, found in listed.items()}
    chosen = choose_parts(list(listed["images"]))
    check()
    remove_replaced(storage, output_uri, run, {table: set(found) for table, found in listed.items()}, chosen)
    parts = [part for part in chosen if part.is_compacted or part.first in counted]
    for shard_range in plan_shard_ranges(parts, sizes, target_bytes, only_full=True):
        replace_parts(storage, output_uri, run, shard_range, check, tables=tuple(listed))
        on_done(shard_range.part)
