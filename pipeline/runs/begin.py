"""Begins a run: lease first, then its record, then its manifest."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.errors import InputError
from pipeline.output.layout import manifest_folder, run_folder
from pipeline.output.parts import CommittedShards, committed_shards
from pipeline.output.run_record import RunRecord, installed_versions, list_records, load_record, runs_with_file
from pipeline.planning.manifest import Manifest
from pipeline.planning.planner import clear_parts
from pipeline.runs.checks import check_matches, check_no_orphans
from pipeline.runs.lease import RunHeldError
from pipeline.runs.request import RunRequest
from pipeline.runs.resume import resume_leased
from pipeline.runs.run import RunHandle
from pipeline.runs.start_planning import build_planner, start_planning
from pipeline.runs.state import has_all_rows
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, join, local_path


def begin_run(request: RunRequest, name: str, moment: datetime, *, is_concurrent_allowed: bool) -> RunHandle:
    """Begin a run, if its input holds an image.

    The order survives a kill between any two steps:

    1. The lease. From here on no other driver writes into the run's folder. Killed here, only a lease is left, which
       expires and is removed by the next run (`cleanup.remove_dead_beginnings`).
    2. run.json, which makes the run exist. Killed here, the same command resumes the run and plans it.
    3. The manifest, part by part, with run.json rewritten after each part. A part's shards are handed to workers only
       after that, so that every committed shard belongs to a recorded run and to a frozen list of images.

    Args:
        moment: when the run begins, UTC.
        is_concurrent_allowed: whether another run of the output may be in progress.

    Raises:
        OutputOccupiedError: rows of a run of this name are there, and its record is not.
        RunHeldError: another driver works on the run, or on a run that would do the same images.
        RunMismatchError: another driver began the run meanwhile, with another model or spec.
        InputError: the input holds no image, or cannot be listed.
        StorageError: storage failed.
    """
    storage, output_uri = request.storage, request.output_uri
    check_no_orphans(storage, output_uri, name)
    if not is_concurrent_allowed:
        _check_no_concurrent_run(request, name)
    moment = _later_than_all(list_records(storage, output_uri, damaged_runs={}), moment)
    # Before the lease: reading earlier runs may take longer than another driver should wait.
    planner = build_planner(request, name, moment.isoformat())
    with ExitStack() as undo:
        lease = request.lease(name, undo)
        other = load_record(storage, output_uri, name) if lease else None
        if other is not None:
            # Another driver has begun and left it since this one looked.
            check_matches(other, request.spec, request.fingerprint)
            run = resume_leased(request, other, lease, undo)
        else:
            # A release that wrote run.json last may have left some.
            clear_parts(storage, manifest_folder(output_uri, name))
            try:
                planning = start_planning(request, _new_record(request, name, moment, planner.manifest), planner, undo)
            except InputError:
                # No shard was handed out: a run that cannot be planned must not block the next one.
                remove_begun(storage, output_uri, name)
                raise
            run = RunHandle(storage, output_uri, name, planning, is_new=True, done=CommittedShards(), lease=lease)
        undo.pop_all()
        return run


def _check_no_concurrent_run(request: RunRequest, name: str) -> None:
    """Refuse to begin while another run is in progress: the new run would do the images that one has not done yet."""
    for other in runs_with_file(request.storage, request.output_uri, "lease.json"):
        if request.take_lease is None or other == name or _is_complete(request, other):
            continue
        try:
            # Succeeds when its driver is dead.
            request.take_lease(other).release()
        except RunHeldError as error:
            raise RunHeldError(
                f"{str(error).split('; ')[0]}, and a run beside it would do the same images again; wait for it, "
                "stop it, or begin one all the same with --fresh."
            ) from error


def _is_complete(request: RunRequest, run: str) -> bool:
    """Return whether a run with a lease has all rows: then a maintenance command holds it, and no driver."""
    record = load_record(request.storage, request.output_uri, run)
    return record is not None and has_all_rows(record, committed_shards(request.storage, request.output_uri, run))


def remove_begun(storage: Storage, output_uri: str, name: str) -> None:
    """Remove the record and the manifest of a run of which nothing was done; its lease is the caller's.

    Raises:
        StorageError: storage failed.
    """
    folder = run_folder(output_uri, name)
    clear_parts(storage, manifest_folder(output_uri, name))
    storage.delete(join(folder, "run.json"))
    if is_local(folder):
        with suppress(OSError):
            Path(local_path(folder), "manifest").rmdir()


def _new_record(request: RunRequest, name: str, moment: datetime, manifest: Manifest) -> RunRecord:
    return RunRecord(
        run=name,
        created=moment.isoformat(),
        spec=request.spec.to_dict(),
        identity=request.spec.identity(),
        fingerprint=dict(request.fingerprint),
        versions=installed_versions(),
        manifest=manifest.to_dict(),
    )


def _later_than_all(records: Sequence[RunRecord], moment: datetime) -> datetime:
    """Return the moment, or one after the newest run's: a clock that was set back must not make a new run old."""
    newest = max((datetime.fromisoformat(record.created) for record in records), default=moment)
    return max(moment, newest + timedelta(microseconds=1)) if records else moment
