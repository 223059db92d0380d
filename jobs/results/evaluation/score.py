"""Scores a run's tables against annotations; needs no torch."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from htc_model.training.annotations import CocoAnnotations
from htc_model.training.coco_engines import PYCOCOTOOLS
from htc_model.training.coco_eval import coco_document, count_by_size, score_tables
from jobs.results.evaluation.curves import find_best_score, read_curves
from jobs.results.evaluation.errors import break_down
from jobs.results.evaluation.matching import (
    ImageMistakes,
    Matching,
    confident,
    confuse,
    count_mistakes,
    match_objects,
)
from jobs.results.evaluation.overlaps import Overlaps, measure_overlaps
from jobs.results.evaluation.result import Evaluation, KindResult, WorstImage
from jobs.results.evaluation.run_images import MatchRule, RunImages
from jobs.results.evaluation.truth import flaw_sentences, listed, read_truth, refuse_flaws
from pipeline.errors import HtcError, InputError
from pipeline.inputs.coco_files import read_coco
from pipeline.job_spec.job import ModelSection
from pipeline.output.mask_functions import mask_is_valid
from pipeline.output.results import Results, open_results
from pipeline.output.views import query_views
from pipeline.storage.storage import Storage
from pipeline.text import count_of
from pipeline.weights.cache import weights_here
from pipeline.weights.fingerprint import resolve_config

if TYPE_CHECKING:
    import duckdb

    from htc_model.config import ModelConfig
    from pipeline.storage.config import StorageSection

# A share over n images has a standard error of up to 0.5 / sqrt(n): five points here.
FEW_IMAGES = 100
# As `htc show`: low enough to keep instances that a person would accept, high enough to keep clutter out.
DEFAULT_MIN_SCORE = 0.3
DEFAULT_WORST = 12
_INSTANCES = """
    SELECT image_id, category, score, bbox, mask FROM instances
    WHERE run = $run AND image_id IN (SELECT image_id FROM scored_images) ORDER BY image_id, instance
