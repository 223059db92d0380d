"""State, size and lease holder of each run of an output."""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.errors import DamagedFileError, NotFoundError
from pipeline.maintenance.publications import NOTE, Publication, read_publications
from pipeline.output.layout import TABLES, TOMBSTONE
from pipeline.output.part_files import read_part
from pipeline.output.parts import shards_of
from pipeline.output.run_record import RunRecord, runs_with_file
from pipeline.output.schema import IMAGES_SCHEMA
from pipeline.runs.counting import count_run
from pipeline.runs.lease import FoundLease, judge_holders, lease_uri
from pipeline.runs.outcomes import State
from pipeline.runs.state import RunState, find_run_state, has_all_rows_in
from pipeline.runs.summary import read_summary
from pipeline.storage.damage import warn
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, join

if TYPE_CHECKING:
    from pipeline.output.results import Results

log = logging.getLogger(__name__)

READ_THREADS = 8


@dataclass(frozen=True)
class RunInfo:
    """A run of an output.

    state: see `pipeline.runs.outcomes`. has_all_rows: whether every image has its row, whatever its status.
    holder: the live holder of its lease, as text; empty without one. images: planned so far; `images_done` have their
    row, of which `ok` are ok. instances: rows of `instances`. files, bytes: everything that storage holds of the run.
    publications: where it is published. reason: one sentence about its state, or empty.
    """

    record: RunRecord
    state: State
    holder: str
    images: int
    images_done: int
    ok: int
    instances: int
    files: int
    bytes: int
    publications: tuple[Publication, ...]
    has_all_rows: bool = True
    reason: str = ""

    @property
    def run(self) -> str:
        """The run's name."""
        return self.record.run

    @property
    def failed(self) -> int:
        """Rows that are not ok."""
        return self.images_done - self.ok

    @property
    def began(self) -> datetime:
        """When it began, UTC."""
        moment = datetime.fromisoformat(self.record.created)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True)
class _Listing:
    """Files and bytes by run, and the JSON files in the runs' folders: pairs of run and name."""

    files: Counter[str]
    sizes: Counter[str]
    notes: set[tuple[str, str]]


def survey_runs(
    results: "Results",
    *,
    now: datetime | None = None,
    sleep: Callable[[float], None] = time.sleep,
    report: Callable[[str], None] = log.info,
) -> list[RunInfo]:
    """Return all runs of an output, oldest first; half-pruned ones are left out.

    Args:
        now: the current time, UTC; the clock's when None.
        sleep: waits while leases are watched whose heartbeat is old, or in the future. report: gets a sentence before.

    Raises:
        StorageError: storage failed, or a run's files are damaged.
    """
    listing = _list_all(results.storage, results.output_uri)
    moment = now or datetime.now(UTC)
    held = [record.run for record in results.records if _has_lease(results, record.run, listing)]
    leases = judge_holders(results.storage, results.output_uri, held, clock=lambda: moment, sleep=sleep, report=report)
    # Lists the parts of all runs, once and before the threads need them.
    results.image_parts()
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(
            pool.map(lambda record: _find_info(results, record, listing, leases.get(record.run)), results.records)
        )


def _has_lease(results: "Results", run: str, listing: _Listing) -> bool:
    # On a disk, a folder can be in the place of a lease. It blocks every driver, and a listing of files lacks it.
    uri = lease_uri(results.output_uri, run)
    return (run, "lease.json") in listing.notes or (is_local(uri) and results.storage.kind(uri) == "folder")


def half_pruned(storage: Storage, output_uri: str) -> list[str]:
    """Return the names of the runs whose removal was begun and not finished."""
    return runs_with_file(storage, output_uri, TOMBSTONE)


