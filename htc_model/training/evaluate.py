"""Evaluates a network on annotated images: inference, then COCO's average precision."""

from collections.abc import Iterator
from typing import Any

import torch

from htc_model.masks.encode import encode_detections
from htc_model.network.detector import HTC
from htc_model.preprocess import build_batch
from htc_model.structures import Detections
from htc_model.training.annotations import CocoAnnotations
from htc_model.training.coco_eval import coco_document, score_results
from htc_model.training.samples import LoadImage


def evaluate_model(model: HTC, annotations: CocoAnnotations, load_image: LoadImage) -> dict[str, float]:
    """Detect on every image of a data set and score the result.

    Args:
        model: in any mode, which is restored at the end; inference runs in eval mode.
        annotations: ground truth; the category ids must be the model's.
        load_image: from a file name to RGB pixels.

    Returns:
        "box_ap", "box_ap50", "mask_ap", "mask_ap50", … in [0, 1]; -1 where the data set has nothing to score.
    """
    device = next(model.parameters()).device
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    results: list[dict[str, Any]] = []
    for number, image in enumerate(annotations.images):
        batch = build_batch([load_image(image.file_name)], model.config, device)
        detections = encode_detections(model.infer(batch)[0])
        results.extend(_coco_results(detections, number, annotations.category_ids))
    for module, is_training in was_training.items():
        module.training = is_training
    image_ids = list(range(len(annotations.images)))
    document = coco_document(annotations)
    return score_results(results, document, image_ids, annotations.category_ids, has_masks=model.config.has_masks)


def _coco_results(detections: Detections, image_id: int, category_ids: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    corners, sizes = torch.split(detections.boxes_xyxy, 2, dim=1)
    boxes = torch.cat([corners, sizes - corners], dim=1).tolist()
    rows = zip(boxes, detections.scores.tolist(), detections.labels.tolist(), strict=True)
    for index, (box, score, label) in enumerate(rows):
        result = {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        if detections.masks is not None:
            result["segmentation"] = detections.masks[index]
        yield result