"""
_CATEGORIES = "SELECT DISTINCT category FROM instances WHERE run = $run ORDER BY category"


@dataclass(frozen=True)
class Judgement:
    """An evaluation and what it was made from, for pictures.

    detections: in COCO's result format; image_id is the index in `truth.images`, category_id one of
    `truth.category_ids`. overlaps, sure: of the best kind; `sure` of the detections that reach the score.
    """

    evaluation: Evaluation
    truth: CocoAnnotations
    detections: Sequence[Mapping[str, Any]]
    overlaps: Overlaps
    sure: Matching


def evaluate(
    output_uri: str,
    truth: "str | Mapping[str, Any]",
    *,
    run: str | None = None,
    classes: Sequence[str] = (),
    is_strict: bool = False,
    match: str = "name",
    min_score: float = DEFAULT_MIN_SCORE,
    worst: int = DEFAULT_WORST,
    storage_section: "StorageSection | None" = None,
) -> Evaluation:
    """Judge a run of an output against COCO annotations; see `evaluate_run`.

    Args:
        truth: a COCO JSON file, a path or a URI, also gzipped; or what `json.load` returned.
        match: a `MatchRule`.

    Raises:
        InputError, SpecError: as `evaluate_run`.
    """
    storage = Storage(storage_section)
    return evaluate_run(
        open_results(output_uri, storage),
        truth,
        storage,
        run=run,
        classes=classes,
        is_strict=is_strict,
        match=MatchRule(match),
        min_score=min_score,
        worst=worst,
    )


def evaluate_run(results: Results, truth: "str | Mapping[str, Any]", storage: Storage, **options: Any) -> Evaluation:
    """Judge a run; the arguments are those of `judge_run`."""
    return judge_run(results, truth, storage, **options).evaluation


def judge_run(
    results: Results,
    truth: "str | Mapping[str, Any]",
    storage: Storage,
    *,
    run: str | None = None,
    classes: Sequence[str] = (),
    is_strict: bool = False,
    match: MatchRule = MatchRule.name,
    min_score: float = DEFAULT_MIN_SCORE,
    worst: int = DEFAULT_WORST,
    engine: str | None = None,
) -> Judgement:
    """Score a run's tables against COCO annotations.

    Every annotated image with a row counts, also if it failed; other images of the run do not.

    Args:
        truth: a COCO JSON file, a path or a URI; or its content.
        run: None takes the newest run that has images.
        classes: names to score; by default the classes of the annotations that the model knows.
        is_strict: refuse annotations with any flaw.
        match: how an annotated image is found in the run.
        min_score: what the confusion matrix and the mistakes of an image count; the metrics take every detection.
        worst: how many images with mistakes to name.
        engine: see `run_engine`.

    Raises:
        InputError: no such run, no annotated image in it, two images of one name, images of another size, or a
            damaged mask.
        SpecError: the annotations cannot be read, or have flaws and `is_strict`.
    """
    run = run or results.newest_run()
    images = RunImages(results.images(run, ["image_id", "uri", "width", "height", "status"]).to_pylist(), match)
    model = _model(results, run)
    uri = truth if isinstance(truth, str) else "the truth"
    annotations, notes = read_truth(
        read_coco(truth, storage) if isinstance(truth, str) else truth,
        uri,
        run,
        known=_detected_categories(results, run) if model is None else model.classes,
        classes=classes,
        is_model_known=model is not None,
        find_size=images.find_size,
    )
    if is_strict:
        refuse_flaws(annotations, uri)
    matches = images.match(annotations, uri, run)
    images.refuse_other_sizes(annotations, matches.places, uri)
    rows = _read_instances(results, run, matches.places)
    detections, others = _detections(rows, annotations, matches.places)
    document = coco_document(annotations)
    scored = sorted(matches.places.values())
    # A run without detections does not show whether its model predicts masks.
    makes_masks = any("segmentation" in each for each in detections) if detections else model is None or model.has_masks
    tables = score_tables(detections, document, scored, annotations.category_ids, has_masks=makes_masks, engine=engine)
    kinds = {}
    # Of masks, if they are scored: they come last.
    for name, table in tables.items():
        overlaps = measure_overlaps(document, detections, scored, annotations.category_ids, name)
        matching = match_objects(overlaps)
        sure = confident(overlaps, matching, min_score)
        kinds[name] = KindResult(
            table,
            read_curves(table, find_best_score(overlaps, matching)),
            break_down(overlaps, matching, len(annotations.classes)),
            confuse(overlaps, sure, annotations.classes),
        )
    mistakes = count_mistakes(overlaps, sure, scored)
    first = next(iter(tables.values()))
    notes = [
        *_progress(results, run),
        *flaw_sentences(annotations, uri),
        *notes,
        *images.notes,
        *_other_categories(others, uri, classes),
        *_caveats(annotations, scored, detections, makes_masks=makes_masks, has_mask_scores="mask" in tables),
        *_slow_engine(first.engine),
    ]
    evaluation = Evaluation(
        run=run,
        truth=uri,
        engine=first.engine,
        kinds=kinds,
        images=len(scored),
        instances=len(detections),
        classes=annotations.classes,
        objects=count_by_size(document, scored),
        objects_by_class=_objects_by_class(annotations, scored),
        min_score=min_score,
        worst=_worst(mistakes, images, matches.places, annotations, worst),
        missing=matches.missing,
        bad=annotations.bad,
        mended=annotations.mended,
        notes=tuple(notes),
    )
    return Judgement(evaluation, annotations, detections, overlaps, sure)


def _read_instances(results: Results, run: str, places: Mapping[int, int]) -> list[dict[str, Any]]:
    """Read the instances of the scored images, and check their masks.

    Raises:
        InputError: a mask is damaged.
    """

    def read(database: "duckdb.DuckDBPyConnection") -> pa.Table:
        database.register("scored_images", pa.table({"image_id": pa.array(places, pa.int64())}))
        return database.sql(_INSTANCES, params={"run": run}).to_arrow_table()

    table = query_views(results, read)
    # pycocotools does not check the counts, and loops forever for some that do not fill the mask.
    with_mask = table.filter(table["mask"].is_valid())
    masks = with_mask["mask"].combine_chunks()
    masks = pa.concat_arrays(masks.chunks) if isinstance(masks, pa.ChunkedArray) else masks
    damaged = np.flatnonzero(~mask_is_valid(masks).to_numpy(zero_copy_only=False)) if len(masks) else []
    if len(damaged):
        image = with_mask["image_id"][int(damaged[0])].as_py()
        raise InputError(
            f"A mask of the image {image} in the tables is damaged ({len(damaged):,} in all): its counts do not fill "
            f"its size. The condition NOT mask_is_valid(mask) finds such rows in `htc query {results.output_uri}`; run "
            "their images again."
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _detected_categories(results: Results, run: str) -> list[str]:
    return query_views(
        results, lambda database: [str(row[0]) for row in database.execute(_CATEGORIES, {"run": run}).fetchall()]
    )


def _progress(results: Results, run: str) -> list[str]:
    """Say that a run is not finished."""
    record = next(record for record in results.records if record.run == run)
    done = results.committed_shards(run)
    if record.is_planned and done >= record.shard_count:
        return []
    return [
        f"Run {run} is not finished ({done:,} of {count_of(record.shard_count, 'shard')}"
        f"{'' if record.is_planned else ' listed so far'}); its images without a row are not scored yet."
    ]


def _other_categories(others: Mapping[str, int], uri: str, classes: Sequence[str]) -> list[str]:
    """Name the categories whose detections are not scored because the truth lacks them."""
    if not others or classes:
        return []
    names = sorted(others, key=lambda name: (-others[name], name))
    return [
        f"Not scored: {count_of(sum(others.values()), 'detection')} of "
        f"{count_of(len(others), 'category', 'categories')} that {uri} does not have ({listed(names)})."
    ]


def _caveats(
    truth: CocoAnnotations,
    scored: Sequence[int],
    detections: Sequence[Mapping[str, Any]],
    *,
    makes_masks: bool,
    has_mask_scores: bool,
) -> list[str]:
    """Return why there is no mask AP, and how uncertain the averages are, as sentences."""
    sentences = []
    objects = [[entry for entry in truth.images[number].objects if not entry.is_crowd] for number in scored]
    without = sum(entry.segmentation is None for entries in objects for entry in entries)
    if not detections:
        sentences.append("The run has no detection of these classes on the scored images, so every average is 0.")
    if not makes_masks:
        sentences.append("No mask AP: the run's model predicts boxes only.")
    elif not has_mask_scores:
        sentences.append("No mask AP: the annotations have boxes only.")
    elif without:
        sentences.append(
            f"{count_of(without, 'object')} of the annotations without a mask: the box AP counts them; the mask AP "
            "ignores detections of them."
        )
    with_objects = sum(map(bool, objects))
    if with_objects < FEW_IMAGES:
        sentences.append(
            f"Only {count_of(with_objects, 'scored image')} with objects: an average over fewer than {FEW_IMAGES} may "
            "be off by several points, and the average of a size with few objects by more."
        )
    return sentences


def _slow_engine(engine: str) -> list[str]:
    if not engine.startswith(PYCOCOTOOLS):
        return []
    return [
        f"Scored by {engine}, because faster-coco-eval is not installed: the numbers are the same, and take several "
        "times as long; `pip install faster-coco-eval`."
    ]


def _model(results: Results, run: str) -> "ModelConfig | None":
    """Return the configuration of the run's model, from its preset or weights file; None if that is gone."""
    results.check_run(run)
    record = next(record for record in results.records if record.run == run)
    section = record.spec.get("model", {})
    # The record of a later version may hold values that this one does not know; then the annotations' classes decide.
    with contextlib.suppress(HtcError, ValueError):
        model = ModelSection(**{key: section[key] for key in ("preset", "weights") if key in section})
        weights = weights_here(model)
        if model.weights in {"coco", "untrained"} or (weights is not None and weights.is_file()):
            return resolve_config(model, weights)
    return None


