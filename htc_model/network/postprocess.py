"""Post-processing of scored boxes: score threshold, per-class NMS, the best detections, original pixels."""

import torch
from torch import Tensor

from htc_model.config import ModelConfig
from htc_model.network.box_ops import clip_boxes, grouped_nms, soft_nms

# One image's boxes_xyxy [N, 4] in network pixels, scores [N], labels [N].
BoxDetections = tuple[Tensor, Tensor, Tensor]


def select_detections(boxes_xyxy: Tensor, scores: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Drop boxes below the score threshold, suppress duplicates per class (or lower their scores), and keep the best.

    Args:
        boxes_xyxy: [R, 1, 4] one box for all classes, or [R, classes, 4]; coordinates >= 0.
        scores: [R, classes] in [0, 1].
        config: score_threshold, max_detections, and how duplicates are suppressed.

    Returns:
        Boxes [N, 4], scores [N] descending, labels [N] int64 in [0, classes), with N <= max_detections.
    """
    rows, labels = (scores > config.score_threshold).nonzero(as_tuple=True)
    kept_scores = scores[rows, labels]
    kept_boxes = boxes_xyxy[rows, 0 if boxes_xyxy.shape[1] == 1 else labels]
    if config.suppression != "hard":
        kept, lowered = soft_nms(
            kept_boxes,
            kept_scores,
            labels,
            config.max_detections,
            linear_iou=config.nms_iou if config.suppression == "soft_linear" else None,
            sigma=config.soft_nms_sigma,
            min_score=config.soft_nms_min_score,
        )
        return kept_boxes[kept], lowered, labels[kept]
    kept = grouped_nms(kept_boxes, kept_scores, labels, config.nms_iou, config.max_detections)
    return kept_boxes[kept], kept_scores[kept], labels[kept]


def to_original(boxes_xyxy: Tensor, image_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
    """Map boxes [..., 4] from the resized image's pixels to the original's, and clip them to it.

    Each axis has its own scale, since resizing rounded each side separately.
    """
    (height, width), (original_height, original_width) = image_size, original_size
    scale_x, scale_y = width / original_width, height / original_height
    boxes = boxes_xyxy / boxes_xyxy.new_tensor([scale_x, scale_y, scale_x, scale_y])
    return clip_boxes(boxes, torch.tensor(original_size, device=boxes.device))
