"""`htc plan`: report what a run would do, without writing anything."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from jobs.running.cost_estimate import (
    CostPlan,
    EstimateOptions,
    check_options,
    estimate_values,
    plan_cost,
    pools_of,
    rate_lines,
    rate_of_runs,
    size_note,
    write_estimates,
)
from jobs.running.model_check import ModelCheck, check_model, known_fingerprint, plan_local_workers
from jobs.running.probe import Probe, probe_images, run_probe
from jobs.terminal.console import say, size_of, write_json, write_table
from pipeline.errors import HtcError, ImageError, NotFoundError
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import JobSpec
from pipeline.machine_limits import machine_name
from pipeline.models.factory import find_factory
from pipeline.models.identity import is_here
from pipeline.planning.estimate import WorkerRate
from pipeline.planning.incremental import IncrementalPlan, NewRun
from pipeline.planning.input_changes import InputChanges, InputComparison, suggest_command, translated_input_errors
from pipeline.planning.selection_report import selection_lines
from pipeline.planning.shard_size import ShardSizing
from pipeline.planning.size_sample import SizeSample
from pipeline.planning.survey import InputSurvey, survey_input
from pipeline.planning.worker_plan import local_gpus
from pipeline.redaction import redact
from pipeline.runs.cost import read_cost
from pipeline.runs.open import find_run
from pipeline.runs.outcomes import EXIT_COMPLETE, EXIT_FAILED, EXIT_INPUT_CHANGED, EXIT_USAGE
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage
from pipeline.text import count_of, format_duration
from pipeline.weights.fingerprint import resolve_preset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.worker.open_tiles import TileReader
    from pipeline.worker.tiling import TileGrid

SAMPLE_IMAGES = 8
Line = tuple[str, str]


@dataclass(frozen=True)
class SampleDecode:
    """The result of reading and decoding a few images.

    images: [H, W, 3] uint8 RGB. failures: URI and reason of each image that could not be read or decoded.
    cut: URI and tiles of each image that is cut into tiles; only their headers are read.
    """

    images: "list[NDArray[np.uint8]]"
    failures: list[tuple[str, str]]
    cut: "list[tuple[str, TileGrid]]" = field(default_factory=list)


class _WouldWriteError(Exception):
    """The run would write here: everything before the first write was checked."""


class _ReadOnlyStorage(Storage):
    """Storage that never writes, so that `htc plan` can use the code that finds and resumes runs.

    `find_run` writes in one case: for a run whose planning was interrupted it continues the planning, and writes a
    manifest part or the record. Its input has not been listed to the end, so the plan reports it like a new run; see
    `_existing_run`. A pipeline function that writes by another method than `write` or `delete` would need it here.
    """

    def write(self, uri: str, payload: bytes) -> NoReturn:
        """Raise _WouldWriteError instead of writing."""
        raise _WouldWriteError(uri)

    def delete(self, uri: str) -> None:
        """Do nothing."""


def report_plan(
    spec: JobSpec,
    *,
    run: str | None,
    fresh: bool,
    is_model_timed: bool,
    is_json: bool = False,
    options: EstimateOptions | None = None,
) -> int:
    """Write to stdout what `htc run` with the same arguments would do; write nothing else.

    Args:
        is_model_timed: load the model and time it on one of the sampled images.
        is_json: as one JSON object instead of text.
        options: for which worker pools the run is estimated, and from which rate.

    Returns:
        The exit code: 0 if the run could start, 1 if no pool is expected to keep the deadline and the largest cost, or
        a probe could segment no image, 2 if its weights or model are missing or wrong or there is no rate for the
        estimates that were asked for, 3 if the run is complete and its input has changed since.

    Raises:
        HtcError: the run could not start: no input, another run's spec, an occupied output; or the options are wrong.
    """
    options = options or EstimateOptions()
    check_options(options, spec)
    storage = _ReadOnlyStorage(spec.storage)
    if spec.model.factory is not None:
        find_factory(spec.model.factory)
    elif is_here(spec.model):
        spec = spec.model_copy(update={"model": resolve_preset(spec.model)})
    fingerprint = known_fingerprint(spec, storage, run)
    existing = _existing_run(spec, storage, fingerprint, run=run, fresh=fresh)
    if existing is not None:
        _read_manifest(existing)
    incremental = _plan_incremental(spec, storage, fingerprint) if existing is None else None
    size_sample = SizeSample() if options.is_probed else None
    began = time.monotonic()
    survey, changes = _survey(spec, storage, existing, incremental, size_sample)
    listing_s = time.monotonic() - began
    sample = decode_sample(spec, survey, storage)
    # Beside images that are cut, the time of one that is not says nothing about the run's.
    timed = sample.images if not sample.cut else []
    check = check_model(spec, timed if is_model_timed and not options.is_probed else None)
    estimate = _estimate(spec, survey, existing, check)
    probe = None
    if size_sample is not None and not check.problem:
        probe = _run_probe(spec, storage, options, size_sample)
    cost = _plan_cost(
        spec,
        storage,
        options,
        survey=survey,
        existing=existing,
        here=estimate,
        check=check,
        probe=probe,
        fingerprint=fingerprint,
        listing_s=listing_s,
    )
    problem = check.problem or _why_no_estimate(options, spec, cost, probe, estimate.images)
    exit_code = _exit_code(changes, cost, probe, problem)
    if is_json:
        write_json(
            _plan_as_dict(
                spec,
                survey,
                existing=existing,
                changes=changes,
                sample=sample,
                check=check,
                estimate=estimate,
                exit_code=exit_code,
                problem=problem,
            )
            | {"estimate": estimate_values(cost, probe)}
        )
        return exit_code
    lines = [*_input_lines(survey), *_sample_lines(sample), *_run_lines(spec, existing, run, changes)]
    lines += [
        *check.lines,
        *(
            _time_lines(estimate, check, is_cut=bool(sample.cut))
            if cost is None
            else [("this machine", f"workers: {estimate.description}")]
        ),
    ]
    if cost is not None:
        lines += rate_lines(cost)
    write_table(["", ""], lines, has_header=False)
    if cost is not None:
        write_estimates(cost)
    _say_problems(sample, probe, problem)
    return exit_code


def _exit_code(changes: InputChanges | None, cost: CostPlan | None, probe: Probe | None, problem: str | None) -> int:
    if problem:
        return EXIT_FAILED if probe is not None and probe.problem else EXIT_USAGE
    if changes is not None and changes.has_any:
        return EXIT_INPUT_CHANGED
    return EXIT_COMPLETE if cost is None or cost.is_kept else EXIT_FAILED


def _say_problems(sample: SampleDecode, probe: Probe | None, problem: str | None) -> None:
    for uri, reason in sample.failures:
        say(redact(f"Not decoded: {uri}: {reason}"))
    for uri, reason in probe.failures if probe is not None else ():
        say(redact(f"Not segmented by the probe: {uri}: {reason}"))
    if problem:
        say(redact(problem))


def _plan_as_dict(
    spec: JobSpec,
    survey: InputSurvey,
    *,
    existing: RunHandle | None,
    changes: InputChanges | None,
    sample: SampleDecode,
    check: ModelCheck,
    estimate: "_Estimate",
    exit_code: int,
    problem: str | None,
) -> dict[str, object]:
    manifest = survey.manifest
    todo = len(existing.todo()) if existing else manifest.shard_count
    return {
        "exit_code": exit_code,
        "problem": redact(problem) if problem else None,
        "images": manifest.image_count,
        "bytes": manifest.listed_bytes,
        "images_of_unknown_size": manifest.unsized_images,
        "shards": existing.shard_count if existing else manifest.shard_count,
        "shards_to_do": todo,
        "shard_images": manifest.shard_images,
        "output": spec.output.uri,
        "run": existing.name if existing else None,
        "input_changes": changes.counts() if changes is not None and changes.has_any else None,
        "sample": {
            "decoded": len(sample.images),
            "failed": [{"uri": redact(uri), "reason": redact(reason)} for uri, reason in sample.failures],
            "cut": [
                {"uri": redact(uri), "height": grid.size[0], "width": grid.size[1], "tiles": len(grid)}
                for uri, grid in sample.cut
            ],
        },
        "workers": estimate.workers,
        "seconds_per_image": check.image_s,
        "model_start_s": check.load_s if check.image_s is not None else None,
        "images_to_do": estimate.images,
        "seconds": estimate.seconds,
    }


def _survey(
    spec: JobSpec,
    storage: Storage,
    existing: RunHandle | None,
    incremental: IncrementalPlan | None,
    size_sample: SizeSample | None,
) -> tuple[InputSurvey, InputChanges | None]:
    """List the input, and compare it with the complete run of it, if there is one."""
    survey = partial(
        survey_input,
        spec.input,
        storage,
        spec.output.uri,
        sizing=ShardSizing.of(spec.compute),
        sample_images=SAMPLE_IMAGES,
        size_sample=size_sample,
    )
    if existing is None or existing.state != "complete" or spec.select.mode != "full":
        return survey(incremental=incremental), None
    comparison = InputComparison(spec.input, storage, spec.output.uri, existing.name)
    with translated_input_errors(existing.name):
        return survey(comparison=comparison), comparison.changes()


def _plan_incremental(spec: JobSpec, storage: Storage, fingerprint: Mapping[str, Any]) -> IncrementalPlan | None:
    if spec.select.mode == "full":
        return None
    new_run = NewRun(datetime.now(UTC).isoformat(), "", fingerprint, spec.identity())
    return IncrementalPlan(spec.input, spec.select, storage, spec.output.uri, run=new_run)


def _existing_run(
    spec: JobSpec, storage: Storage, fingerprint: Mapping[str, Any], *, run: str | None, fresh: bool
) -> RunHandle | None:
    """Find the run that would be resumed; None if a new one would begin, or the planning would be continued."""
    try:
        return find_run(spec, fingerprint, storage, run=run, fresh=fresh)
    except _WouldWriteError:
        return None


def _read_manifest(existing: RunHandle) -> None:
    """Read each manifest part with a shard to do, as resuming will."""
    layout = existing.manifest.layout
    for shard in {layout.find(shard)[0]: shard for shard in existing.todo()}.values():
        existing.read_shard(shard)


def decode_sample(spec: JobSpec, survey: InputSurvey, storage: Storage) -> SampleDecode:
    """Read and decode the survey's sample; failures are returned, not raised."""
    from pipeline.inputs.decode import decode_image
    from pipeline.inputs.formats.bands import rule_of

    sample, rule = SampleDecode([], []), rule_of(spec.input.model_dump())
    tiles = _tile_reader(spec, storage)
    for ref in survey.sample:
        try:
            found = None if tiles is None else tiles.find_stored(ref)
            if found is None:
                payload = read_image(ref, storage, max_bytes=spec.images.max_bytes)
                found = None if tiles is None else tiles.find_decoded(payload)
            if found is not None:
                sample.cut.append((ref.uri, found.grid))
                continue
            sample.images.append(decode_image(payload, max_pixels=spec.images.max_pixels, rule=rule))
        except NotFoundError:
            # An object that a store listed existed; one that a text file or a row names may never have existed.
            was_there = ref.row is None and (ref.bytes is not None or ref.etag is not None)
            sample.failures.append(
                (ref.uri, f"missing: {'it is gone since it was listed' if was_there else 'not found'}")
            )
        except ImageError as error:
            sample.failures.append((ref.uri, f"{error.status}: {error.reason}"))
        except HtcError as error:
            sample.failures.append((ref.uri, str(error)))
    return sample


