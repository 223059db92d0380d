"""`run`: runs a job spec from the preflight check to the summary.

The driver's only state is the output folder. Its one lock is the run's lease, which expires when the driver dies. So
killing the driver at any instant costs at most the shards in flight, and the same command resumes the run.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.cluster.connection import connected_nodes, ray_cluster, starting_early
from pipeline.cluster.preflight import check_nodes
from pipeline.cluster.ship_weights import weights_on_nodes
from pipeline.driver.forecast import announce_limits, rate_before
from pipeline.driver.pool import OpenPool
from pipeline.driver.progress import ProgressDisplay, choose_progress
from pipeline.driver.progress_file import ProgressFile, remove_progress
from pipeline.driver.run_limits import open_limits
from pipeline.driver.session import Session, ray_pool
from pipeline.driver.traces import RunTrace
from pipeline.errors import InputError, RunError, SpecError, StorageError
from pipeline.inputs.formats.bands import rule_of
from pipeline.job_spec.job import ComputeSection, JobSpec
from pipeline.job_spec.map_tables import check_has_maps
from pipeline.logs import chosen_level, is_json, log_event, note, set_place
from pipeline.maintenance.running_compaction import RunningCompaction
from pipeline.models.factory import search_path
from pipeline.models.identity import identify_model, is_here
from pipeline.models.load_function import check_function, identify_function
from pipeline.otel import Otel, check_telemetry, sending, settings_for
from pipeline.planning.input_changes import InputChanges, compare_input, suggest_command
from pipeline.planning.planner import require_images
from pipeline.planning.selection_report import selection_lines
from pipeline.planning.worker_plan import expected_workers
from pipeline.runs.lease import take_lease
from pipeline.runs.open import open_run
from pipeline.runs.outcomes import EXIT_COMPLETE, EXIT_INPUT_CHANGED, in_words
from pipeline.runs.run import RunHandle
from pipeline.runs.start_up import StartUp
from pipeline.runs.summary import RunSummary
from pipeline.signals import StopRequest, interruptible
from pipeline.storage.storage import Storage
from pipeline.text import count_of
from pipeline.weights.cache import resolve_weights
from pipeline.weights.fingerprint import ModelFingerprint, resolve_config, with_tiles
from pipeline.weights.naming import model_name
from pipeline.worker.worker import WorkerSettings

if TYPE_CHECKING:
    from pipeline.worker.segmenter import LoadModel

log = logging.getLogger(__name__)

# Most inputs are listed by then, and the first line shows how many images there are; larger ones do not wait.
LISTING_PATIENCE_S = 1.5
MIB = 1 << 20
DEMO_NOTE = (
    "This is the small demo model, which knows persons only; for COCO's 80 classes: --model htc_r50_fpn fetches "
    "published weights."
)
DEMO_MAPS_NOTE = " Its semantic map knows persons and everything else, and no stuff."


def run(
    spec: JobSpec,
    *,
    run: str | None = None,
    fresh: bool = False,
    progress: ProgressDisplay | None = None,
    load_model: "LoadModel | None" = None,
    open_pool: OpenPool = ray_pool,
    start_up: StartUp | None = None,
    on_begin: Callable[[RunHandle], object] = lambda run: None,
) -> RunSummary:
    """Segment the spec's input into the spec's output, resuming what is there already.

    Args:
        run: the run's name; by default the newest run of the output is resumed, or a new one begins.
        fresh: begin a new run even if there is one to resume.
        progress: where to show the progress; by default a bar on a terminal, plain lines elsewhere.
        load_model: loads the model in the workers instead of what the spec names: one with a `ModelConfig`, or one that
            keeps to the protocol of `pipeline.models`; must survive pickling. It is called with the spec's model
            section if its first parameter has no default or is named `section`, else without arguments. Its code and
            the values that it holds are the model's identity (`pipeline.models.load_function`), or its attribute
            `identity`, a text.
        open_pool: where the workers run, by default on Ray, which is started while the input is being listed.
        start_up: notes when the parts of the start are done; by default begins now.
        on_begin: called with the open run before work begins; not where every image has its row already.

    Returns:
        The summary, which is also in the run's summary.json; its `exit_code` is 0 when every image has its
        row and the error rate is within the budget. Ctrl-C, SIGTERM and SIGHUP end the run with the status
        "interrupted". Of a run that was complete before, the input is listed again; when it has changed, the
        `exit_code` is `outcomes.EXIT_INPUT_CHANGED`, and the `reason` names the changes.

    Raises:
        HtcError: the run cannot begin (SpecError, InputError, WeightsUnavailableError, StorageError; StoppedError
            for a signal), or cannot continue (RunError, of which RunHeldError means that another driver works on it);
            what is committed stays.
    """
    began = datetime.now(UTC)
    if load_model is not None and spec.model.ensemble is not None:
        raise SpecError("A model of your own (load_model) and an ensemble exclude each other; keep one.")
    display = progress or choose_progress()
    storage = Storage(spec.storage)
    start_up = start_up or StartUp()
    start_up.mark("imports")
    sends_telemetry = check_telemetry(spec.telemetry, report=display.note)
    with StopRequest() as stop, closing(display), ExitStack() as connection:
        starter = connection.enter_context(starting_early(spec.compute, lambda: start_up.mark("ray")))

        def when_there_is_work() -> None:
            start_up.mark("listing")
            if open_pool is ray_pool:
                starter.begin()

        with interruptible(stop):
            if os.environ.get("RAY_ADDRESS"):
                # Stays connected: the session uses this connection, and it is closed here.
                connection.enter_context(ray_cluster(spec.compute, shards=None))
                check_nodes(spec, notify=display.note)
            spec, fingerprint = _identify_model(spec, storage, load_model)
            compute = spec.compute if load_model is not None else _budget_memory(spec, storage, display)
            start_up.mark("weights")
            if os.environ.get("RAY_ADDRESS") and load_model is None:
                for member in spec.model.members:
                    connection.enter_context(weights_on_nodes(resolve_weights(member, storage)))
            rate = rate_before(
                spec.budget,
                storage,
                spec.output.uri,
                fingerprint=fingerprint.to_dict(),
                identity=spec.identity(),
            )
            opened = _open(spec, fingerprint, storage, stop, display, name=run, fresh=fresh, on_work=when_there_is_work)
            opened.start_up = start_up
            set_place(run=opened.name)
        otel_settings = settings_for(opened.name, opened.output_uri) if sends_telemetry else None
        with (
            closing(opened),
            _recorded(opened, storage, display) as shown,
            sending(otel_settings, report=shown.note) as otel,
            _traced(otel, opened) as trace,
        ):
            _note_model(spec, fingerprint, shown, is_callers=load_model is not None)
            changes = _compare_input(spec, storage, opened, shown, stop)
            _announce(opened, shown, changes)
            limits = open_limits(spec.budget, opened, storage, began=began)
            workers = expected_workers(compute, connected_nodes())
            announce_limits(opened, limits, rate, storage, shown, workers=workers)
            session = Session(
                opened,
                storage,
                shown,
                worker=replace(
                    worker_settings(
                        spec,
                        opened.name,
                        load_model,
                        model_name=fingerprint.preset
                        if load_model is not None
                        else model_name(spec.model.preset, spec.model.weights, fingerprint.weights_sha256),
                    ),
                    otel=otel_settings,
                ),
                compute=compute,
                retry=spec.retry,
                is_trained=fingerprint.trained,
                stop=stop,
                open_pool=trace.traced(open_pool) if trace else open_pool,
                compaction=RunningCompaction(
                    storage,
                    opened.output_uri,
                    opened.name,
                    target_bytes=spec.output.target_part_mib * MIB,
                    check=opened.check_lease,
                ),
                limits=limits,
            )
            if not opened.is_done:
                on_begin(opened)
                _work(session)
            summary = _with_changes(session.end(), changes, spec, is_named=run is not None)
            _log_end(summary)
            if trace:
                trace.end(summary)
            return summary


@contextmanager
def _traced(otel: Otel | None, opened: RunHandle) -> Iterator[RunTrace | None]:
    """Trace the session in the block, which ends its span; an error ends it too."""
    if otel is None:
        yield None
        return
    values = {"state": opened.state, "images": opened.image_count, "shards": opened.shard_count}
    trace = RunTrace(otel, traceparent=os.environ.get("TRACEPARENT", ""), run=opened.name, **values)
    try:
        yield trace
    except BaseException as error:
        trace.end(None, error)
        raise


def worker_settings(
    spec: JobSpec, run: str, load_model: "LoadModel | None" = None, *, model_name: str = ""
) -> WorkerSettings:
    """Return what of a spec the workers of the run `run` need; its model section names the preset."""
    return WorkerSettings(
        run=run,
        input_uri=spec.input.uri,
        rule=rule_of(spec.input.model_dump()),
        tiles=spec.tiles,
        output_uri=spec.output.uri,
        model=spec.model,
        images=spec.images,
        storage=spec.storage,
        batch_size=None if spec.compute.batch_size == "auto" else spec.compute.batch_size,
        image_timeout_s=spec.retry.image_timeout_s,
        load_model=load_model,
        mask_processes=spec.compute.mask_processes,
        log_format="json" if is_json() else "text",
        log_level=chosen_level(),
        model_name=model_name,
        search_path=search_path() if spec.model.factory is not None else (),
    )


def _identify_model(
    spec: JobSpec, storage: Storage, load_model: "LoadModel | None"
) -> tuple[JobSpec, ModelFingerprint]:
    """Return the spec with its model's preset, and the model's fingerprint; fetches the weights if necessary.

    Raises:
        SpecError: the network cannot fill the tables of maps; of the caller's own model the workers find that out.
    """
    if load_model is not None:
        check_function(load_model)
    if not is_here(spec.model):
        # Half a gigabyte of weights is not fetched for a misspelt input.
        require_images(spec.input, storage, spec.output.uri)
    if load_model is not None:
        model, fingerprint = identify_function(load_model, spec.model, storage)
    else:
        model, fingerprint = identify_model(spec.model, storage)
    if model.map_tables and load_model is None:
        check_has_maps(resolve_config(model, resolve_weights(model, storage)), model.map_tables)
    return spec.model_copy(update={"model": model}), with_tiles(fingerprint, spec.tiles)


def _budget_memory(spec: JobSpec, storage: Storage, display: ProgressDisplay) -> ComputeSection:
    """Check, where workers run on this machine, that the model can be had and fits its CPU; return how many workers do.

    Elsewhere each worker checks its own device before it loads anything.
    """
    is_asked = spec.model.ensemble is not None or spec.model.augment is not None
    if not is_asked or os.environ.get("RAY_ADDRESS") or find_spec("torch") is None:
        return spec.compute
    from htc_model.inference.fusion import check_wbf
    from pipeline.worker.memory_budget import check_memory, fit_workers, local_budget

    if spec.model.ensemble is not None and spec.model.ensemble.fusion == "wbf":
        check_wbf()
    configs = [resolve_config(member, resolve_weights(member, storage)) for member in spec.model.members]
    budget = local_budget(spec.model, spec.compute, configs)
    if budget is None:
        return spec.compute
    check_memory(budget)
    fitted = fit_workers(spec.compute, budget)
    if fitted is not spec.compute:
        display.note(f"{count_of(fitted.most_workers or 1, 'worker')} at once: more do not fit this machine's memory.")
    return fitted


def _open(
    spec: JobSpec,
    fingerprint: ModelFingerprint,
    storage: Storage,
    stop: StopRequest,
    display: ProgressDisplay,
    *,
    name: str | None,
    fresh: bool,
    on_work: Callable[[], None],
) -> RunHandle:
    """Begin the run or find it, and take its lease."""
    if spec.select.mode == "incremental":
        # With many millions of rows it takes minutes.
        display.note("Reading what earlier runs did.")
    return open_run(
        spec,
        fingerprint.to_dict(),
        storage,
        run=name,
        fresh=fresh,
        take_lease=lambda name: take_lease(storage, spec.output.uri, name, report=display.note),
        # A run that may be refused is judged by all of its images.
        patience_s=None if spec.budget.refuse_late else LISTING_PATIENCE_S,
        defer_interrupts=stop.deferring,
        workers=_expected_workers(spec.compute),
        on_work=on_work,
    )


def _expected_workers(compute: ComputeSection) -> int | None:
    """Return how many workers the run will have, where the size of its shards depends on that."""
    return expected_workers(compute, connected_nodes()) if compute.shard_images == "auto" else None


@contextmanager
def _recorded(opened: RunHandle, storage: Storage, display: ProgressDisplay) -> Iterator[ProgressDisplay]:
    """Write progress.json during the block, unless the run was complete before: then remove what is left of it."""
    if opened.state == "complete":
        remove_progress(storage, opened.output_uri, opened.name)
        yield display
        return
    with closing(ProgressFile(storage, opened.output_uri, opened.name, display)) as recorded:
        yield recorded


def _note_model(spec: JobSpec, fingerprint: ModelFingerprint, display: ProgressDisplay, *, is_callers: bool) -> None:
    if not fingerprint.trained:
        display.note("The model's weights are untrained: its detections mean nothing.")
    if spec.model.weights == "demo" and not is_callers:
        display.note(DEMO_NOTE + (DEMO_MAPS_NOTE if spec.model.wants_semantic else ""))


def _compare_input(
    spec: JobSpec, storage: Storage, opened: RunHandle, display: ProgressDisplay, stop: StopRequest
) -> InputChanges | None:
    """Return what has changed in the input of a full run that was complete before; None for other runs."""
    if opened.state != "complete" or spec.select.mode != "full":
        return None
    display.note(f"Run {opened.name} is complete; its input is listed again to see what has changed.")
    with interruptible(stop):
        return compare_input(spec.input, storage, spec.output.uri, opened.name)


def _work(session: Session) -> None:
    try:
        session.work()
    except (RunError, InputError, StorageError) as error:
        _log_end(session.end(cut_short=str(error)))
        raise


def _log_end(summary: RunSummary) -> None:
    values: dict[str, Any] = summary.to_dict()
    del values["run"]
    sentence = f"The run {summary.run} ended: {in_words(summary.status)}."
    level = "info" if summary.exit_code == EXIT_COMPLETE else "error"
    log_event(log, "run_ended", f"{sentence} {summary.reason}".strip(), level=level, **values)


def _with_changes(summary: RunSummary, changes: InputChanges | None, spec: JobSpec, *, is_named: bool) -> RunSummary:
    """Add what has changed in the input since the run; the reason of a run that is not complete comes first."""
    if changes is None or not changes.has_any:
        return summary
    way = suggest_command(changes, is_named=is_named, max_deleted_share=spec.select.max_deleted_share)
    reason = f"The run {summary.run} is complete, and its input has changed since: {changes.counts()}. {way}"
    exit_code = EXIT_INPUT_CHANGED if summary.exit_code == EXIT_COMPLETE else summary.exit_code
    return replace(summary, exit_code=exit_code, reason=f"{summary.reason} {reason}".strip())


def _announce(opened: RunHandle, display: ProgressDisplay, changes: InputChanges | None) -> None:
    if opened.passed_over:
        display.note(
            f"Run {opened.passed_over} is not complete and was started with another model or spec; it stays unchanged, "
            "and the images that it lacks are done now."
        )
    if opened.state == "complete":
        if changes is not None and changes.unknown:
            display.note(f"The input: {changes.unknown_note()}; an incremental run asks for all of them.")
        if changes is None or not changes.has_any:
            display.note(f"Run {opened.name} is complete already; nothing to do.")
    elif opened.state == "resumed":
        left = opened.shards_left
        so_far = "" if opened.is_planned else " so far; the input is still being listed"
        sentence = f"Resuming run {opened.name}: {left} of {opened.shard_count} shards to go{so_far}."
        display.note(note("run_started", sentence, **_start_values(opened)))
    elif opened.is_planned:
        _announce_plan(opened, display, "run_started")
    else:
        so_far = f"{count_of(opened.image_count, 'image')} so far; " if opened.image_count else ""
        sentence = f"Run {opened.name}: {so_far}work begins while the input is still being listed."
        display.note(note("run_started", sentence, **_start_values(opened)))
    if not opened.is_planned:
        opened.when_planned = lambda: _announce_plan(opened, display, "run_planned")


def _start_values(opened: RunHandle) -> dict[str, Any]:
    return {
        "state": opened.state,
        "images": opened.image_count,
        "shards": opened.shard_count,
        "shards_left": opened.shards_left,
        "output": opened.output_uri,
    }


def _announce_plan(opened: RunHandle, display: ProgressDisplay, event: str) -> None:
    sentence = f"Run {opened.name}: {count_of(opened.image_count, 'image')} in {count_of(opened.shard_count, 'shard')}."
    display.note(note(event, sentence, **_start_values(opened)))
    if opened.manifest.listing:
        display.note(f"The listing is {opened.manifest.listing}.")
    for line in selection_lines(opened.manifest.selection):
        display.note(line)
    for line in opened.manifest.left_out():
        display.note(f"Of the input, {line}.")
