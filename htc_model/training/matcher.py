"""Matcher: assigns boxes to objects by the largest overlap.

The order of the float32 operations matters. A low-quality match needs *exactly* the best overlap of an object, and
objects often have several anchors within 1e-5 of the best one: another order of the same sums, a fused multiply-add or
float64 selects other anchors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BACKGROUND = -1
UNUSED = -2
# Guards the division of two boxes without area (MMDetection 3.3, structures/bbox/bbox_overlaps.py).
_MIN_UNION = 1e-6


@dataclass(frozen=True)
class AssignRule:
    """Thresholds that make a box positive, background, or unused.

    positive_iou: a box whose best overlap reaches it is a positive of that object.
    negative_iou: a box whose best overlap is below it is background; between the two it is unused.
    min_positive_iou: objects whose best overlap reaches it keep that box even below `positive_iou`.
    matches_low_quality: whether `min_positive_iou` applies.
    """

    positive_iou: float
    negative_iou: float
    min_positive_iou: float
    matches_low_quality: bool


def pairwise_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Compute the overlap (IoU) of every pair of boxes, in the order of operations that matching needs.

    Args:
        first_xyxy: [G, 4] float32.
        second_xyxy: [N, 4] float32.

    Returns:
        [G, N] float32 in [0, 1].
    """
    first_area = (first_xyxy[:, 2] - first_xyxy[:, 0]) * (first_xyxy[:, 3] - first_xyxy[:, 1])
    second_area = (second_xyxy[:, 2] - second_xyxy[:, 0]) * (second_xyxy[:, 3] - second_xyxy[:, 1])
    left_top = torch.maximum(first_xyxy[:, None, :2], second_xyxy[None, :, :2])
    right_bottom = torch.minimum(first_xyxy[:, None, 2:], second_xyxy[None, :, 2:])
    size = (right_bottom - left_top).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = (first_area[:, None] + second_area[None, :]) - intersection
    return intersection / union.clamp(min=_MIN_UNION)


def assign_boxes(gt_boxes_xyxy: Tensor, boxes_xyxy: Tensor, rule: AssignRule) -> Tensor:
    """Assign each box the object it overlaps most.

    Faster R-CNN's assignment (arXiv:1506.01497, sec. 3.1.2) as MMDetection's MaxIoUAssigner implements it: a
    low-quality match overwrites the box's previous assignment; where two objects claim the same box, the later one
    keeps it.

    Args:
        gt_boxes_xyxy: [G, 4] float32, the objects.
        boxes_xyxy: [N, 4] float32, anchors or proposals.
        rule: the thresholds.

    Returns:
        [N] int64: the object's index, `BACKGROUND` or `UNUSED`.
    """
    gt_count, box_count = gt_boxes_xyxy.shape[0], boxes_xyxy.shape[0]
    if gt_count == 0 or box_count == 0:
        return torch.full((box_count,), BACKGROUND, dtype=torch.int64, device=boxes_xyxy.device)
    iou = pairwise_iou(gt_boxes_xyxy, boxes_xyxy)
    best_iou, best_gt = iou.max(dim=0)
    assigned = torch.full_like(best_gt, UNUSED)
    assigned[(best_iou >= 0) & (best_iou < rule.negative_iou)] = BACKGROUND
    is_positive = best_iou >= rule.positive_iou
    assigned[is_positive] = best_gt[is_positive]
    if rule.matches_low_quality:
        best_of_gt = iou.max(dim=1, keepdim=True).values
        is_claimed = (iou == best_of_gt) & (best_of_gt >= rule.min_positive_iou)
        gt_number = torch.arange(1, gt_count + 1, device=iou.device)[:, None]
        last_claim = (is_claimed * gt_number).max(dim=0).values
        assigned = torch.where(last_claim > 0, last_claim - 1, assigned)
    return assigned
