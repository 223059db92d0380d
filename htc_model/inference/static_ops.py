"""Detection operations at fixed shapes: no result's shape depends on values, and nothing is read by the host.

Where the dynamic path (`htc_model.network`) drops elements, they stay here as empty slots: score -inf, box of zeros.
An empty slot never changes another one. The arithmetic is that of the dynamic path, so the results are too.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from htc_model.network.resnet import STRIDES
from htc_model.network.roi_align import roi_levels
from htc_model.network.semantic_head import SEMANTIC_STRIDE

# Low half of a sorting key.
_INDEX_BITS = 32
_INDEX_MASK = 2**_INDEX_BITS - 1
# The sign of float32, and all its other bits.
_MAGNITUDE_BITS = 0x7FFFFFFF
# Pairs of boxes whose overlaps are computed at once: half a GiB for each intermediate of float32.
_CHUNK_PAIRS = 2**27
# Boxes whose mutual suppression is iterated at once: half a MiB of half precision for each list.
_BLOCK = 512


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best scores and their indices, by (score descending, index ascending).

    That is the beginning of a stable descending sort, on every device: no two keys are equal, so there are no ties that
    a device could break in its own way.

    Args:
        scores: [..., N] float32, without -0.0 and NaN (NaN gives some order, and no error).
        k: at most N.

    Returns:
        Values [..., k] float32 and indices [..., k] int64.
    """
    count = scores.shape[-1]
    bits = scores.contiguous().view(torch.int32)
    # Negative floats order backwards as integers.
    ordered = torch.where(bits < 0, bits ^ _MAGNITUDE_BITS, bits).long()
    falling = torch.arange(count - 1, -1, -1, device=scores.device)
    keys = (ordered << _INDEX_BITS) | falling
    best = torch.topk(keys, k, dim=-1).values
    indices = (count - 1) - (best & _INDEX_MASK)
    return scores.gather(-1, indices), indices


