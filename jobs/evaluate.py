"""`htc evaluate`: COCO's average precision of a run, from its tables; needs no torch."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from htc_model.rle import decode_lengths
from htc_model.training.annotations import AnnotationError, CocoAnnotations, read_annotations
from htc_model.training.scoring import coco_document, score_results
from jobs.console import say, write_line, write_table
from pipeline.config import ModelSection
from pipeline.errors import HtcError, InputError, SpecError
from pipeline.fetch import weights_here
from pipeline.fingerprint import configured
from pipeline.progress import count_of
from pipeline.results import Results
from pipeline.spec_reading import absolute_uri
from pipeline.storage import Storage
from pipeline.tables import open_results

if TYPE_CHECKING:
    from pipeline.config import StorageSection

_COLUMNS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
MAX_NAMED = 3


@dataclass(frozen=True)
class Evaluation:
    """What a run scores.

    scores: see `score_results`. images: how many were scored. instances: how many detections on them.
    classes: names that were scored. missing: annotated photos without a row in the run, not scored.
    """

    run: str
    scores: dict[str, float]
    images: int
    instances: int
    classes: tuple[str, ...]
    missing: tuple[str, ...]


def report_evaluation(
    output_uri: str,
    annotations_uri: str,
    *,
    run: str | None = None,
    classes: Sequence[str] = (),
    is_json: bool = False,
    storage_section: "StorageSection | None" = None,
) -> int:
    """Score a run and write its average precisions, in percent.

    Raises:
        InputError: no such run, no annotated photo in it, two photos of one name, or a damaged mask.
        SpecError: the annotations cannot be read.
    """
    storage = Storage(storage_section)
    results = open_results(output_uri, storage)
    evaluation = evaluate_run(results, annotations_uri, storage, run=run, classes=classes)
    if evaluation.missing:
        count = count_of(len(evaluation.missing), "annotated photo")
        say(f"Not scored: {count} without a row in the run ({_named(evaluation.missing)}).")
    if is_json:
        write_line(json.dumps({"run": evaluation.run, "images": evaluation.images, **evaluation.scores}))
        return 0
    rows = [
        (kind, *(_percent(evaluation.scores[f"{kind}_{name}"]) for name in _COLUMNS))
        for kind in ("box", "mask")
        if f"{kind}_ap" in evaluation.scores
    ]
    write_table(
        ["", *_COLUMNS.values()], rows, alignments=["left", "right", "right", "right", "right", "right", "right"]
    )
    write_line(
        f"Run {evaluation.run}: {count_of(evaluation.images, 'photo')}, "
        f"{count_of(evaluation.instances, 'detection')} of {_named(evaluation.classes)}; "
        "average precision in percent, as pycocotools counts it."
    )
    return 0


def evaluate_run(
    results: Results,
    annotations_uri: str,
    storage: Storage,
    *,
    run: str | None = None,
    classes: Sequence[str] = (),
) -> Evaluation:
    """Score a run's tables against COCO annotations.

    A photo of the annotations is the run's image whose uri ends with its file name. Every annotated photo with a
    row counts, also where the row says that it failed; other images of the run do not.

    Args:
        annotations_uri: a COCO JSON file, a path or a URI.
        run: the newest that has images when None.
        classes: names to score; by default the annotations' that the model knows.

    Raises: as `report_evaluation`.
    """
    run = run or results.newest_run()
    images = results.images(run, ["image_id", "uri"]).to_pydict()
    document = _read_document(annotations_uri, storage)
    known = _model_classes(results, run)
    try:
        annotations = read_annotations(document, classes=classes or None, keeps_empty_images=True)
        if not classes and known is not None:
            shared = [name for name in annotations.classes if name in known]
            if not shared:
                raise InputError(f"The model of run {run} knows none of the classes in {annotations_uri}.")
            annotations = read_annotations(document, classes=shared, keeps_empty_images=True)
    except AnnotationError as error:
        raise SpecError(f"{annotations_uri}: {error}") from error
    numbers, missing = _match(annotations, dict(zip(images["uri"], images["image_id"], strict=True)))
    if not numbers:
        raise InputError(f"None of the photos in {annotations_uri} is in run {run}, such as {missing[0]}.")
    detections = _detections(results, run, annotations, numbers)
    truth = coco_document(annotations)
    scores = score_results(
        detections,
        truth,
        sorted(numbers.values()),
        annotations.category_ids,
        has_masks=any("segmentation" in each for each in detections),
    )
    return Evaluation(run, scores, len(numbers), len(detections), annotations.classes, tuple(missing))


def _read_document(uri: str, storage: Storage) -> Mapping[str, Any]:
    uri = absolute_uri(uri)
    try:
        document: Mapping[str, Any] = json.loads(storage.read(uri))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SpecError(f"{uri} is no JSON: {error}.") from error
    return document


def _model_classes(results: Results, run: str) -> tuple[str, ...] | None:
    """Say which classes the run's model knows, from its preset or its weights file; None if that is gone."""
    record = next(record for record in results.records if record.run == run)
    section = record.spec.get("model", {})
    # A later version's record may hold what this one does not know; then the annotations' classes decide.
    with contextlib.suppress(HtcError, ValueError):
        model = ModelSection(**{key: section[key] for key in ("preset", "weights") if key in section})
        weights = weights_here(model)
        if model.weights in {"coco", "untrained"} or (weights is not None and weights.is_file()):
            return configured(model, weights).classes
    return None


