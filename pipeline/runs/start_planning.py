"""Starts the planning of a run, and records its progress in run.json."""

from contextlib import ExitStack
from dataclasses import asdict, replace

from pipeline.output.layout import manifest_folder
from pipeline.output.run_record import RunRecord, write_record
from pipeline.planning.background import BackgroundPlanner
from pipeline.planning.incremental import IncrementalPlan, NewRun
from pipeline.planning.manifest import Manifest
from pipeline.planning.planner import Planner, require_input
from pipeline.planning.resume_point import ResumePoint
from pipeline.planning.shard_size import ShardSizing
from pipeline.runs.request import RunRequest


def build_planner(request: RunRequest, run: str, created: str, resume_point: ResumePoint | None = None) -> Planner:
    """Build the planner of a run. For an incremental run this reads the tables of earlier runs, which takes a while.

    Args:
        created: when the run began, as in its record; only runs that began before are read.
        resume_point: where an interrupted planning continues; None plans from the beginning.

    Raises:
        InputError: an incremental run, and its input does not exist.
        StorageError: storage failed.
    """
    folder = manifest_folder(request.output_uri, run)
    return Planner(
        request.spec.input,
        request.storage,
        request.output_uri,
        folder,
        sizing=ShardSizing.of(request.spec.compute, request.workers),
        planned=resume_point,
        incremental=_plan_incremental(request, run, created),
    )


def _plan_incremental(request: RunRequest, run: str, created: str) -> IncrementalPlan | None:
    spec, output_uri = request.spec, request.output_uri
    if spec.select.mode == "full":
        return None
    # Minutes of reading are not spent on a misspelt input.
    require_input(spec.input, request.storage, output_uri)
    new = NewRun(created, run, request.fingerprint, spec.identity())
    return IncrementalPlan(spec.input, spec.select, request.storage, output_uri, run=new)


def start_planning(request: RunRequest, record: RunRecord, planner: Planner, undo: ExitStack) -> BackgroundPlanner:
    """Plan a run: all of it here, or for `patience_s` here and then in a thread that `undo` stops.

    The planner writes run.json before the first part of the manifest, and again after each part; shards of a part are
    handed out only after that.

    Raises:
        InputError: the input cannot be listed, or holds no image.
        StorageError: the record or the manifest cannot be written.
    """

    def write(manifest: Manifest) -> None:
        write_record(request.storage, request.output_uri, replace(record, manifest=manifest.to_dict()))
        if manifest.image_count:
            request.on_work()

    planner.record = {name: value for name, value in asdict(record).items() if name != "manifest"}
    planning = BackgroundPlanner(planner, write)
    if request.patience_s is None:
        planning.run()
        return planning
    undo.callback(planning.stop)
    # A run that has its record gets a summary as well, which needs the run opened.
    with request.defer_interrupts():
        planning.start()
        planning.wait(request.patience_s)
    planning.check()
    return planning