def compact(is_real: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Find the first `size` real slots of each list, in order.

    Args:
        is_real: [..., N] bool.
        size: at most N.

    Returns:
        Indices [..., size] int64, and whether they are real [..., size] bool; the others are indices of empty slots.
    """
    count = is_real.shape[-1]
    falling = torch.arange(count, 0, -1, device=is_real.device)
    # An empty slot's key is negative, so that all keys differ.
    best = torch.topk(torch.where(is_real, falling, -falling), size, dim=-1).values
    return count - best.abs(), best > 0


def move_apart(boxes_xyxy: Tensor, groups: Tensor, is_real: Tensor) -> Tensor:
    """Shift boxes by their group times (largest coordinate + 1), as `box_ops.grouped_nms` does.

    Args:
        boxes_xyxy: [B, N, 4] float32, coordinates >= 0.
        groups: [B, N] or [N] int64.
        is_real: [B, N] bool; only real boxes count for the largest coordinate.

    Returns:
        [B, N, 4].
    """
    largest = torch.where(is_real[..., None], boxes_xyxy, 0).flatten(1).amax(dim=1)
    return boxes_xyxy + (groups.to(boxes_xyxy.dtype) * (largest + 1)[:, None])[..., None]


def suppress(boxes_xyxy: Tensor, is_real: Tensor, threshold: float, steps: int) -> tuple[Tensor, Tensor]:
    """Run NMS on boxes that are sorted by score, for several independent lists at once.

    A box stays if no better box that stays overlaps it. The boxes are taken in blocks, best first. Within a block,
    started from "all stay" and computed again and again for all boxes at once, that rule is right for the first box
    at once, and for a box after n steps if a chain of at most n better boxes of the block decides about it. Once a
    step changes nothing, it is right for the whole block: the rule has one solution. Then the block's boxes that stay
    suppress those of later blocks.

    Args:
        boxes_xyxy: [G, N, 4] float32, best first; boxes that must not suppress each other lie apart (`move_apart`).
        is_real: [G, N] bool; other slots neither stay nor suppress.
        threshold: boxes suppress later ones whose IoU is above it; from `round_threshold`.
        steps: in each block; a list with a chain of more boxes in a block may stay undecided.

    Returns:
        Kept [G, N] bool, and whether the list is decided [G] bool: then kept is exactly greedy NMS.
    """
    lists, count = is_real.shape
    chunk = max(1, _CHUNK_PAIRS // (min(count, _BLOCK) * count))
    done = [
        _suppress(boxes_xyxy[start : start + chunk], is_real[start : start + chunk], threshold, steps)
        for start in range(0, lists, chunk)
    ]
    return torch.cat([kept for kept, _ in done]), torch.cat([is_decided for _, is_decided in done])


def _suppress(boxes_xyxy: Tensor, is_real: Tensor, threshold: float, steps: int) -> tuple[Tensor, Tensor]:
    # One or zero, and how many boxes suppress another, of which only zero counts: half precision is exact enough.
    dtype = torch.float32 if boxes_xyxy.device.type == "cpu" else torch.float16
    waiting = is_real[:, None].to(dtype)
    kept_blocks = []
    is_decided = torch.ones_like(is_real[:, 0])
    for start in range(0, is_real.shape[1], _BLOCK):
        block = boxes_xyxy[:, start : start + _BLOCK]
        size = block.shape[1]
        suppresses = overlap_by_more(block, boxes_xyxy[:, start:], threshold).triu(1).to(dtype)
        inside = suppresses[:, :, :size]
        here = waiting[:, :, :size]
        kept = previous = here
        for _ in range(steps):
            previous = kept
            kept = torch.baddbmm(here, kept, inside, alpha=-1).clamp(min=0)
        is_decided &= (kept == previous).flatten(1).all(dim=1)
        kept_blocks.append(kept)
        waiting = torch.baddbmm(waiting[:, :, size:], kept, suppresses[:, :, size:], alpha=-1).clamp(min=0)
    return torch.cat(kept_blocks, dim=2)[:, 0] > 0, is_decided


def overlap_by_more(boxes_xyxy: Tensor, others_xyxy: Tensor, threshold: float) -> Tensor:
    """Return which pairs of boxes have an IoU above the threshold: [G, N, 4], [G, M, 4] -> [G, N, M] bool.

    In the steps and the precision of torchvision's `nms`, so that pairs at the threshold are decided alike. Two empty
    boxes have no IoU.
    """
    x0, y0, x1, y1 = (side[:, :, None] for side in boxes_xyxy.unbind(-1))
    u0, v0, u1, v1 = (side[:, None] for side in others_xyxy.unbind(-1))
    width = torch.minimum(x1, u1) - torch.maximum(x0, u0)
    height = torch.minimum(y1, v1) - torch.maximum(y0, v0)
    both = width.clamp(min=0) * height.clamp(min=0)
    return both / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - both) > threshold


def round_threshold(iou: float) -> float:
    """Round down to float32: a float32 is above the result if and only if it is above `iou`, torchvision's double."""
    rounded = np.float32(iou)
    return float(rounded if float(rounded) <= iou else np.nextafter(rounded, np.float32(-math.inf)))


def pool_levels(
    pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor, side: int, *, semantic_averaged: int = 1
) -> Tensor:
    """Pool each RoI from its own level by RoIAlign, and add what it pools from the semantic features.

    Every RoI is pooled from all levels, as a box of zeros from those that are not its own: RoIAlign takes no sample of
    such a box, and its bins are zeros.

    Args:
        pyramid: P2..P5 or P2..P6 (P6 is not read), each [B, C, H_l, W_l] of one dtype, any memory order.
        semantic_feat: [B, C, H_3, W_3] at P3's stride, or None.
        rois: [K, 5] float32, image index and xyxy in network pixels; a box of zeros pools zeros from the pyramid and
            from the semantic features.
        side: bins per side of the result: 7 or 14.
        semantic_averaged: the semantic features are pooled at `semantic_averaged` times as many bins per side, then
            neighbours are averaged: 2 for boxes (14 to 7), 1 for masks.

    Returns:
        [K, C, side, side] of the pyramid's dtype; the sums are float32.
    """
    levels = roi_levels(rois)
    pooled = rois.new_zeros(len(rois), pyramid[0].shape[1], side, side)
    for level, stride in enumerate(STRIDES):
        own = torch.cat([rois[:, :1], torch.where((levels == level)[:, None], rois[:, 1:], 0)], dim=1)
        pooled.add_(_align(pyramid[level], own, stride, side))
    if semantic_feat is not None:
        semantic = _align(semantic_feat, rois, SEMANTIC_STRIDE, side * semantic_averaged)
        pooled.add_(F.avg_pool2d(semantic, semantic_averaged) if semantic_averaged > 1 else semantic)
    return pooled.to(pyramid[0].dtype)


def _align(feature: Tensor, rois: Tensor, stride: int, side: int) -> Tensor:
    pooled: Tensor = roi_align(feature.float(), rois, side, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)
    return pooled


def to_original(boxes_xyxy: Tensor, image_sizes: Tensor, original_sizes: Tensor) -> Tensor:
    """Map boxes from the resized images' pixels to the originals', as `postprocess.to_original`, without the clip.

    Args:
        boxes_xyxy: [B, N, 4] float32.
        image_sizes, original_sizes: [B, 2] int64 (height, width).

    Returns:
        [B, N, 4]; not finite where a size is zero.
    """
    # In double, then rounded once: as the dynamic path divides Python's numbers.
    scale = (image_sizes.double() / original_sizes.double()).float().flip(-1)
    return boxes_xyxy / torch.cat([scale, scale], dim=-1)[:, None]
