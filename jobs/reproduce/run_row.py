"""Does one row: fetches its weights, runs the job on the photos, scores the tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from htc_model.config import load_preset
from htc_model.weights.model_zoo import find_by_sha256
from jobs.reproduce.coco_folder import CocoFolder
from jobs.reproduce.row_result import RowResult, load_result, speed_of, to_percent, write_result
from jobs.reproduce.table_rows import TableRow
from jobs.results.evaluation import evaluate
from pipeline.errors import RunError, SpecError, StoppedError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.runs.outcomes import EXIT_INPUT_CHANGED
from pipeline.runs.summary import RunSummary
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from pipeline.weights.cache import Progress, fetch_weights
from pipeline.weights.fingerprint import compute_fingerprint

Run = Callable[[JobSpec], RunSummary]


@dataclass(frozen=True)
class Settings:
    """What all rows have in common.

    work: the folder of the outputs. limit: the first images only. job: further values of the job spec, by dotted key.
    """

    coco: CocoFolder
    work: str
    limit: int | None
    job: Mapping[str, object]


def run_row(row: TableRow, settings: Settings, storage: Storage, *, run: Run, on_progress: Progress) -> RowResult:
    """Do the row, or what is left of it.

    Raises:
        StoppedError: a signal came; the same command continues.
        HtcError, ValueError: the row cannot be done; the others may be.
    """
    before = load_result(storage, settings.work, row.name)
    if before is not None and before.is_done and row.weights is None and before.is_published:
        return before
    weights = row.weights or str(fetch_weights(row.name, on_progress=on_progress))
    spec = spec_of(row, weights, settings)
    sha256 = compute_fingerprint(spec.model, storage).weights_sha256
    if before is not None and before.weights_sha256 != sha256:
        raise SpecError(
            f"{join(settings.work, row.name)} was made with other weights ({before.weights}); name another folder with "
            "--to."
        )
    if before is not None and before.is_done:
        return before
    found = find_by_sha256(sha256)
    result = before or RowResult(
        name=row.name,
        preset=row.preset,
        weights=row.weights or (row.published.file_name if row.published else ""),
        weights_sha256=sha256,
        run="",
        speed=None,
        limit=settings.limit,
        metrics={},
        is_published=found is not None and found.name == row.name,
    )
    summary = run(spec)
    result = replace(result, run=summary.run, speed=speed_of(summary, result.speed))
    write_result(storage, settings.work, result)
    if summary.status == "interrupted":
        raise StoppedError(summary.reason or f"{row.name} was interrupted.")
    if summary.status != "complete":
        raise RunError(summary.reason or f"Its run {summary.run} is {summary.status}.")
    result = _scored(result, summary, spec, settings)
    write_result(storage, settings.work, result)
    return result


def spec_of(row: TableRow, weights: str, settings: Settings) -> JobSpec:
    """Return the row's job: the threshold and the number of detections are those of the published test config."""
    config = load_preset(row.preset)
    return load_spec(
        None,
        {
            "model.precision": "fp32",
            **settings.job,
            "input.uri": settings.coco.photos,
            "input.limit": settings.limit,
            "output.uri": join(settings.work, row.name),
            "model.preset": row.preset,
            "model.weights": weights,
            "model.score_threshold": config.score_threshold,
            "model.max_detections": config.max_detections,
        },
    )


def _scored(result: RowResult, summary: RunSummary, spec: JobSpec, settings: Settings) -> RowResult:
    evaluation = evaluate(spec.output.uri, settings.coco.truth, run=summary.run, worst=0, storage_section=spec.storage)
    changed = [summary.reason] if summary.exit_code == EXIT_INPUT_CHANGED else []
    return replace(
        result,
        metrics=to_percent(evaluation.metrics),
        images=evaluation.images,
        annotated=settings.coco.images,
        failed=sum(count for status, count in summary.statuses.items() if status != "ok"),
        classes=len(evaluation.classes),
        notes=(*changed, *evaluation.notes),
    )
