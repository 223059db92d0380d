"""Scores a run's tables against annotations; needs no torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from htc_model.training.annotations import CocoAnnotations
from htc_model.training.coco_engines import CocoTable
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
from jobs.results.evaluation.panoptic import is_panoptic, things_of
from jobs.results.evaluation.result import Evaluation, KindResult, WorstImage
from jobs.results.evaluation.rows import RunRows, find_detections
from jobs.results.evaluation.run_images import MatchRule, RunImages, names_in
from jobs.results.evaluation.sentences import caveats, other_categories, slow_engine
from jobs.results.evaluation.truth import flaw_sentences, read_truth, refuse_flaws
from jobs.results.map_tables import has_table
from pipeline.inputs.coco_files import read_coco
from pipeline.output.results import Results, open_results
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection

# As `htc show`: low enough to keep instances that a person would accept, high enough to keep clutter out.
DEFAULT_MIN_SCORE = 0.3
DEFAULT_WORST = 12


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
    match: MatchRule = MatchRule.file_name,
    min_score: float = DEFAULT_MIN_SCORE,
    worst: int = DEFAULT_WORST,
    engine: str | None = None,
) -> Judgement:
    """Score a run's tables against COCO annotations.

    Every annotated image with a row counts, also if it failed; other images of the run do not.

    Args:
        truth: a COCO JSON file, a path or a URI; or its content.
        run: None takes the newest run that has images; "current" the newest ok rows of each image, of all runs.
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
    stored = RunRows(results, run)
    run, model = stored.name, stored.model()
    uri = truth if isinstance(truth, str) else "the truth"
    document: Any = read_coco(truth, storage) if isinstance(truth, str) else truth
    first_notes = []
    if is_panoptic(document):
        document, note = things_of(document, absolute_uri(uri), storage)
        first_notes.append(note)
        if has_table(results, run, "panoptic"):
            first_notes.append("The run has panoptic segments: --panoptic scores things and stuff.")
    images = stored.images(match, names_in(document))
    annotations, notes = read_truth(
        document,
        uri,
        run,
        known=stored.categories() if model is None else model.classes,
        classes=classes,
        is_model_known=model is not None,
        find_size=images.find_size,
    )
    if is_strict:
        refuse_flaws(annotations, uri)
    matches = images.match(annotations, uri, run)
    images.refuse_other_sizes(annotations, matches.places, uri)
    rows = stored.instances(list(matches.places))
    detections, others = find_detections(rows, annotations, matches.places)
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
        kinds[name] = _judge_kind(table, overlaps, matching, sure, annotations.classes)
    mistakes = count_mistakes(overlaps, sure, scored)
    first = next(iter(tables.values()))
    notes = [
        *stored.progress(),
        *first_notes,
        *flaw_sentences(annotations, uri),
        *notes,
        *images.notes,
        *other_categories(others, uri, classes),
        *caveats(annotations, scored, detections, makes_masks=makes_masks, has_mask_scores="mask" in tables),
        *slow_engine(first.engine),
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


def _judge_kind(
    table: CocoTable, overlaps: Overlaps, matching: Matching, sure: Matching, classes: Sequence[str]
) -> KindResult:
    return KindResult(
        table,
        read_curves(table, find_best_score(overlaps, matching)),
        break_down(overlaps, matching, len(classes)),
        confuse(overlaps, sure, classes),
    )


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
