"""RoI features in training: on a CPU by sums of weighted rows, on other devices by torchvision's RoIAlign.

The sums (`network/roi_align_cpu.py`) give the same numbers, and their gradient is a sum of weighted rows again.
torchvision's CPU kernel adds the gradient sample by sample, which took two fifths of a whole step; see
benchmarks/training_cpu.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from htc_model.network.cascade_roi_head import CascadeHead
from htc_model.network.panet import PANetHead
from htc_model.network.resnet import STRIDES
from htc_model.network.roi_align import roi_levels
from htc_model.network.roi_align_cpu import sum_rows
from htc_model.network.roi_heads import BOX_POOL, MASK_POOL
from htc_model.network.semantic_head import SEMANTIC_STRIDE


def box_features(head: CascadeHead, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor) -> Tensor:
    """Pool a box head's input, as `CascadeHead.box_features`: rois [K, 5] -> [K, C, 7, 7]."""
    if rois.device.type != "cpu":
        return head.box_features(pyramid, semantic_feat, rois)
    if isinstance(head, PANetHead):
        return _sum_all_levels_rows(pyramid, rois, BOX_POOL)
    features = sum_pyramid_rows(pyramid, rois, BOX_POOL)
    if semantic_feat is None:
        return features
    return features + _sum_map_rows(semantic_feat, rois, SEMANTIC_STRIDE, BOX_POOL, MASK_POOL // BOX_POOL)


def mask_features(head: CascadeHead, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor) -> Tensor:
    """Pool the mask heads' input, as `CascadeHead.mask_features`: rois [K, 5] -> [K, C, 14, 14]."""
    if rois.device.type != "cpu":
        return head.mask_features(pyramid, semantic_feat, rois)
    if isinstance(head, PANetHead):
        return _sum_all_levels_rows(pyramid, rois, MASK_POOL)
    features = sum_pyramid_rows(pyramid, rois, MASK_POOL)
    if semantic_feat is None:
        return features
    return features + _sum_map_rows(semantic_feat, rois, SEMANTIC_STRIDE, MASK_POOL, 1)


def sum_pyramid_rows(pyramid: Sequence[Tensor], rois: Tensor, side: int) -> Tensor:
    """Pool each RoI from its own level of P2..P5: pyramid, rois [K, 5] -> [K, C, side, side] float32."""
    levels = roi_levels(rois)
    members = [torch.nonzero(levels == level).squeeze(1) for level in range(len(STRIDES))]
    pooled = [
        _sum_map_rows(pyramid[level], rois[chosen], stride, side, 1)
        for level, (chosen, stride) in enumerate(zip(members, STRIDES, strict=True))
    ]
    return torch.cat(pooled)[torch.cat(members).argsort()]


def _sum_all_levels_rows(pyramid: Sequence[Tensor], rois: Tensor, side: int) -> Tensor:
    pooled = [
        _sum_map_rows(level, rois, stride, side, 1)
        for level, stride in zip(pyramid[: len(STRIDES)], STRIDES, strict=True)
    ]
    return torch.stack(pooled, dim=1)


def _sum_map_rows(feature: Tensor, rois: Tensor, stride: int, side: int, averaged: int) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return sum_rows(feature.float(), rois, stride, side, averaged)