def _tile_reader(spec: JobSpec, storage: Storage) -> "TileReader | None":
    if spec.tiles is None:
        return None
    from pipeline.inputs.formats.bands import rule_of
    from pipeline.worker.open_tiles import TileReader

    return TileReader(spec.tiles, spec.images, storage, rule=rule_of(spec.input.model_dump()))


def _input_lines(survey: InputSurvey) -> Iterator[Line]:
    manifest = survey.manifest
    size = size_of(manifest.listed_bytes)
    unsized = f", {count_of(manifest.unsized_images, 'image')} of unknown size" if manifest.unsized_images else ""
    label = "to do" if manifest.selection else "input"
    yield label, f"{count_of(manifest.image_count, 'image')}, {size}{unsized}"
    if manifest.listing:
        yield "listing", manifest.listing
    for line in selection_lines(manifest.selection):
        yield "", line
    if columns := manifest.read_columns():
        yield "column", columns
    for line in manifest.left_out():
        yield "", line
    yield "shards", f"{manifest.shard_count:,} of up to {count_of(manifest.shard_images, 'image')}"


def _sample_lines(sample: SampleDecode) -> Iterator[Line]:
    total = len(sample.images) + len(sample.failures) + len(sample.cut)
    if not total:
        return
    sizes = Counter(f"{image.shape[1]}x{image.shape[0]}" for image in sample.images)
    shown = ", ".join(f"{size} ({count})" if count > 1 else size for size, count in sizes.most_common(6))
    of = f"of the first {count_of(total, 'image')}"
    if sample.images or sample.failures:
        yield "sample", f"{len(sample.images)} {of} decode" + (f": {shown}" if shown else "")
    if sample.cut:
        yield "tiles", f"{len(sample.cut)} {of} cut into tiles"
    grids = Counter((grid.size, grid.tile_size, len(grid)) for _, grid in sample.cut)
    for ((height, width), (tile_height, tile_width), tiles), count in grids.most_common(6):
        size = f"{width}x{height}" + (f" ({count})" if count > 1 else "")
        yield "", f"{size}: {count_of(tiles, 'tile')} of {tile_width}x{tile_height}"


