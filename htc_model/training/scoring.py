"""COCO's average precision of detections in COCO's result form, by pycocotools; needs no torch."""

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

from htc_model.training.annotations import CocoAnnotations

# COCOeval.stats: what its first six numbers are; sizes small < 32^2 <= medium < 96^2 <= large pixels.
_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def score_results(
    results: list[dict[str, Any]],
    document: Mapping[str, Any],
    image_ids: list[int],
    category_ids: tuple[int, ...],
    *,
    has_masks: bool,
) -> dict[str, float]:
    """Score detections.

    Args:
        results: image_id, category_id, score, bbox (x, y, width, height) and, with masks, segmentation (RLE).
        document: the truth, from `coco_document`.
        image_ids, category_ids: what is scored.
        has_masks: score masks besides boxes.

    Returns:
        "box_ap", "box_ap50", "box_ap75", "box_ap_small", … and "mask_ap", … in [0, 1]; -1 where there is nothing to
        score.
    """
    scores: dict[str, float] = {}
    kinds = {"box": "bbox", "mask": "segm"} if has_masks else {"box": "bbox"}
    for name, kind in kinds.items():
        stats = _average_precision(results, document, image_ids, category_ids, kind) if results else [0.0] * len(_STATS)
        scores |= {f"{name}_{stat}": float(value) for stat, value in zip(_STATS, stats, strict=False)}
    return scores


def coco_document(annotations: CocoAnnotations) -> dict[str, Any]:
    """Write annotations as the COCO document that pycocotools scores against, numbered anew.

    What reading left out is not in it: pycocotools would fall over some of that.
    """
    objects = [(image, entry) for image in annotations.images for entry in image.objects]
    written: list[dict[str, Any]] = []
    for number, (image, entry) in enumerate(objects, start=1):
        x1, y1, x2, y2 = entry.box_xyxy
        written.append(
            {
                "id": number,
                "image_id": image.image_id,
                "category_id": annotations.category_ids[entry.label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": entry.segmentation or [[x1, y1, x2, y1, x2, y2, x1, y2]],
                "area": entry.area,
                "iscrowd": int(entry.is_crowd),
            }
        )
    return {
        "images": [
            {"id": image.image_id, "height": image.height, "width": image.width} for image in annotations.images
        ],
        "annotations": written,
        "categories": [{"id": number} for number in annotations.category_ids],
    }


def _average_precision(
    results: list[dict[str, Any]],
    document: Mapping[str, Any],
    image_ids: list[int],
    category_ids: tuple[int, ...],
    kind: str,
) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # pycocotools prints its tables, and uses numpy in a way that numpy has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        truth = COCO()
        truth.dataset = dict(document)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), kind)
        evaluation.params.imgIds = image_ids
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]
