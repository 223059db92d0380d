"""RoIAlign (Mask R-CNN, arXiv:1703.06870, sec. 3) from one feature map or from the pyramid."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from htc_model.network.resnet import STRIDES
from htc_model.network.roi_align_cpu import sum_rows

FINEST_SCALE_PX = 56.0  # RoIs smaller than twice this are pooled from P2 (MMDetection's SingleRoIExtractor)


def roi_levels(rois: Tensor) -> Tensor:
    """Choose each RoI's pyramid level by its size (FPN, eq. 1): [K, 5] -> [K] int64, 0 (P2) to 3 (P5)."""
    area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
    return torch.log2(area.sqrt() / FINEST_SCALE_PX + 1e-6).floor().clamp(0, len(STRIDES) - 1).long()


def pool_pyramid(pyramid: Sequence[Tensor], rois: Tensor, side: int) -> Tensor:
    """Pool each RoI from its own level of P2..P5: pyramid, rois [K, 5] -> [K, C, side, side] float32."""
    levels = roi_levels(rois)
    if _sums_rows(rois):
        pooled = rois.new_zeros(len(rois), side, side, pyramid[0].shape[1]).permute(0, 3, 1, 2)
        for level, stride in enumerate(STRIDES):
            chosen = (levels == level).nonzero().squeeze(1)
            if len(chosen):
                pooled[chosen] = pool_map(pyramid[level], rois[chosen], stride, side)
        return pooled
    pooled = rois.new_zeros(len(rois), pyramid[0].shape[1], side, side)
    for level, stride in enumerate(STRIDES):
        chosen = (levels == level).nonzero().squeeze(1)
        if len(chosen):
            pooled = pooled.index_copy(0, chosen, pool_map(pyramid[level], rois[chosen], stride, side))
    return pooled


def pool_map(feature: Tensor, rois: Tensor, stride: int, side: int, *, averaged: int = 1) -> Tensor:
    """Pool from one feature map by RoIAlign (half-pixel aligned, as many samples per bin as the bin has cells).

    Args:
        feature: [B, C, H, W] at `stride`.
        rois: [K, 5], image index and xyxy in network pixels.
        side: bins per side of the result.
        averaged: pool `averaged` times as many bins per side, then take the mean of neighbours.

    Returns:
        [K, C, side, side] float32.
    """
    with torch.autocast(feature.device.type, enabled=False):
        # Coordinates up to 1333 need more than the 8 bits of bfloat16, and both inputs must have one dtype.
        feature = feature.float()
        if _sums_rows(feature):
            return sum_rows(feature, rois, stride, side, averaged)
        pooled: Tensor = roi_align(
            feature, rois, side * averaged, spatial_scale=1 / stride, sampling_ratio=0, aligned=True
        )
        return F.avg_pool2d(pooled, averaged) if averaged > 1 else pooled


def _sums_rows(x: Tensor) -> bool:
    """Return whether RoIs are pooled by `sum_rows`, whose results are channels-last and without gradients."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()
