"""Runs a job spec: hands shards to workers, tries again what fails, and says how it ended.

The driver's only state is the output folder. Its one lock is the run's lease, which a dead driver loses, so killing
it at any instant costs at most the shards in flight, and the same command goes on from there.
"""

import logging
import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cluster.connection import connected_resources, ray_cluster
from pipeline.cluster.preflight import check_nodes
from pipeline.driver.progress import ProgressDisplay, choose_progress
from pipeline.driver.progress_file import ProgressFile, remove_progress
from pipeline.driver.session import Session
from pipeline.errors import InputError, RunError, StorageError
from pipeline.job_spec.job import JobSpec
from pipeline.planning.input_changes import InputChanges, compare_input, suggest_command
from pipeline.planning.planner import require_images
from pipeline.planning.selection_report import selection_lines
from pipeline.planning.worker_plan import expected_workers
from pipeline.runs.lease import take_lease
from pipeline.runs.open import open_run
from pipeline.runs.outcomes import EXIT_COMPLETE, EXIT_INPUT_CHANGED
from pipeline.runs.run import RunHandle
from pipeline.runs.summary import RunSummary
from pipeline.signals import StopRequest, interruptible
from pipeline.storage.storage import Storage
from pipeline.text import count_of
from pipeline.weights.cache import weights_here
from pipeline.weights.fingerprint import ModelFingerprint, compute_fingerprint, resolve_preset

if TYPE_CHECKING:
    from pipeline.worker.segmenter import LoadModel

log = logging.getLogger(__name__)

# Most inputs are listed by then, and the first line tells how many images there are; larger ones do not wait.
LISTING_PATIENCE_S = 1.5
DEMO_NOTE = (
    "This is the small demo model, which knows persons only; for COCO's 80 classes: --model htc_r50_fpn fetches "
    "published weights."
)


def run(
    spec: JobSpec,
    *,
    run: str | None = None,
    fresh: bool = False,
    progress: ProgressDisplay | None = None,
    load_model: "LoadModel | None" = None,
) -> RunSummary:
    """Segment the spec's input into the spec's output, resuming what is there already.

    Args:
        run: the run's name; by default the newest of the output goes on, or a new one begins.
        fresh: begin a new run whatever is there.
        progress: where to show how far it is; by default a bar on a terminal, plain lines elsewhere.
        load_model: loads the model in the workers instead of the spec's preset and weights; must survive
            pickling.

    Returns:
        The summary, which is also in the run's summary.json; its `exit_code` is 0 when every image has its
        row and the error rate is within the budget. Ctrl-C, SIGTERM and SIGHUP end the run with the status
        "interrupted". Of a run that was complete before, the input is listed again; when it has changed, the
        `exit_code` is `outcomes.EXIT_INPUT_CHANGED`, and the `reason` says how.

    Raises:
        HtcError: the run cannot begin (SpecError, InputError, WeightsUnavailableError, StorageError; StoppedError
            for a signal), or cannot go on (RunError, of which RunHeldError says that another driver is at it); what is
            committed stays.
    """
    display = progress or choose_progress()
    storage = Storage(spec.storage)
    stop = StopRequest()
    with stop, ExitStack() as closing:
        closing.callback(display.close)
        with interruptible(stop):
            opened, fingerprint, spec = _open(spec, storage, stop, closing, display, run=run, fresh=fresh)
        closing.callback(opened.close)
        if opened.state == "complete":
            remove_progress(storage, spec.output.uri, opened.name)
        else:
            recorded = ProgressFile(storage, spec.output.uri, opened.name, display)
            closing.callback(recorded.close)
            display = recorded
        if not fingerprint.trained:
            display.note("The model's weights are untrained: its detections mean nothing.")
        if spec.model.weights == "demo":
            display.note(DEMO_NOTE)
        changes = None
        if opened.state == "complete" and spec.select.mode == "full":
            display.note(f"Run {opened.name} is complete; its input is listed again to see what has changed.")
            with interruptible(stop):
                changes = compare_input(spec.input, storage, spec.output.uri, opened.name)
        _announce(opened, display, changes)
        is_trained = fingerprint.trained
        session = Session(spec, opened, storage, display, is_trained=is_trained, load_model=load_model, stop=stop)
        if not opened.is_done:
            try:
                session.work()
            except (RunError, InputError, StorageError) as error:
                session.end(cut_short=str(error))
                raise
        return _with_changes(session.end(), changes, spec, is_named=run is not None)


