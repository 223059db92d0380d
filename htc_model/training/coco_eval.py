"""COCO's average precision of detections in COCO's result format; does not import torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from htc_model.training.annotations import CocoAnnotations
from htc_model.training.coco_engines import CocoTable, run_engine

# The first six of `METRICS`; sizes small < 32^2 <= medium < 96^2 <= large pixels.
STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
# The kinds of overlap, as COCOeval calls them.
KINDS = {"box": "bbox", "mask": "segm"}
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
    counts = Counter(entry["category_id"] for entry in document["annotations"] if not entry.get("iscrowd", 0))
    classes: list[dict[str, float]] = [{"objects": counts[number]} for number in category_ids]
    tables = score_tables(results, document, image_ids, category_ids, has_masks=has_masks)
    for name, table in tables.items():
        for number, found in enumerate(classes):
            metrics = table.metrics_of(number)
            found |= {f"{name}_ap": metrics["AP"], f"{name}_ap50": metrics["AP50"]}
    return flat_scores(tables), classes


def score_tables(
    results: Sequence[Mapping[str, Any]],
    document: Mapping[str, Any],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    *,
    has_masks: bool,
    engine: str | None = None,
) -> dict[str, CocoTable]:
    """Score detections as `score_results`, with all that the engine computes.

    Args:
        category_ids: in ascending order.
        engine: see `run_engine`.

    Returns:
        "box", and "mask" if masks are scored and an object of the truth has one.
    """
    has_masks = has_masks and any(entry.get("segmentation") for entry in document["annotations"])
    return {
        name: run_engine(
            {**document, "annotations": [truth_entry(entry, kind) for entry in document["annotations"]]},
            _results(results, kind),
            kind,
            image_ids=image_ids,
            category_ids=category_ids,
            engine=engine,
        )
        for name, kind in KINDS.items()
        if name == "box" or has_masks
    }


def flat_scores(tables: Mapping[str, CocoTable]) -> dict[str, float]:
    """Return "box_ap", "box_ap50", … and "mask_ap", …: the six average precisions of each kind."""
    return {
        f"{name}_{stat}": value
        for name, table in tables.items()
        for stat, value in zip(STATS, table.stats, strict=False)
    }


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


def truth_entry(entry: Mapping[str, Any], kind: str) -> dict[str, Any]:
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