def _run_lines(
    spec: JobSpec, existing: RunHandle | None, name: str | None, changes: InputChanges | None
) -> Iterator[Line]:
    yield "output", spec.output.uri
    if existing is None:
        yield "run", f"a new run{f', {name}' if name else ''}"
        return
    left = len(existing.todo())
    if left:
        yield "run", f"resumes {existing.name}: {left:,} of {count_of(existing.shard_count, 'shard')} to go"
    elif changes is not None and changes.has_any:
        yield "run", f"{existing.name} is complete, and its input has changed since: {changes.counts()}"
        yield "", suggest_command(changes, is_named=name is not None, max_deleted_share=spec.select.max_deleted_share)
    else:
        yield "run", f"{existing.name} is complete already; nothing to do (--fresh starts another)"
    if changes is not None and changes.unknown:
        yield "", f"{changes.unknown_note()}; an incremental run asks for all of them"


@dataclass(frozen=True)
class _Estimate:
    """How long this machine would take.

    workers: on this machine, `description` says how sized. images: to do, at most. seconds: None where no image was
    timed, or nothing is to do.
    """

    workers: int
    description: str
    images: int
    seconds: float | None


def _run_probe(spec: JobSpec, storage: Storage, options: EstimateOptions, size_sample: SizeSample) -> Probe:
    one, _ = plan_local_workers(spec, shards=1, gpus=local_gpus())
    return run_probe(spec, storage, size_sample.pick(options.probe_images or probe_images(one)), one)


