"""RoIAlign of all pyramid levels and of the semantic map in one kernel launch.

Numbers are those of torchvision's `roi_align(sampling_ratio=0, aligned=True)`, but for the order of float32 additions.
torchvision's kernel reads four cells for every sample. Here each bin reads each cell it touches once: samples are a
grid, so a cell's weight is the product of its weight along y and its weight along x, and a weight along one axis is the
sum of two arithmetic series (the samples left and right of the cell), which is computed without a loop. The mean over
`averaged` x `averaged` neighbouring bins is one bin with `averaged` times as many samples.

Coordinates, weights and sums are float32; maps are read and results written in the maps' dtype.

Importing this module imports Triton, which only torch's Linux wheels bring along. With TRITON_INTERPRET=1 in the
environment before that import, the kernel runs on a CPU, in NumPy, for tests.
"""
# Triton writes compile-time constants in capitals, and a kernel has no structures to pass.
# Kernels are typed when they are compiled.
# ruff: noqa: N803, PLR0917
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from htc_model.network.resnet import STRIDES
from htc_model.network.roi_align import FINEST_SCALE_PX
from htc_model.network.semantic_head import SEMANTIC_STRIDE

__all__ = ["pool_levels"]

# Cells of a row that one step reads: a bin of an RoI on its own level touches two to five cells per axis.
_CELLS = 4
# Channels one program computes; 256 is every published network's width.
_MAX_CHANNELS = 256
# One warp holds a cell's 256 channels in vectors of 16 bytes (bfloat16), so that the sum over cells stays inside each
# thread. Neither number is measured on a card.
_WARPS = 1


@triton.jit
def _axis_weights(cell, first, step, samples, cells):
    """Compute the weights of cells along one axis.

    cell: float32 positions. first, step: the first sample's position and the distance between samples, in cells.
    samples: how many. cells: the length of the axis. A sample more than one cell outside the map has no weight; one
    that is less far outside counts for the border's cell.
    """
    offset = first - cell
    # Indices of the first sample right of cell - 1 (inclusive), of cell, and of cell + 1 (exclusive).
    low = tl.minimum(tl.maximum(tl.ceil((-1.0 - offset) / step), 0.0), samples)
    middle = tl.minimum(tl.maximum(tl.floor(-offset / step) + 1.0, 0.0), samples)
    high = tl.minimum(tl.maximum(tl.floor((1.0 - offset) / step) + 1.0, 0.0), samples)
    rising = tl.maximum(middle - low, 0.0)
    falling = tl.maximum(high - middle, 0.0)
    sum_rising = rising * (offset + step * (low + middle - 1.0) * 0.5)
    sum_falling = falling * (offset + step * (middle + high - 1.0) * 0.5)
    left = tl.where(cell == 0.0, rising, rising + sum_rising)
    right = tl.where(cell == cells - 1.0, falling, falling - sum_falling)
    return left + right