def _open(
    spec: JobSpec,
    storage: Storage,
    stop: StopRequest,
    closing: ExitStack,
    display: ProgressDisplay,
    *,
    run: str | None,
    fresh: bool,
) -> tuple[RunHandle, ModelFingerprint, JobSpec]:
    """Check what the run needs, and begin it or find it; the spec returned has the model's preset."""
    if os.environ.get("RAY_ADDRESS"):
        # Stays connected: the session finds it so, and whoever opened it closes it.
        closing.enter_context(ray_cluster(spec.compute, shards=None))
        check_nodes(spec, tell=display.note)
    if spec.model.weights != "untrained" and weights_here(spec.model) is None:
        # Half a gigabyte of weights is not fetched for a misspelt input.
        require_images(spec.input, storage, spec.output.uri)
    spec = spec.model_copy(update={"model": resolve_preset(spec.model, storage)})
    fingerprint = compute_fingerprint(spec.model, storage)
    if spec.select.mode == "incremental":
        # With many millions of rows it takes minutes.
        display.note("Reading what earlier runs did.")
    opened = open_run(
        spec,
        fingerprint.to_dict(),
        storage,
        run=run,
        fresh=fresh,
        hold=lambda name: take_lease(storage, spec.output.uri, name, tell=display.note),
        patience_s=LISTING_PATIENCE_S,
        deferring=stop.deferring,
        workers=expected_workers(spec.compute, connected_resources()),
    )
    return opened, fingerprint, spec


def _with_changes(summary: RunSummary, changes: InputChanges | None, spec: JobSpec, *, is_named: bool) -> RunSummary:
    """Add what has changed in the input since the run; a run that is not complete says so first."""
    if changes is None or not changes.has_any:
        return summary
    way = suggest_command(changes, is_named=is_named, max_deleted_share=spec.select.max_deleted_share)
    reason = f"The run {summary.run} is complete, and its input has changed since: {changes.counts()}. {way}"
    exit_code = EXIT_INPUT_CHANGED if summary.exit_code == EXIT_COMPLETE else summary.exit_code
    return replace(summary, exit_code=exit_code, reason=f"{summary.reason} {reason}".strip())


def _announce(opened: RunHandle, display: ProgressDisplay, changes: InputChanges | None) -> None:
    if opened.passed_over:
        display.note(
            f"Run {opened.passed_over} is not complete and was started with another model or spec; it stays as it is, "
            "and what it has not done is done now."
        )
    if opened.state == "complete":
        if changes is not None and changes.unknown:
            display.note(f"The input: {changes.unknown_note()}; an incremental run asks for all of them.")
        if changes is None or not changes.has_any:
            display.note(f"Run {opened.name} is complete already; nothing to do.")
    elif opened.state == "resumed":
        left = len(opened.todo())
        so_far = "" if opened.is_planned else " so far; the input is still being listed"
        display.note(f"Resuming run {opened.name}: {left} of {opened.shard_count} shards to go{so_far}.")
    elif opened.is_planned:
        _announce_plan(opened, display)
    else:
        images = count_of(opened.image_count, "image")
        display.note(f"Run {opened.name}: {images} so far; work begins while the input is still being listed.")
    if not opened.is_planned:
        opened.when_planned = lambda: _announce_plan(opened, display)


def _announce_plan(opened: RunHandle, display: ProgressDisplay) -> None:
    display.note(
        f"Run {opened.name}: {count_of(opened.image_count, 'image')} in {count_of(opened.shard_count, 'shard')}."
    )
    if opened.manifest.listing:
        display.note(f"The listing is {opened.manifest.listing}.")
    for line in selection_lines(opened.manifest.selection):
        display.note(line)
    for line in opened.manifest.left_out():
        display.note(f"Of the input, {line}.")
