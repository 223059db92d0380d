"""Evaluates a network on annotated images: inference, then COCO's average precision."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from htc_model.masks.encode import encode_detections
from htc_model.network.detector import HTC
from htc_model.preprocess import build_batch
from htc_model.structures import Detections
from htc_model.training.annotations import AnnotationError, CocoAnnotations
from htc_model.training.coco_eval import coco_document, score_with_classes
from htc_model.training.samples import LoadImage

# Called after each image with its index, its RGB pixels [H, W, 3] uint8 and its detections, masks as run lengths.
OnImage = Callable[[int, NDArray[np.uint8], Detections], None]


@dataclass(frozen=True)
class Evaluation:
    """The scores of a network on a data set.

    scores: over all classes, see `score_results`. classes: by class name, see `score_with_classes`.
    """

    scores: dict[str, float]
    classes: dict[str, dict[str, float]]


def evaluate_model(model: HTC, annotations: CocoAnnotations, load_image: LoadImage) -> dict[str, float]:
    """Detect on every image of a data set and score the result over all classes; see `evaluate_classes`.

    Returns:
        "box_ap", "box_ap50", "mask_ap", "mask_ap50", … in [0, 1]; -1 where the data set has nothing to score.
    """
    return evaluate_classes(model, annotations, load_image).scores


def evaluate_classes(
    model: HTC, annotations: CocoAnnotations, load_image: LoadImage, *, on_image: OnImage | None = None
) -> Evaluation:
    """Detect on every image of a data set and score the result.

    Args:
        model: in any mode, which is restored at the end; inference runs in eval mode.
        annotations: ground truth; the category ids must be the model's.
        load_image: from a file name to RGB pixels.
        on_image: sees each image with its detections.

    Raises:
        AnnotationError: an image cannot be read: a score without it would be of another data set.
    """
    results = detect_results(model, annotations, load_image, on_image=on_image)
    scores, classes = score_with_classes(
        results,
        coco_document(annotations),
        list(range(len(annotations.images))),
        annotations.category_ids,
        has_masks=model.config.has_masks,
    )
    return Evaluation(scores, dict(zip(annotations.classes, classes, strict=True)))


def detect_results(
    model: HTC, annotations: CocoAnnotations, load_image: LoadImage, *, on_image: OnImage | None = None
) -> list[dict[str, Any]]:
    """Detect on every image of a data set; args and raises as `evaluate_classes`.

    Returns:
        detections in COCO's result format; `image_id` is the image's index, as in `coco_document`.
    """
    device = next(model.parameters()).device
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    results: list[dict[str, Any]] = []
    for number, image in enumerate(annotations.images):
        try:
            pixels = load_image(image.file_name)
        except OSError as error:
            raise AnnotationError(
                f"An image to score on cannot be read: {image.file_name}: {str(error).removesuffix('.')}; mend it or "
                "leave it out of the annotations."
            ) from error
        detections = encode_detections(model.infer(build_batch([pixels], model.config, device))[0])
        if on_image is not None:
            on_image(number, pixels, detections)
        results.extend(_coco_results(detections, number, annotations.category_ids))
    for module, is_training in was_training.items():
        module.training = is_training
    return results


def _coco_results(detections: Detections, image_id: int, category_ids: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    corners, sizes = torch.split(detections.boxes_xyxy, 2, dim=1)
    boxes = torch.cat([corners, sizes - corners], dim=1).tolist()
    rows = zip(boxes, detections.scores.tolist(), detections.labels.tolist(), strict=True)
    for index, (box, score, label) in enumerate(rows):
        result = {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        if detections.masks is not None:
            result["segmentation"] = detections.masks[index]
        yield result
