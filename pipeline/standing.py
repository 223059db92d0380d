"""How each run of an output stands: how far it is, who works on it, what it takes in storage."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pipeline.damage import warn
from pipeline.errors import DamagedFileError, NotFoundError, StorageError
from pipeline.lease import STALE_AFTER_S
from pipeline.part_files import read_part
from pipeline.process_identity import is_dead_here
from pipeline.publication import NOTE, Publication, read_publications
from pipeline.records import TOMBSTONE, RunRecord, read_json, run_folder
from pipeline.storage import Storage, join
from pipeline.summary import read_summary
from pipeline.tables import IMAGES_SCHEMA

if TYPE_CHECKING:
    from pipeline.results import Results

State = Literal["complete", "incomplete", "going on"]
READ_THREADS = 8
TABLES = ("images", "instances", "deletions")


@dataclass(frozen=True)
class Standing:
    """One run.

    holder: who works on it, for a person; empty when nobody does. images: planned so far; `images_done` have their
    row, of which `ok` are ok. instances: rows of `instances`.
    files, bytes: all that storage holds of the run.
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
    files: Counter[str]
    sizes: Counter[str]
    notes: set[tuple[str, str]]


def survey_runs(results: "Results", *, now: datetime | None = None) -> list[Standing]:
    """Look at all runs of an output, oldest first; those that are half pruned are no runs.

    Args:
        now: UTC, to tell whether a lease is alive; the clock's when None.

    Raises:
        StorageError: storage failed, or a run's files are damaged.
    """
    listing = _list_all(results.storage, results.output_uri)
    moment = now or datetime.now(UTC)
    # Looks all runs' parts up, once and before the threads would.
    results.image_parts()
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(lambda record: _standing(results, record, listing, moment), results.records))


def half_pruned(storage: Storage, output_uri: str) -> list[str]:
    """Return the names of the runs whose removal was begun and not finished."""
    try:
        return [each.uri.split("/")[-2] for each in storage.list(join(output_uri, "runs"), glob=f"*/{TOMBSTONE}")]
    except NotFoundError:
        return []


def is_whole(results: "Results", record: RunRecord) -> bool:
    """Tell whether every planned image has its row, and all are planned."""
    is_planned = bool(record.manifest.get("is_planned", True))
    return is_planned and results.committed_shards(record.run) >= record.shard_count


def _standing(results: "Results", record: RunRecord, listing: _Listing, moment: datetime) -> Standing:
    storage, output_uri, run = results.storage, results.output_uri, record.run
    has_lease, has_note = (run, "lease.json") in listing.notes, (run, NOTE) in listing.notes
    holder = _holder(storage, output_uri, run, moment) if has_lease else ""
    is_complete = is_whole(results, record)
    summary = None
    if is_complete and not holder and (run, "summary.json") in listing.notes:
        summary = read_summary(storage, output_uri, run)
    done, ok, instances = _counted(results, run) if summary is None else _told(summary)
    state: State = "complete" if is_complete else "incomplete"
    return Standing(
        record=record,
        state="going on" if holder and not is_complete else state,
        holder=holder,
        images=record.image_count,
        images_done=done,
        ok=ok,
        instances=instances,
        files=listing.files[run],
        bytes=listing.sizes[run],
        publications=_publications(storage, output_uri, run) if has_note else (),
    )


def _told(summary: Mapping[str, Any]) -> tuple[int, int, int]:
    statuses = summary.get("statuses", {})
    return sum(statuses.values()), statuses.get("ok", 0), summary.get("instances", 0)


def _counted(results: "Results", run: str) -> tuple[int, int, int]:
    """Count the rows of a run; those of a damaged file are left out, which is reported."""
    try:
        table = results.images(run, ["status", "instances"])
    except DamagedFileError as error:
        warn(error)
        table = _readable(results, run)
    ok = table.column("status").to_pylist().count("ok")
    return len(table), ok, sum(table.column("instances").to_pylist())


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
        # It may be published: nothing of it may be removed.
        return (Publication("a catalog unknown", "", ""),)


def _holder(storage: Storage, output_uri: str, run: str, moment: datetime) -> str:
    """Name who holds a run's lease; empty when the holder is dead or has been silent for too long."""
    try:
        lease = read_json(storage, join(run_folder(output_uri, run), "lease.json")) or {}
    except DamagedFileError as error:
        warn(error)
        return "somebody whose lease cannot be read"
    except StorageError:
        return "somebody whose lease cannot be read"
    try:
        host, pid, process = str(lease["host"]), lease["pid"], str(lease["process"])
        silence_s = (moment - datetime.fromisoformat(lease["beat"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return "somebody whose lease cannot be read" if lease else ""
    if is_dead_here(host, process) or silence_s > STALE_AFTER_S:
        return ""
    return f"host {host}, process {pid}"


def _list_all(storage: Storage, output_uri: str) -> _Listing:
    """Count files and bytes by run, and note which small files each run's folder holds."""
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
        try:
            for listed in storage.list(join(output_uri, folder)):
                path = listed.uri[len(output_uri) :].lstrip("/")
                name = path.split("/")[1]
                if folder == "runs" or name.startswith("run="):
                    yield name.removeprefix("run="), path, listed.bytes or 0
        except NotFoundError:
            continue
