"""What the commands do, as functions: run, evaluate, evaluate_panoptic, diff."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    from jobs.results.diff import Diff
    from jobs.results.evaluation import Evaluation
    from jobs.results.panoptic_quality import PanopticEvaluation
    from pipeline.runs.summary import RunSummary
    from pipeline.storage.config import StorageSection

# The flags of `htc run` that people type most, with the keys of the spec that they set.
_KEYS = {
    "model": "model.preset",
    "model_options": "model.options",
    "weights": "model.weights",
    "ensemble": "ensemble",
    "augment": "model.augment",
    "score_threshold": "model.score_threshold",
    "max_detections": "model.max_detections",
    "precision": "model.precision",
    "semantic": "model.semantic",
    "panoptic": "model.panoptic",
    "workers": "compute.workers",
    "batch_size": "compute.batch_size",
    "shard_images": "compute.shard_images",
    "limit": "input.limit",
    "storage": "storage",
}


def run(
    source: "JobSpec | str",
    output: str | None = None,
    *,
    run: str | None = None,
    fresh: bool = False,
    incremental: bool = False,
    overrides: Mapping[str, object] | None = None,
    **options: Any,
) -> "RunSummary":
    """Segment images into tables, as `htc run` does; called again, it resumes.

        htc_batch.run("photos/", "masks/", model="htc_r50_fpn", workers=2)
        htc_batch.run(htc_batch.load_spec("job.yaml"))

    Args:
        source: a job spec, or the input's path or URL, with `output` beside it.
        run: the run's name; by default the newest run of the output is resumed, or a new one begins.
        fresh: begin a new run even if there is one to resume.
        incremental: only what is new or changed since the earlier runs (docs/nightly.md).
        overrides: keys of the spec with a dot, such as {"retry.max_attempts": 2}; of an input and an output only.
        options: model, model_options, weights, ensemble (a list of members, or the section of a spec), augment,
            score_threshold, max_detections, precision, semantic, panoptic, workers, batch_size, shard_images, limit
            and storage, of an input and an output only, as the flags of `htc run`; and what `pipeline.driver.run`
            takes beside the spec, such as load_model, a function that returns your own model.

    Returns:
        The summary, which is also in the run's summary.json; its `exit_code` is 0 when every image has its row and
        the error rate is within the budget.

    Raises:
        HtcError: the run cannot begin, or cannot continue; what is committed stays.
    """
    from pipeline.driver.run_job import run as run_job

    keys = {_KEYS[name]: options.pop(name) for name in tuple(options) if name in _KEYS}
    keys |= {"select.mode": "incremental"} if incremental else {}
    keys |= dict(overrides or {})
    if isinstance(source, JobSpec):
        if output is not None or keys:
            raise SpecError("A job spec has its output and its settings; give changes to htc_batch.load_spec.")
        return run_job(source, run=run, fresh=fresh, **options)
    if output is None:
        raise SpecError("htc_batch.run takes a job spec, or an input and an output.")
    spec = load_spec(None, {"input.uri": source, "output.uri": output, **keys})
    return run_job(spec, run=run, fresh=fresh, **options)


def evaluate(
    output: str,
    truth: "str | Mapping[str, Any]",
    run: str | None = None,
    *,
    storage: "Mapping[str, Any] | StorageSection | None" = None,
    **options: Any,
) -> "Evaluation":
    """Score a run against COCO annotations, as `htc evaluate` does (docs/evaluate.md).

    Args:
        truth: a COCO JSON file, a path or a URI, also gzipped; or what `json.load` returned.
        run: None takes the newest run that has images.
        storage: as for `open`.
        options: classes (names to score), is_strict (refuse annotations with flaws), match ("name", "stem" or "id"),
            min_score and worst.

    Returns:
        The evaluation: `metrics` has COCO's twelve numbers by kind, "box" and "mask"; `to_dict()` is what `htc evaluate
        --format json` writes.

    Raises:
        HtcError: there is no such run, no annotated image is in it, or the annotations cannot be read.
    """
    from htc_batch.results import section_of
    from jobs.results.evaluation import evaluate as judge

    return judge(output, truth, run=run, storage_section=section_of(storage), **options)


def evaluate_panoptic(
    output: str,
    truth: str,
    run: str | None = None,
    *,
    storage: "Mapping[str, Any] | StorageSection | None" = None,
    **options: Any,
) -> "PanopticEvaluation":
    """Score a run's panoptic segments, as `htc evaluate --panoptic` does (docs/evaluate.md).

    Args:
        truth: a file in COCO's panoptic format, a path or a URI, also gzipped; its PNGs are in the folder beside it of
            its name without the ending.
        run: None takes the newest run that has images.
        storage: as for `open`.
        options: classes (names to score), is_strict (refuse a truth with flaws), match ("name", "stem" or "id") and
            worst.

    Returns:
        The evaluation: `qualities` has PQ, SQ and RQ of all categories, of things and of stuff; `to_dict()` is what
        `htc evaluate --panoptic --format json` writes.

    Raises:
        HtcError: there is no such run, it has no panoptic segments, no annotated image is in it, or the truth cannot be
            used.
    """
    from htc_batch.results import section_of
    from jobs.results.panoptic_quality import evaluate_panoptic as judge

    return judge(output, truth, run=run, storage_section=section_of(storage), **options)


def diff(
    output: str,
    run_a: str | None = None,
    run_b: str | None = None,
    *,
    other: str | None = None,
    storage: "Mapping[str, Any] | StorageSection | None" = None,
    **options: Any,
) -> "Diff":
    """Compare two runs instance by instance, as `htc diff` does.

    Args:
        run_a, run_b: names, or "current"; None for B takes the newest run with images, for A the one before it.
        other: the output of run B; None takes that of run A.
        storage: as for `open`.
        options: min_score, match_iou, same_iou, score_change and is_changed_content_compared, the rules of what counts
            as a change; uris, largest and tables as for `jobs.results.diff.diff_runs`.

    Returns:
        The differences: `changed_share`, `counts` by kind, `categories`, `largest`; `to_dict()` is what `htc diff
        --format json` writes.

    Raises:
        HtcError: there is no such run, both are the same one, or they have no image in common.
    """
    from htc_batch.results import section_of
    from jobs.results.diff import DiffRules, diff_runs

    names = [field.name for field in fields(DiffRules)]
    rules = DiffRules(**{name: options.pop(name) for name in names if name in options})
    return diff_runs(output, run_a, other, run_b, rules=rules, storage=Storage(section_of(storage)), **options)
