"""NMS over any number of candidates, for the images that the fixed sizes of a plan cannot decide.

The results have the plan's shapes, but the host reads along the way.
"""

import torch
from torch import Tensor
from torchvision.ops import nms

from htc_model.network.box_ops import grouped_nms


def suppress(boxes_xyxy: Tensor, is_real: Tensor, iou: float) -> Tensor:
    """Run NMS on lists of boxes sorted by score, as `static_ops.suppress`: [G, N, 4], [G, N] -> kept [G, N]."""
    kept = torch.zeros_like(is_real)
    falling = torch.arange(is_real.shape[1], 0, -1, device=is_real.device, dtype=boxes_xyxy.dtype)
    for one_kept, boxes, real in zip(kept, boxes_xyxy, is_real, strict=True):
        members = real.nonzero()[:, 0]
        one_kept[members[nms(boxes[members], falling[members], iou)]] = True
    return kept


def select(boxes: Tensor, scores: Tensor, iou: float, limit: int) -> tuple[Tensor, Tensor]:
    """Find the best candidates that NMS per class keeps.

    Args:
        boxes: [B, R, 1 or classes, 4] float32.
        scores: [B, R * classes] float32; -inf for those that are no candidates.
        iou: of NMS.
        limit: D.

    Returns:
        Candidates [B, D] int64 as row * classes + class, and their scores [B, D], -inf in empty slots.
    """
    classes = scores.shape[1] // boxes.shape[1]
    chosen = scores.new_zeros(len(scores), limit, dtype=torch.int64)
    best = scores.new_full((len(scores), limit), -torch.inf)
    for image in range(len(scores)):
        candidates = (scores[image] > -torch.inf).nonzero()[:, 0]
        labels = candidates % classes
        rows = candidates // classes
        found = boxes[image, rows, 0 if boxes.shape[2] == 1 else labels]
        kept = candidates[grouped_nms(found, scores[image, candidates], labels, iou, limit)]
        chosen[image, : len(kept)] = kept
        best[image, : len(kept)] = scores[image, kept]
    return chosen, best