def _detections(
    rows: Sequence[Mapping[str, Any]], annotations: CocoAnnotations, places: Mapping[int, int]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the detections of the scored classes, and how many of which others there are."""
    category_ids = dict(zip(annotations.classes, annotations.category_ids, strict=True))
    detections = []
    others: Counter[str] = Counter()
    for row in rows:
        if row["category"] not in category_ids:
            others[row["category"]] += 1
            continue
        box = row["bbox"]
        detection = {
            "image_id": places[row["image_id"]],
            "category_id": category_ids[row["category"]],
            "score": row["score"],
            "bbox": [box["x"], box["y"], box["width"], box["height"]],
        }
        if row["mask"] is not None:
            detection["segmentation"] = row["mask"]
        detections.append(detection)
    return detections, others


def _objects_by_class(truth: CocoAnnotations, scored: Sequence[int]) -> tuple[int, ...]:
    counts = Counter(entry.label for number in scored for entry in truth.images[number].objects if not entry.is_crowd)
    return tuple(counts[label] for label in range(len(truth.classes)))


def _worst(
    mistakes: Sequence[ImageMistakes],
    images: RunImages,
    places: Mapping[int, int],
    truth: CocoAnnotations,
    limit: int,
) -> tuple[WorstImage, ...]:
    """Return the images with most mistakes; of equally many, the one with fewer right detections first."""
    rows = images.by_id()
    ids = {place: image_id for image_id, place in places.items()}
    with_some = [each for each in mistakes if each.wrong + each.missed]
    with_some.sort(key=lambda each: (-each.wrong - each.missed, each.f1, rows[ids[each.image]].uri))
    return tuple(
        WorstImage(
            ids[each.image],
            rows[ids[each.image]].uri,
            truth.images[each.image].file_name,
            rows[ids[each.image]].status,
            each,
        )
        for each in with_some[:limit]
    )