def _match(annotations: CocoAnnotations, image_ids: Mapping[str, int]) -> tuple[dict[int, int], list[str]]:
    """Find the annotated photos among the run's images: from the tables' numbers to COCO's, and who is missing."""
    by_name: dict[str, list[str]] = {}
    for uri in image_ids:
        by_name.setdefault(uri.rsplit("/", 1)[-1], []).append(uri)
    numbers, missing = {}, []
    for image in annotations.images:
        name = image.file_name
        found = [
            uri
            for uri in by_name.get(name.rsplit("/", 1)[-1], [])
            if uri == name or uri.endswith("/" + name.lstrip("/"))
        ]
        if len(found) > 1:
            raise InputError(
                f"{name} of the annotations is the end of several uris of the run: {', '.join(found[:2])}."
            )
        if found:
            numbers[image_ids[found[0]]] = image.image_id
        else:
            missing.append(name)
    return numbers, missing


def _detections(
    results: Results, run: str, annotations: CocoAnnotations, numbers: Mapping[int, int]
) -> list[dict[str, Any]]:
    category_ids = dict(zip(annotations.classes, annotations.category_ids, strict=True))
    detections = []
    for row in results.instances(run, ["image_id", "category", "score", "bbox", "mask"]).to_pylist():
        if row["image_id"] not in numbers or row["category"] not in category_ids:
            continue
        box = row["bbox"]
        detection = {
            "image_id": numbers[row["image_id"]],
            "category_id": category_ids[row["category"]],
            "score": row["score"],
            "bbox": [box["x"], box["y"], box["width"], box["height"]],
        }
        if row["mask"] is not None:
            detection["segmentation"] = _whole_mask(row)
        detections.append(detection)
    return detections


def _whole_mask(row: Mapping[str, Any]) -> Mapping[str, Any]:
    # pycocotools believes the counts, and never returns from some that do not fill the mask's size.
    try:
        decode_lengths(row["mask"])
    except ValueError as error:
        raise InputError(f"A mask of the image {row['image_id']} in the tables is damaged: {error}.") from None
    mask: Mapping[str, Any] = row["mask"]
    return mask


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


def _percent(score: float) -> str:
    # pycocotools says -1 where there is no such object.
    return "-" if score < 0 else f"{100 * score:.1f}"
