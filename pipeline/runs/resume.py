"""Resumes a run: lease first, then its record read again, then the rest of its manifest."""

from contextlib import ExitStack
from dataclasses import replace

from pipeline.errors import InputError
from pipeline.output.layout import manifest_folder
from pipeline.output.parts import CommittedShards, committed_shards
from pipeline.output.run_record import RunRecord, load_record, write_record
from pipeline.planning.background import BackgroundPlanner
from pipeline.planning.manifest import Manifest
from pipeline.planning.planner import sign_again
from pipeline.planning.resume_point import find_resume_point
from pipeline.runs.cleanup import remove_leftovers
from pipeline.runs.lease import Lease, clear_dead_lease
from pipeline.runs.request import RunRequest
from pipeline.runs.run import RunHandle
from pipeline.runs.start_planning import build_planner, start_planning
from pipeline.runs.state import has_all_rows


def resume_run(request: RunRequest, record: RunRecord, committed: CommittedShards | None = None) -> RunHandle:
    """Resume a run; one that has all rows is opened without a lease, as nothing will be written.

    The record is read again once the lease is held, because until then another driver may have planned or committed
    more. Nothing is written before that, so that a kill at any instant leaves a run that can be resumed again.

    Args:
        committed: the run's committed shards; None to list them.

    Raises:
        InputError: the run was removed meanwhile, or its input cannot be listed to the end.
        RunHeldError: another driver works on the run.
        StorageError: storage failed.
    """
    storage, output_uri, name = request.storage, request.output_uri, record.run
    if committed is None:
        committed = committed_shards(storage, output_uri, name)
    if has_all_rows(record, committed):
        if request.take_lease is not None:
            # Left by a driver that died after the last commit.
            clear_dead_lease(storage, output_uri, name)
        manifest = Manifest.from_dict(record.manifest)
        return RunHandle(storage, output_uri, name, manifest, is_new=False, done=committed)
    with ExitStack() as undo:
        lease = request.lease(name, undo)
        if lease is not None:
            found = load_record(storage, output_uri, name)
            if found is None:
                raise InputError(f"The run {name} was removed meanwhile; run the same command again to begin another.")
            record = found
        resumed = resume_leased(request, record, lease, undo, committed=committed)
        undo.pop_all()
        return resumed


def resume_leased(
    request: RunRequest,
    record: RunRecord,
    lease: Lease | None,
    undo: ExitStack,
    *,
    committed: CommittedShards | None = None,
) -> RunHandle:
    """Resume a run whose lease is held already.

    Args:
        record: read after the lease was taken.
        undo: gets what stops the planning, should the caller fail.
        committed: the run's committed shards; None to list them.

    Raises:
        InputError: the input cannot be listed.
        StorageError: storage failed.
    """
    storage, output_uri = request.storage, request.output_uri
    if Manifest.from_dict(record.manifest).is_planned:
        request.on_work()
    if lease is not None:
        # Only the holder of the lease may: another driver may still be writing these files.
        remove_leftovers(storage, output_uri, record.run)
    manifest = Manifest.from_dict(record.manifest)
    planning = manifest if manifest.is_planned else _resume_planning(request, record, undo)
    if lease is not None and manifest.is_planned and manifest.signed:
        sign_again(request.spec.input, storage, output_uri)
    return RunHandle(storage, output_uri, record.run, planning, is_new=False, done=committed, lease=lease)


def _resume_planning(request: RunRequest, record: RunRecord, undo: ExitStack) -> Manifest | BackgroundPlanner:
    """Continue a planning that was interrupted, behind the last part of the manifest."""
    folder = manifest_folder(request.output_uri, record.run)
    recorded_images = int(record.manifest.get("image_count", 0))
    resume_point = find_resume_point(request.storage, folder, recorded_images=recorded_images)
    if resume_point is not None and resume_point.manifest.is_planned:
        # The driver died between the last part and the record of it.
        write_record(request.storage, request.output_uri, replace(record, manifest=resume_point.manifest.to_dict()))
        return resume_point.manifest
    planner = build_planner(request, record.run, record.created, resume_point)
    return start_planning(request, record, planner, undo)
