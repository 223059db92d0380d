"""RoI features as matrix products: the same numbers as RoIAlign, several times faster to train on a CPU.

RoIAlign averages bilinear samples of a bin, and both the grid of samples and the bilinear weights are
products of a part in y and a part in x. So the features of a RoI are `Wy @ map @ Wx^T` with one small matrix
per axis, and the gradient is two more products, where torchvision's CPU kernel adds sample by sample. It
costs more arithmetic on large maps, where it loses.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from htc_model import semantic
from htc_model.backbone import STRIDES
from htc_model.cascade import CascadeHead
from htc_model.heads import BOX_POOL, MASK_POOL
from htc_model.roi_pooling import roi_levels

# Cells of a map up to which the products win on one core: measured at 64 channels, see
# benchmarks/training_cpu.py.
MAX_SEPARABLE_CELLS = 8_192


def box_features(head: CascadeHead, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor) -> Tensor:
    """Pool what a box head sees, as `CascadeHead.box_features`: rois [K, 5] -> [K, C, 7, 7]."""
    if not _is_separable_faster(pyramid):
        return head.box_features(pyramid, semantic_feat, rois)
    features = separable_pool_pyramid(pyramid, rois, BOX_POOL)
    if semantic_feat is None:
        return features
    # 14x14 bins averaged in pairs to 7x7.
    return features + separable_pool_map(semantic_feat, rois, semantic.STRIDE, BOX_POOL, averaged=MASK_POOL // BOX_POOL)


def mask_features(head: CascadeHead, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor) -> Tensor:
    """Pool what the mask heads see, as `CascadeHead.mask_features`: rois [K, 5] -> [K, C, 14, 14]."""
    if not _is_separable_faster(pyramid):
        return head.mask_features(pyramid, semantic_feat, rois)
    features = separable_pool_pyramid(pyramid, rois, MASK_POOL)
    if semantic_feat is None:
        return features
    return features + separable_pool_map(semantic_feat, rois, semantic.STRIDE, MASK_POOL)


def _is_separable_faster(pyramid: Sequence[Tensor]) -> bool:
    finest = pyramid[0]
    return finest.device.type == "cpu" and finest.shape[-2] * finest.shape[-1] <= MAX_SEPARABLE_CELLS


def separable_pool_pyramid(pyramid: Sequence[Tensor], rois: Tensor, side: int) -> Tensor:
    """Pool each RoI from its own level of P2..P5: pyramid, rois [K, 5] -> [K, C, side, side] float32."""
    levels = roi_levels(rois)
    members = [torch.nonzero(levels == level).squeeze(1) for level in range(len(STRIDES))]
    pooled = torch.cat(
        [
            separable_pool_map(pyramid[level], rois[chosen], stride, side)
            for level, (chosen, stride) in enumerate(zip(members, STRIDES, strict=True))
        ]
    )
    return pooled[torch.cat(members).argsort()]


def separable_pool_map(feature: Tensor, rois: Tensor, stride: int, side: int, *, averaged: int = 1) -> Tensor:
    """Pool one feature map by RoIAlign, adaptive sampling, half-pixel aligned.

    Args:
        feature: [B, C, H, W] at `stride`.
        rois: [K, 5], image index and xyxy in network pixels; no gradient flows to them.
        side: of the result.
        averaged: RoIAlign works on side * averaged bins, which are averaged to `side` afterwards.

    Returns:
        [K, C, side, side] float32.
    """
    height, width = feature.shape[-2:]
    if len(rois) == 0:
        return feature.new_zeros((0, feature.shape[1], side, side), dtype=torch.float32)
    with torch.no_grad(), torch.autocast(feature.device.type, enabled=False):
        starts = rois[:, 1:3] / stride - 0.5
        lengths = rois[:, 3:5] / stride - 0.5 - starts
        weights_x = _axis_weights(starts[:, 0], lengths[:, 0], side, averaged, int(width))
        weights_y = _axis_weights(starts[:, 1], lengths[:, 1], side, averaged, int(height))
        images = rois[:, 0].long()
    pooled = []
    order = []
    for image in torch.unique(images).tolist():
        chosen = torch.nonzero(images == image).squeeze(1)
        order.append(chosen)
        pooled.append(_pool_image(feature[image].float(), weights_y[chosen], weights_x[chosen]))
    if len(order) == 1:
        return pooled[0]
    return torch.cat(pooled)[torch.cat(order).argsort()]


def _pool_image(feature: Tensor, weights_y: Tensor, weights_x: Tensor) -> Tensor:
    """Multiply one image's map [C, H, W] by [K, S, H] from above and [K, S, W] from the side: [K, C, S, S]."""
    channels, height, width = feature.shape
    count, side, _ = weights_y.shape
    with torch.autocast(feature.device.type, enabled=False):
        rows = weights_y.reshape(count * side, height) @ feature.transpose(0, 1).reshape(height, channels * width)
        cells = torch.bmm(rows.view(count, side * channels, width), weights_x.transpose(1, 2))
    return cells.view(count, side, channels, side).transpose(1, 2)


def _axis_weights(start: Tensor, length: Tensor, side: int, averaged: int, cells: int) -> Tensor:
    """Find how much each map cell counts in each bin along one axis.

    Args:
        start, length: [K] of the RoIs, in map cells, where cell i covers [i - 0.5, i + 0.5].
        side, averaged: see `separable_pool_map`.
        cells: of the map along this axis.

    Returns:
        [K, side, cells] float32.
    """
    bins = side * averaged
    samples = torch.ceil(length / bins).clamp(min=0)
    most = max(int(samples.max()), 1)
    step = torch.arange(most, device=start.device)
    is_used = step < samples[:, None]
    within = (step + 0.5) / samples.clamp(min=1)[:, None]
    bin_length = (length / bins)[:, None, None]
    bin_index = torch.arange(bins, device=start.device)[:, None]
    places = start[:, None, None] + (bin_index + within[:, None]) * bin_length
    # Samples up to one cell outside count as the border cell; farther ones as zero.
    share = is_used[:, None] & (places >= -1) & (places <= cells)
    share = share / (samples.clamp(min=1)[:, None, None] * averaged)
    places = places.clamp(0, cells - 1)
    low = places.floor()
    fraction = places - low
    low_index = low.long()
    weights = start.new_zeros(len(start), side, cells)
    shape = (len(start), side, averaged * most)
    weights.scatter_add_(2, low_index.reshape(shape), (share * (1 - fraction)).reshape(shape))
    weights.scatter_add_(2, (low_index + 1).clamp(max=cells - 1).reshape(shape), (share * fraction).reshape(shape))
    return weights
