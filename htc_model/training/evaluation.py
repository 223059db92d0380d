"""COCO's average precision of a network, by pycocotools."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from htc_model.htc import HTC
from htc_model.masks import encode_detections
from htc_model.preprocess import build_batch
from htc_model.structures import Detections
from htc_model.training.annotations import CocoAnnotations
from htc_model.training.pictures import LoadImage

# COCOeval.stats: what its first six numbers are; sizes small < 32^2 <= medium < 96^2 <= large pixels.
_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def evaluate_model(
    model: HTC, annotations: CocoAnnotations, document: Mapping[str, Any], load_image: LoadImage
) -> dict[str, float]:
    """Detect on every image of a data set and score the result.

    Args:
        model: any mode; it is in eval mode while this runs.
        annotations: which images, and the classes' category ids, which must be the model's.
        document: the COCO file itself; annotations that reading left out are left out of the scoring too.
        load_image: from a file name to RGB pixels.

    Returns:
        "box_ap", "box_ap50", "mask_ap", "mask_ap50", … in [0, 1]; -1 where the data set has nothing to score.
    """
    device = next(model.parameters()).device
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    results: list[dict[str, Any]] = []
    for image in annotations.images:
        batch = build_batch([load_image(image.file_name)], model.config, device)
        detections = encode_detections(model.infer(batch)[0])
        results.extend(_coco_results(detections, image.image_id, annotations.category_ids))
    for module, is_training in was_training.items():
        module.training = is_training
    image_ids = [image.image_id for image in annotations.images]
    sound = sound_document(document, annotations)
    return score_results(results, sound, image_ids, annotations.category_ids, has_masks=model.config.has_masks)


def score_results(
    results: list[dict[str, Any]],
    document: Mapping[str, Any],
    image_ids: list[int],
    category_ids: tuple[int, ...],
    *,
    has_masks: bool,
) -> dict[str, float]:
    """Score detections in COCO's result form; see `evaluate_model`."""
    scores: dict[str, float] = {}
    kinds = {"box": "bbox", "mask": "segm"} if has_masks else {"box": "bbox"}
    for name, kind in kinds.items():
        stats = _average_precision(results, document, image_ids, category_ids, kind) if results else [0.0] * len(_STATS)
        scores |= {f"{name}_{stat}": float(value) for stat, value in zip(_STATS, stats, strict=False)}
    return scores


def sound_document(document: Mapping[str, Any], annotations: CocoAnnotations) -> dict[str, Any]:
    """Leave out of a COCO document what pycocotools would fall over, and number the rest anew."""
    objects = {(image.image_id, entry.annotation_id): entry for image in annotations.images for entry in image.objects}
    sound: list[dict[str, Any]] = []
    for annotation in document["annotations"]:
        entry = objects.get((annotation.get("image_id"), annotation.get("id")))
        if entry is None:
            continue
        x1, y1, x2, y2 = entry.box_xyxy
        values = {
            "id": len(sound) + 1,
            "segmentation": entry.segmentation or [[x1, y1, x2, y1, x2, y2, x1, y2]],
            "bbox": annotation.get("bbox") or [x1, y1, x2 - x1, y2 - y1],
            "area": annotation.get("area", (x2 - x1) * (y2 - y1)),
            "iscrowd": int(entry.is_crowd),
        }
        sound.append({**annotation, **values})
    return {**document, "annotations": sound}


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


def _coco_results(detections: Detections, image_id: int, category_ids: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    corners, sizes = torch.split(detections.boxes_xyxy, 2, dim=1)
    boxes = torch.cat([corners, sizes - corners], dim=1).tolist()
    rows = zip(boxes, detections.scores.tolist(), detections.labels.tolist(), strict=True)
    for index, (box, score, label) in enumerate(rows):
        result = {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        if detections.masks is not None:
            result["segmentation"] = detections.masks[index]
        yield result
