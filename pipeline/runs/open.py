"""Opens a run: finds the one to resume, or begins a new one.

The output folder is the only state. A run exists when its run.json is there, which is written before everything else;
its shards are those of the manifest's parts; a shard is done when its images part is there. Killed at any instant, the
same command resumes the run, its planning included.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec
from pipeline.output.layout import run_folder
from pipeline.output.parts import CommittedShards, committed_shards
from pipeline.output.run_record import RunRecord, list_records, load_record
from pipeline.runs.begin import begin_run
from pipeline.runs.checks import check_matches, check_not_occupied, find_differences
from pipeline.runs.cleanup import remove_dead_beginnings
from pipeline.runs.names import check_name_stays_text
from pipeline.runs.request import InterruptDeferral, LeaseTaker, RunRequest
from pipeline.runs.resume import resume_run
from pipeline.runs.run import RunHandle
from pipeline.runs.state import has_all_rows
from pipeline.settings import NAME_PATTERN
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join


def open_run(
    spec: JobSpec,
    model_fingerprint: Mapping[str, Any],
    storage: Storage,
    *,
    run: str | None = None,
    fresh: bool = False,
    now: datetime | None = None,
    take_lease: LeaseTaker | None = None,
    patience_s: float | None = None,
    defer_interrupts: InterruptDeferral = nullcontext,
    workers: int | None = None,
    on_work: Callable[[], None] = lambda: None,
) -> RunHandle:
    """Resume a run, or begin a new one.

    Args:
        model_fingerprint: preset, weights_sha256, config_sha256, trained; see `output.run_record.RunRecord`.
        run: resume this run, or begin it; None takes the newest one, if there is any. An incremental spec takes that
            only when it is an unfinished one of its own, and begins a new run otherwise.
        fresh: begin a new run even so.
        now: the time that names a new run, UTC; the clock's when None.
        take_lease: takes the run's lease, before anything is written; not called for a run that has all rows.
        patience_s: how long to wait for the end of the listing; afterwards planning continues in a thread until
            `RunHandle.close`. None plans all of it before returning.
        defer_interrupts: makes a context for that wait, in which KeyboardInterrupt is not raised.
        workers: how many the run will have, for shards of automatic size; None for as many as this machine takes.
        on_work: called as soon as there are images to do, perhaps more often, from any thread.

    Raises:
        OutputOccupiedError: the output folder holds files that htc did not write.
        RunMismatchError: the run was started with another model or spec.
        SpecError: `fresh` with the name of a run that exists, a name that cannot be a folder's, or a new one that
            readers would take for a number, a date or another type.
        InputError: a new run, and the input holds no image, or cannot be listed.
        RunHeldError: another driver works on the run.
        StorageError: storage failed.
    """
    request = RunRequest(spec, model_fingerprint, storage, take_lease, patience_s, defer_interrupts, workers, on_work)
    found = _find(request, run, fresh=fresh)
    if found.record is not None:
        return resume_run(request, found.record, found.committed)
    if take_lease is not None:
        remove_dead_beginnings(storage, spec.output.uri)
    moment = now or datetime.now(UTC)
    is_concurrent_allowed = fresh or spec.select.mode == "full"
    begun = begin_run(
        request, run or _free_name(storage, spec, moment), moment, is_concurrent_allowed=is_concurrent_allowed
    )
    if begun.state == "new":
        begun.passed_over = found.passed_over
    return begun


def find_run(
    spec: JobSpec,
    model_fingerprint: Mapping[str, Any],
    storage: Storage,
    *,
    run: str | None = None,
    fresh: bool = False,
) -> RunHandle | None:
    """Find the run that `open_run` would resume; None when it would begin one. Arguments and errors are its."""
    request = RunRequest(spec, model_fingerprint, storage)
    found = _find(request, run, fresh=fresh)
    return None if found.record is None else resume_run(request, found.record, found.committed)


@dataclass(frozen=True)
class _Found:
    """The run to resume, None to begin one.

    committed: its committed shards, None when they are not listed yet. passed_over: the unfinished run of another spec
    or model that is left as it is.
    """

    record: RunRecord | None
    committed: CommittedShards | None = None
    passed_over: str = ""


def _find(request: RunRequest, run: str | None, *, fresh: bool) -> _Found:
    """Decide which run is resumed.

    | spec         | named                             | newest run               | result                           |
    |--------------|-----------------------------------|--------------------------|----------------------------------|
    | any          | yes, and it exists                |                          | resumed if it matches the spec   |
    | any          | yes, and it does not exist        |                          | begun                            |
    | full         | no                                | any                      | resumed if it matches the spec   |
    | incremental  | no                                | unfinished, and matches  | resumed                          |
    | incremental  | no                                | any other                | begun                            |
    """
    if run is not None and not re.fullmatch(NAME_PATTERN, run):
        raise SpecError(f"A run's name is made of letters, digits, dots, dashes and underscores, not {run!r}.")
    check_not_occupied(request.storage, request.output_uri)
    record = _named_or_newest(request, run, fresh=fresh)
    if record is None:
        if run is not None:
            check_name_stays_text(run)
        return _Found(None)
    is_full = request.spec.select.mode == "full"
    if is_full and run is None:
        record = _full_run_below(request, record)
    if is_full or run is not None:
        check_matches(record, request.spec, request.fingerprint)
        return _Found(record)
    committed = committed_shards(request.storage, request.output_uri, record.run)
    if _is_unfinished(request, record, committed):
        return _Found(record, committed)
    return _Found(None, passed_over="" if has_all_rows(record, committed) else record.run)


def _named_or_newest(request: RunRequest, run: str | None, *, fresh: bool) -> RunRecord | None:
    storage, output_uri = request.storage, request.output_uri
    if run is not None:
        record = load_record(storage, output_uri, run)
        if record is not None and fresh:
            raise SpecError(f"The run {run} exists in {output_uri}; leave out --fresh to resume it, or name another.")
        return record
    if fresh:
        return None
    records = list_records(storage, output_uri)
    return records[-1] if records else None


def _full_run_below(request: RunRequest, newest: RunRecord) -> RunRecord:
    """Return the full run that complete incremental runs of this spec and model have kept up to date.

    It is the newest one itself when that is full; and also when it is of another kind, which is then refused.
    """
    for record in reversed(list_records(request.storage, request.output_uri)):
        is_full = record.identity.get("select.mode", "full") == "full"
        if not is_full or record.run != newest.run:
            differences = find_differences(record, request.spec, request.fingerprint)
            is_same_spec = all(line.startswith("- select.mode:") for line in differences)
            if not is_same_spec or not _has_all_rows(request, record):
                return newest
        if is_full:
            return record
    return newest


def _is_unfinished(request: RunRequest, record: RunRecord, committed: CommittedShards) -> bool:
    """Return whether a run is of this spec and model, and still has rows or its summary to write."""
    if find_differences(record, request.spec, request.fingerprint):
        return False
    if not has_all_rows(record, committed):
        return True
    # Without a summary its driver died after the last commit.
    return not request.storage.exists(join(run_folder(request.output_uri, record.run), "summary.json"))


def _has_all_rows(request: RunRequest, record: RunRecord) -> bool:
    return has_all_rows(record, committed_shards(request.storage, request.output_uri, record.run))


def _free_name(storage: Storage, spec: JobSpec, moment: datetime) -> str:
    base = f"{spec.name or 'run'}-{moment.astimezone(UTC):%Y%m%d-%H%M%S}"
    name, number = base, 1
    while storage.exists(run_folder(spec.output.uri, name)):
        number += 1
        name = f"{base}-{number}"
    return name