def _find_info(results: "Results", record: RunRecord, listing: _Listing, lease: FoundLease | None) -> RunInfo:
    storage, output_uri, run = results.storage, results.output_uri, record.run
    has_lease, has_note = (run, "lease.json") in listing.notes, (run, NOTE) in listing.notes
    holder = "" if lease is None else _describe_holder(lease)
    summary = None
    if (run, "summary.json") in listing.notes:
        summary = read_summary(storage, output_uri, run)
    has_progress = (run, "progress.json") in listing.notes
    try:
        found = find_run_state(
            results, record, is_held=bool(holder), has_progress=has_progress, has_lease=has_lease, summary=summary
        )
    except DamagedFileError as error:
        warn(error)
        # Its rows cannot be judged before they are repaired.
        found = RunState("incomplete", has_all_rows_in(results, record), str(error))
    is_summary_used = found.has_all_rows and found.summary is not None and not holder
    done, ok, instances = _counts_of(found.summary) if is_summary_used and found.summary else _count_rows(results, run)
    return RunInfo(
        record=record,
        state=found.state,
        has_all_rows=found.has_all_rows,
        reason=found.reason,
        holder=holder,
        images=record.image_count,
        images_done=done,
        ok=ok,
        instances=instances,
        files=listing.files[run],
        bytes=listing.sizes[run],
        publications=_publications(storage, output_uri, run) if has_note else (),
    )


def _counts_of(summary: Mapping[str, Any]) -> tuple[int, int, int]:
    statuses = summary.get("statuses", {})
    return sum(statuses.values()), statuses.get("ok", 0), summary.get("instances", 0)


def _count_rows(results: "Results", run: str) -> tuple[int, int, int]:
    """Count a run's rows, its ok rows and its instances; those of a damaged file are left out, which is logged."""
    storage, output_uri = results.storage, results.output_uri
    shard_count = next(record.shard_count for record in results.records if record.run == run)
    try:
        rows = count_run(
            storage,
            output_uri,
            run,
            shard_count=shard_count,
            # Only what counts against the error budget depends on them.
            find_repeats=lambda: np.empty(0, np.int64),
            committed=shards_of(results.committed(run)),
        )
    except DamagedFileError as error:
        warn(error)
        table = _readable(results, run)
        ok = table.column("status").to_pylist().count("ok")
        return len(table), ok, sum(table.column("instances").to_pylist())
    return rows.images, rows.statuses.get("ok", 0), rows.instances


def _readable(results: "Results", run: str) -> pa.Table:
    tables = []
    for uri in results.image_parts(run):
        with suppress(DamagedFileError, NotFoundError):
            tables.append(read_part(results.storage, uri, IMAGES_SCHEMA, ["status", "instances"]))
    empty = pa.schema([IMAGES_SCHEMA.field(name) for name in ("status", "instances")]).empty_table()
    return pa.concat_tables([empty, *tables])


def _publications(storage: Storage, output_uri: str, run: str) -> tuple[Publication, ...]:
    try:
        return read_publications(storage, output_uri, run)
    except DamagedFileError as error:
        warn(error)
        # It may be published, so that nothing of it may be removed.
        return (Publication("a catalog unknown", "", ""),)


def _describe_holder(lease: FoundLease) -> str:
    """Return the holder of a run's lease as text; empty when it is dead."""
    if lease.holder is None:
        return "a driver whose lease cannot be read"
    return lease.holder.description if lease.is_alive else ""


def _list_all(storage: Storage, output_uri: str) -> _Listing:
    """List every file of the output once."""
    listing = _Listing(Counter(), Counter(), set())
    for run, path, size in _walk(storage, output_uri):
        listing.files[run] += 1
        listing.sizes[run] += size
        if re.fullmatch(r"runs/[^/]+/[^/]+\.json", path):
            listing.notes.add((run, path.rpartition("/")[2]))
    return listing


def _walk(storage: Storage, output_uri: str) -> Iterator[tuple[str, str, int]]:
    """Yield each file's run, its path below the output, and its bytes."""
    for folder in (*TABLES, "runs"):
        for listed in storage.list(join(output_uri, folder), missing_ok=True):
            path = listed.uri[len(output_uri) :].lstrip("/")
            name = path.split("/")[1]
            if folder == "runs" or name.startswith("run="):
                yield name.removeprefix("run="), path, listed.bytes or 0