@triton.jit
def _add_bin(
    total, feature, image, height, width, channel, x1, y1, x2, y2, column, row, scale,
    SIDE: tl.constexpr, AVERAGED: tl.constexpr, CHANNELS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Add one bin, pooled from a channels-last map [B, H, W, CHANNELS], to `total` [block of channels]."""
    start_x = x1 * scale - 0.5
    start_y = y1 * scale - 0.5
    extent_x = (x2 * scale - 0.5) - start_x
    extent_y = (y2 * scale - 0.5) - start_y
    # Adaptive sampling: one sample per cell and bin side, rounded up; none for a box without area.
    # Rounded as torch divides, because an RoI of exactly 448 px must get the same number of samples.
    samples_x = tl.maximum(tl.ceil(tl.math.div_rn(extent_x, SIDE * AVERAGED * 1.0)), 0.0) * AVERAGED
    samples_y = tl.maximum(tl.ceil(tl.math.div_rn(extent_y, SIDE * AVERAGED * 1.0)), 0.0) * AVERAGED
    if (samples_x > 0.0) & (samples_y > 0.0):
        step_x = extent_x / SIDE / samples_x
        step_y = extent_y / SIDE / samples_y
        first_x = start_x + extent_x / SIDE * column + 0.5 * step_x
        first_y = start_y + extent_y / SIDE * row + 0.5 * step_y
        last_x = first_x + step_x * (samples_x - 1.0)
        last_y = first_y + step_y * (samples_y - 1.0)
        # The cells that samples touch; loops run over cells, never over samples, so that no box makes them long.
        left = tl.minimum(tl.maximum(tl.floor(first_x), 0.0), width - 1.0).to(tl.int32)
        right = tl.minimum(tl.maximum(tl.floor(last_x) + 1.0, 0.0), width - 1.0).to(tl.int32)
        top = tl.minimum(tl.maximum(tl.floor(first_y), 0.0), height - 1.0).to(tl.int32)
        bottom = tl.minimum(tl.maximum(tl.floor(last_y) + 1.0, 0.0), height - 1.0).to(tl.int32)
        share = 1.0 / (samples_x * samples_y)
        steps = tl.arange(0, CELLS)
        for x in range(left, right + 1, CELLS):
            xs = x + steps
            weights_x = _axis_weights(xs.to(tl.float32), first_x, step_x, samples_x, width) * share
            is_read = (xs <= right)[:, None] & (channel < CHANNELS)[None, :]
            for y in range(top, bottom + 1):
                weight_y = _axis_weights(y * 1.0, first_y, step_y, samples_y, height)
                cell = (image * height + y) * width + xs
                values = tl.load(
                    feature + cell.to(tl.int64)[:, None] * CHANNELS + channel[None, :], mask=is_read, other=0.0
                )
                total += tl.sum(values.to(tl.float32) * (weights_x * weight_y)[:, None], axis=0)
    return total


_SIZES = (
    "height2", "width2", "height3", "width3", "height4", "width4", "height5", "width5",
    "semantic_height", "semantic_width",
)  # fmt: skip


# Sizes are not specialised: a kernel would be compiled for each pattern of sizes that sixteen divides.
@triton.jit(do_not_specialize=_SIZES)
def _pool_kernel(
    pooled, rois, p2, p3, p4, p5, semantic,
    height2, width2, height3, width3, height4, width4, height5, width5, semantic_height, semantic_width,
    SIDE: tl.constexpr, AVERAGED: tl.constexpr, HAS_SEMANTIC: tl.constexpr,
    FINEST: tl.constexpr, STRIDE: tl.constexpr, SEMANTIC_STRIDE: tl.constexpr,
    CELLS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one bin of one RoI for a block of channels. Grid: (RoIs * SIDE * SIDE, blocks of channels)."""
    # Bins of one RoI are neighbours in the grid: they share cells.
    place = tl.program_id(0).to(tl.int64)
    roi = place // (SIDE * SIDE)
    bin_index = place % (SIDE * SIDE)
    column = (bin_index % SIDE).to(tl.float32)
    row = (bin_index // SIDE).to(tl.float32)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    image = tl.load(rois + roi * 5).to(tl.int32)
    x1 = tl.load(rois + roi * 5 + 1)
    y1 = tl.load(rois + roi * 5 + 2)
    x2 = tl.load(rois + roi * 5 + 3)
    y2 = tl.load(rois + roi * 5 + 4)
    # The level by FPN, eq. 1: P2 below 2 * FINEST pixels, P3 below twice that, and so on. As `roi_align.roi_levels`
    # computes it, without a logarithm, whose rounding would decide at the borders.
    size = tl.math.div_rn(tl.math.sqrt_rn((x2 - x1) * (y2 - y1)), FINEST) + 1e-6
    feature, height, width, scale = p5, height5, width5, 0.125 / STRIDE
    if size < 2.0:
        feature, height, width, scale = p2, height2, width2, 1.0 / STRIDE
    elif size < 4.0:
        feature, height, width, scale = p3, height3, width3, 0.5 / STRIDE
    elif size < 8.0:
        feature, height, width, scale = p4, height4, width4, 0.25 / STRIDE
    total = tl.zeros([BLOCK], tl.float32)
    total = _add_bin(total, feature, image, height, width, channel, x1, y1, x2, y2, column, row,
                     scale, SIDE, 1, CHANNELS, CELLS)  # fmt: skip
    if HAS_SEMANTIC:
        total = _add_bin(total, semantic, image, semantic_height, semantic_width, channel, x1, y1, x2, y2, column, row,
                         1.0 / SEMANTIC_STRIDE, SIDE, AVERAGED, CHANNELS, CELLS)  # fmt: skip
    tl.store(pooled + place * CHANNELS + channel, total.to(pooled.dtype.element_ty), mask=channel < CHANNELS)


def pool_levels(
    pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor, side: int, *, semantic_averaged: int = 1
) -> Tensor:
    """Pool each RoI from its own level by RoIAlign, and add what it pools from the semantic features.

    One kernel launch, nothing fetched from the device; `static_ops.pool_levels` has the same signature.

    Args:
        pyramid: P2..P5 or P2..P6 (P6 is not read), each [B, C, H_l, W_l] of one dtype: float32, bfloat16 or float16.
            Maps that are not channels-last are copied.
        semantic_feat: [B, C, H_3, W_3] at P3's stride and of the pyramid's dtype, or None.
        rois: [K, 5] float32, image index and xyxy in network pixels; a box without area pools zeros.
        side: bins per side of the result.
        semantic_averaged: the semantic features are pooled at `semantic_averaged` times as many bins per side, then
            neighbours are averaged.

    Returns:
        [K, C, side, side] of the pyramid's dtype, channels-last; coordinates and sums are float32.
    """
    maps = [feature.contiguous(memory_format=torch.channels_last) for feature in pyramid[: len(STRIDES)]]
    semantic = maps[0] if semantic_feat is None else semantic_feat.contiguous(memory_format=torch.channels_last)
    channels = maps[0].shape[1]
    pooled = maps[0].new_empty(len(rois), side, side, channels)
    if len(rois):
        block = min(_MAX_CHANNELS, triton.next_power_of_2(channels))
        sizes = [size for feature in (*maps, semantic) for size in feature.shape[-2:]]
        _pool_kernel[(len(rois) * side * side, triton.cdiv(channels, block))](
            pooled,
            rois.float().contiguous(),
            *maps,
            semantic,
            *sizes,
            SIDE=side,
            AVERAGED=semantic_averaged,
            HAS_SEMANTIC=semantic_feat is not None,
            FINEST=FINEST_SCALE_PX,
            STRIDE=STRIDES[0],
            SEMANTIC_STRIDE=SEMANTIC_STRIDE,
            CELLS=_CELLS,
            CHANNELS=channels,
            BLOCK=block,
            num_warps=_WARPS,
        )
    return pooled.permute(0, 3, 1, 2)