def _plan_cost(
    spec: JobSpec,
    storage: Storage,
    options: EstimateOptions,
    *,
    survey: InputSurvey,
    existing: RunHandle | None,
    here: "_Estimate",
    check: ModelCheck,
    probe: Probe | None,
    fingerprint: Mapping[str, Any],
    listing_s: float,
) -> CostPlan | None:
    """Estimate the pools; None when no rate is known, or when only this machine is asked about and one image timed."""
    now = datetime.now(UTC)
    rate, notes = None, []
    if options.images_per_s is not None:
        rate = WorkerRate(options.images_per_s, None, None, "given", "--images-per-s, given by hand")
    elif options.is_probed:
        rate = probe.rate if probe is not None else None
    else:
        found = rate_of_runs(spec, storage, fingerprint, like=options.like, now=now)
        manifest = survey.manifest
        sized = manifest.image_count - manifest.unsized_images
        if found is not None:
            rate = found.rate
            notes = [note] if (note := size_note(found, manifest.listed_bytes / sized if sized else None)) else []
    if rate is None and check.image_s and (options.is_asked or spec.budget.deadline or spec.budget.worker_price):
        described = f"one {check.timed_size} image, timed just now on this machine; --probe measures more"
        rate = WorkerRate(1 / check.image_s, None, None, "image", described, machine_name())
    if rate is None or check.problem:
        return None
    shards = len(existing.todo()) if existing else survey.manifest.shard_count
    return plan_cost(
        options,
        spec,
        rate,
        pools_of(options, spec, here.workers),
        images=here.images,
        shards=shards,
        is_new=existing is None,
        listing_s=listing_s,
        load_s=probe.load_s if probe is not None else check.load_s,
        notes=notes,
        spent=read_cost(storage, spec.output.uri, existing.name).amount or 0.0 if existing is not None else 0.0,
        now=now,
    )


def _why_no_estimate(
    options: EstimateOptions, spec: JobSpec, cost: CostPlan | None, probe: Probe | None, images: int
) -> str:
    if probe is not None and probe.problem:
        return probe.problem
    if cost is None and images and (options.is_asked or spec.budget.deadline or spec.budget.max_cost):
        return (
            f"There is no rate to estimate from: no run in {spec.output.uri} has measured this model. Measure with "
            "--probe, name a run with --like OUTPUT[/RUN], or give --images-per-s."
        )
    return ""


def _estimate(spec: JobSpec, survey: InputSurvey, existing: RunHandle | None, check: ModelCheck) -> _Estimate:
    """Extrapolate from one timed image to all remaining images, over this machine's workers."""
    manifest = existing.manifest if existing else survey.manifest
    shards = len(existing.todo()) if existing else manifest.shard_count
    workers, description = plan_local_workers(spec, max(1, shards), check.gpus)
    images = min(manifest.image_count, shards * manifest.shard_images)
    is_known = check.image_s is not None and shards > 0
    seconds = images * (check.image_s or 0.0) / workers.workers + check.load_s if is_known else None
    return _Estimate(workers.workers, description, images, seconds)


def _time_lines(estimate: _Estimate, check: ModelCheck, *, is_cut: bool) -> Iterator[Line]:
    yield "workers", estimate.description
    if is_cut and estimate.images and not check.problem:
        yield "time", "not known, as images are cut into tiles; --probe measures some"
    if estimate.seconds is None:
        return
    yield "time", f"about {format_duration(estimate.seconds)} on this machine for {count_of(estimate.images, 'image')}"
    yield (
        "",
        (
            f"estimated from one {check.timed_size} image ({check.image_s:.2f} s) and the model's start "
            f"({check.load_s:.1f} s); reading and writing overlap and are not counted"
        ),
    )
