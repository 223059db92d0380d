"""COCO's average precision of detections in COCO's result format, with pycocotools; does not import torch."""

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from htc_model.training.annotations import CocoAnnotations

# The first six numbers of COCOeval.stats; sizes small < 32^2 <= medium < 96^2 <= large pixels.
_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
# COCOeval's Params.areaRng in pixels, both ends included.
AREA_RANGES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}


def score_results(
    results: Sequence[Mapping[str, Any]],
    document: Mapping[str, Any],
    image_ids: Sequence[int],
    category_ids: tuple[int, ...],
    *,
    has_masks: bool,
) -> dict[str, float]:
    """Score detections.

    An object without a mask counts for boxes only; for masks its box is a region to ignore, like a crowd's: a detection
    there is neither right nor wrong.

    Args:
        results: image_id, category_id, score, bbox (x, y, width, height) and, with masks, segmentation (RLE).
        document: the truth, from `coco_document`.
        image_ids, category_ids: the images and categories to score.
        has_masks: whether to score masks besides boxes.

    Returns:
        "box_ap", "box_ap50", "box_ap75", "box_ap_small", … and "mask_ap", … in [0, 1]; -1 where there is nothing to
        score. "mask_ap", … are missing if no object of the truth has a mask.
    """
    return score_with_classes(results, document, image_ids, category_ids, has_masks=has_masks)[0]


def score_with_classes(
    results: Sequence[Mapping[str, Any]],
    document: Mapping[str, Any],
    image_ids: Sequence[int],
    category_ids: tuple[int, ...],
    *,
    has_masks: bool,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Score detections as `score_results`, over all classes and for each.

    Returns:
        what `score_results` returns; and by category, in the order of `category_ids`, "box_ap", "box_ap50", "mask_ap",
        "mask_ap50" (-1 where no object is scored) and "objects", how many objects, crowds aside, the truth has.
    """
    scores: dict[str, float] = {}
    counts = Counter(entry["category_id"] for entry in document["annotations"] if not entry.get("iscrowd", 0))
    classes: list[dict[str, float]] = [{"objects": counts[number]} for number in category_ids]
    kinds = {"box": "bbox"}
    if has_masks and any(entry.get("segmentation") for entry in document["annotations"]):
        kinds["mask"] = "segm"
    for name, kind in kinds.items():
        stats, by_class = _average_precision(results, document, image_ids, category_ids, kind)
        scores |= {f"{name}_{stat}": float(value) for stat, value in zip(_STATS, stats, strict=False)}
        for found, (ap, ap50) in zip(classes, by_class, strict=True):
            found |= {f"{name}_ap": ap, f"{name}_ap50": ap50}
    return scores, classes


def coco_document(annotations: CocoAnnotations) -> dict[str, Any]:
    """Convert annotations to the COCO document that pycocotools scores against, with new ids.

    An image's id is its index in `annotations.images`, from 0; annotations count from 1. pycocotools cannot sort ids of
    several types, and treats an annotation's id 0 as missing. Boxes are those of the file, not clipped. What reading
    left out is not included: pycocotools would fail on some of it.
    """
    objects = [(number, entry) for number, image in enumerate(annotations.images) for entry in image.objects]
    written: list[dict[str, Any]] = []
    for number, (image_number, entry) in enumerate(objects, start=1):
        written.append(
            {
                "id": number,
                "image_id": image_number,
                "category_id": annotations.category_ids[entry.label],
                "bbox": list(entry.bbox_xywh),
                "segmentation": entry.segmentation,
                "area": entry.area,
                "iscrowd": int(entry.is_crowd),
            }
        )
    return {
        "images": [
            {"id": number, "height": image.height, "width": image.width}
            for number, image in enumerate(annotations.images)
        ],
        "annotations": written,
        "categories": [{"id": number} for number in annotations.category_ids],
    }


def count_by_size(document: Mapping[str, Any], image_ids: Sequence[int]) -> dict[str, int]:
    """Count the objects that are scored, without crowds: "all", and by the sizes of `AREA_RANGES`."""
    wanted = set(image_ids)
    areas = [
        entry["area"]
        for entry in document["annotations"]
        if entry["image_id"] in wanted and not entry.get("iscrowd", 0)
    ]
    sizes = {name: sum(low <= area <= high for area in areas) for name, (low, high) in AREA_RANGES.items()}
    return {"all": len(areas), **sizes}


def _average_precision(
    results: Sequence[Mapping[str, Any]],
    document: Mapping[str, Any],
    image_ids: Sequence[int],
    category_ids: tuple[int, ...],
    kind: str,
) -> tuple[list[float], list[tuple[float, float]]]:
    """Return COCOeval.stats, and AP and AP at IoU 0.5 by class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # pycocotools prints its tables, and uses numpy in a way that numpy has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        truth = COCO()
        truth.dataset = {**document, "annotations": [_truth(entry, kind) for entry in document["annotations"]]}
        truth.createIndex()
        detections = _results(results, kind)
        if detections:
            found = truth.loadRes(detections)
        else:
            # loadRes reads the first result.
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats], _by_class(evaluation.eval["precision"])


def _by_class(precision: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return AP and AP at IoU 0.5 of each class, in [0, 1]; -1 for a class without objects.

    Args:
        precision: COCOeval's [T, R, K, A, M]: IoU thresholds from 0.5 on, recalls, classes, areas (all first), numbers
            of detections (the most last); -1 where there is nothing to score.
    """
    of_classes = precision[:, :, :, 0, -1]
    found = []
    for number in range(of_classes.shape[2]):
        values = of_classes[:, :, number]
        if (values < 0).all():
            found.append((-1.0, -1.0))
        else:
            found.append((float(values[values >= 0].mean()), float(values[0][values[0] >= 0].mean())))
    return found


def _truth(entry: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Copy an object, since pycocotools writes into it; one without a mask becomes a region to ignore."""
    copied = dict(entry)
    if kind == "segm" and not entry.get("segmentation"):
        x, y, width, height = entry["bbox"]
        copied["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        copied["iscrowd"] = 1
    return copied


def _results(results: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    if kind == "bbox":
        return [dict(result) for result in results]
    # loadRes takes a detection's area from the box if there is one; COCO's size classes need the mask's area.
    return [
        {key: value for key, value in result.items() if key != "bbox"} for result in results if "segmentation" in result
    ]
