"""RoIAlign on a CPU as a sum of weighted rows.

torchvision's operator samples channel by channel, which on a CPU took a third of an image's time. Here the samples of a
bin are an outer product of two one-dimensional weightings, so a bin is the sum of the few cells it touches, each times
its y and its x weight; with all channels of a cell in one row, `embedding_bag` computes that sum on whole vectors.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# How many (cell, weight) pairs are processed at a time: 32 MB.
_CHUNK_PAIRS = 4_000_000


def sum_rows(feature: Tensor, rois: Tensor, stride: int, side: int, averaged: int) -> Tensor:
    """Pool like `roi_align.pool_map`, with the same arguments; a row holds one cell's channels.

    Equal to torchvision's `roi_align` except for the order of float32 additions, and for samples within a rounding
    error of one cell outside the map, beyond which samples count as zero.
    """
    channels, height, width = feature.shape[1:]
    rows = feature.permute(0, 2, 3, 1).reshape(-1, channels)  # no copy if the map is channels-last
    pooled = rois.new_zeros(len(rois), side, side, channels)
    start = rois[:, 1:3] / stride - 0.5
    extent = (rois[:, 3:5] / stride - 0.5) - start
    # RoIAlign's adaptive sampling: one sample per cell and bin side, rounded up. No samples for a box without area.
    samples = (extent / (side * averaged)).ceil().long().clamp(min=0) * averaged
    for chosen, (x_samples, y_samples) in _equal_samples(samples, pairs_per_sample=side * side):
        ys, y_weights = _axis(start[chosen, 1], extent[chosen, 1], height, side, y_samples)
        xs, x_weights = _axis(start[chosen, 0], extent[chosen, 0], width, side, x_samples)
        first_row = rois[chosen, 0].int() * (height * width)
        cells = first_row[:, None, None, None, None] + ys[:, :, None, :, None] * width + xs[:, None, :, None, :]
        weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
        bag = cells.shape[-2] * cells.shape[-1]
        sums = F.embedding_bag(cells.reshape(-1, bag), rows, mode="sum", per_sample_weights=weights.reshape(-1, bag))
        pooled[chosen] = sums.reshape(-1, side, side, channels)
    return pooled.permute(0, 3, 1, 2)


def _equal_samples(samples: Tensor, *, pairs_per_sample: int) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Group RoIs by their sample counts [K, 2], so that a group is one rectangular sum; skip those without samples."""
    counts, group_of = torch.unique(samples, dim=0, return_inverse=True)
    for group, (x_samples, y_samples) in enumerate(counts.tolist()):
        if x_samples and y_samples:
            pairs = pairs_per_sample * (x_samples + 1) * (y_samples + 1)
            members = (group_of == group).nonzero().squeeze(1)
            for chosen in torch.split(members, max(1, _CHUNK_PAIRS // pairs)):
                yield chosen, (x_samples, y_samples)


def _axis(start: Tensor, extent: Tensor, cells: int, side: int, samples: int) -> tuple[Tensor, Tensor]:
    """Compute which cells of one axis each bin's samples touch, and their weights.

    Args:
        start, extent: [K] in cells; the first cell's centre is 0.
        cells: length of the axis.
        side: bins per RoI.
        samples: per bin.

    Returns:
        Cell indices [K, side, M] int32 in [0, cells), and weights [K, side, M] that sum to 1 where all samples lie
        inside; a sample more than one cell outside counts as zero.
    """
    steps = torch.arange(side * samples, dtype=start.dtype) + 0.5
    positions = start[:, None] + steps * (extent / (side * samples))[:, None]
    share = ((positions >= -1) & (positions <= cells)).to(start.dtype) / samples
    positions = positions.clamp(0, cells - 1)
    lower = positions.floor()
    upper_share = (positions - lower) * share
    shape = (len(start), side, samples)
    lower = lower.long().reshape(shape)
    first = lower[:, :, :1]
    slots = lower - first
    width = int(slots.max()) + 2
    weights = start.new_zeros(len(start), side, width)
    weights.scatter_add_(2, slots, (share - upper_share).reshape(shape))
    weights.scatter_add_(2, slots + 1, upper_share.reshape(shape))
    touched = (first + torch.arange(width)).clamp(max=cells - 1)  # the slot after the last cell has no weight
    return touched.int(), weights
