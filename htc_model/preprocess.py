"""Preprocessing of decoded pixels into the network's input, bit for bit as in the published pipeline.

The published checkpoints were trained on images that OpenCV had resized in 8-bit fixed point. Other bilinear filters
differ by a grey level in some pixels, which is enough to move detections; so the same integer arithmetic is done here
in torch, on the network's device.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from htc_model.config import ModelConfig, ResizeConfig
from htc_model.structures import ImageBatch

# OpenCV's INTER_LINEAR on uint8: weights in 11 bits (INTER_RESIZE_COEF_BITS); a pixel times two
# weights carries 22 bits of fraction, dropped as 4 after the columns, 16 after the rows, 2 at the end.
_WEIGHT_ONE = 2048
_COLUMN_SHIFT, _ROW_SHIFT, _FINAL_SHIFT = 4, 16, 2
# Sizes whose taps are kept on a device, some 70 kB each. COCO's 5,000 validation images have a few hundred sizes.
_CACHED_SIZES = 512

Sizes = Sequence[tuple[int, int]]


def resized_size(height: int, width: int, resize: ResizeConfig) -> tuple[int, int]:
    """Compute the size after the resize that keeps the aspect ratio.

    Args:
        height, width: of the decoded image, in pixels, at least 1.
        resize: `long_side` and `short_side` bound the result's longer and shorter side.

    Returns:
        (height, width), each x * scale + 0.5 truncated to an integer (as mmcv does), and at least 1, for images such as
        1 x 5000.
    """
    scale = min(resize.long_side / max(height, width), resize.short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def padded_size(height: int, width: int, resize: ResizeConfig) -> tuple[int, int]:
    """Compute the network's input size for an image: resized, then rounded up to `pad_multiple`.

    Args:
        height, width: of the decoded (not the resized) image, in pixels, at least 1.

    Returns:
        (height, width); images of equal padded size may share a batch.
    """
    new_height, new_width = resized_size(height, width, resize)
    multiple = resize.pad_multiple
    return -(-new_height // multiple) * multiple, -(-new_width // multiple) * multiple


def _taps(new: int, old: int, *, are_columns: bool) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find the two source indices [2, new] and their weights [2, new] of each output row or column."""
    scale = 1.0 / (new / float(old))  # not old / new: OpenCV rounds twice
    centres = ((np.arange(new, dtype=np.float64) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(centres).astype(np.int64)
    fraction = centres - first.astype(np.float32)
    if are_columns:
        # Columns beyond the edge take the edge pixel with full weight. Rows keep both weights and only clip the index:
        # the sum may then round differently, as it does in OpenCV.
        is_outside = (first < 0) | (first >= old - 1)
        fraction[is_outside] = 0
        first = first.clip(0, old - 1)
    weights = np.stack([np.float32(1) - fraction, fraction]) * np.float32(_WEIGHT_ONE)
    indices = np.stack([first, first + 1]).clip(0, old - 1)
    return indices, np.rint(weights).astype(np.int32)  # rint rounds half to even, like cvRound


@dataclass(frozen=True)
class _Taps:
    """Where each output row and column comes from, on the device.

    needed_rows: [K] int64, the source rows that any output row needs.
    rows, columns: [2, new] int64, indices into `needed_rows` and into the source's columns.
    row_weights: [2, height, 1, 1] int32; column_weights: [2, width, 1] int32.
    """

    needed_rows: Tensor
    rows: Tensor
    row_weights: Tensor
    columns: Tensor
    column_weights: Tensor


@lru_cache(maxsize=_CACHED_SIZES)
def _taps_on(device: torch.device, size: tuple[int, int], old_size: tuple[int, int]) -> _Taps:
    rows, row_weights = _taps(size[0], old_size[0], are_columns=False)
    columns, column_weights = _taps(size[1], old_size[1], are_columns=True)
    needed_rows, rows_of = np.unique(rows, return_inverse=True)
    # A later caller may not be in inference mode, as this one may be.
    with torch.inference_mode(False):
        return _Taps(
            torch.from_numpy(needed_rows).to(device),
            torch.from_numpy(rows_of.reshape(2, -1)).to(device),
            torch.from_numpy(row_weights).to(device)[:, :, None, None],
            torch.from_numpy(columns).to(device),
            torch.from_numpy(column_weights).to(device)[:, :, None],
        )


def resize_uint8(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly, bit for bit as OpenCV's INTER_LINEAR does on 8-bit images.

    Integer arithmetic on the images' device; columns first, and only on the rows that are needed.

    Args:
        images: [..., H, W, C] uint8, any channel order.
        size: (height, width) of the result.

    Returns:
        [..., height, width, C] uint8 on the same device; `images` itself if it has this size already.
    """
    old_size = (images.shape[-3], images.shape[-2])
    if old_size == size:
        return images
    taps = _taps_on(images.device, size, old_size)
    source = images.index_select(-3, taps.needed_rows)
    by_column = _blend(source, taps.columns, taps.column_weights, dim=-2, shift=0)
    by_column.bitwise_right_shift_(_COLUMN_SHIFT)
    by_row = _blend(by_column, taps.rows, taps.row_weights, dim=-3, shift=_ROW_SHIFT)
    # Half a unit of the two bits that are left rounds to nearest.
    by_row.add_(1 << (_FINAL_SHIFT - 1)).bitwise_right_shift_(_FINAL_SHIFT)
    return by_row.clamp_(0, 255).to(torch.uint8)


def _blend(source: Tensor, indices: Tensor, weights: Tensor, *, dim: int, shift: int) -> Tensor:
    """Sum two weighted int32 gathers of `source` along `dim`, each shifted right before the sum."""
    gathered = [
        source.index_select(dim, index).to(torch.int32).mul_(weight).bitwise_right_shift_(shift)
        for index, weight in zip(indices, weights, strict=True)
    ]
    return gathered[0].add_(gathered[1])


def build_batch(
    images: Sequence[NDArray[np.uint8]], config: ModelConfig, device: torch.device | str = "cpu"
) -> ImageBatch:
    """Resize, normalise, pad and stack decoded images.

    Zeros are padded right and bottom, after the normalisation. Images of different padded shapes are refused: padded to
    a common maximum, features near the borders would change by percents, and an image's detections would depend on the
    other images of the batch.

    Args:
        images: at least one [H, W, 3] uint8 RGB array.
        config: its `resize` section gives sides, mean, standard deviation (in grey levels) and order of channels.
        device: of the resize and of the result.

    Raises:
        ValueError: no images, or their padded shapes differ.
    """
    uploaded = (upload_pixels(image, device) for image in images)
    return _assemble(uploaded, [(int(image.shape[0]), int(image.shape[1])) for image in images], config, device)


def upload_pixels(image: NDArray[np.uint8], device: torch.device | str) -> Tensor:
    """Copy a decoded image [H, W, 3] uint8 to a device; on the CPU the tensor shares its memory where it may."""
    # A read-only array (from a buffer) is copied: torch supports only writable arrays.
    return torch.from_numpy(np.require(image, requirements=["C", "W"])).to(device)


def assemble_batch(images: Sequence[Tensor], config: ModelConfig) -> ImageBatch:
    """Resize, normalise, pad and stack decoded images that are on a device already; the same bits as `build_batch`.

    Args:
        images: at least one [H, W, 3] uint8 RGB tensor, all on one device.
        config: as for `build_batch`.

    Raises:
        ValueError: no images, or their padded shapes differ.
    """
    sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
    return _assemble(images, sizes, config, images[0].device if images else "cpu")


def _assemble(
    images: Iterable[Tensor], original_sizes: Sizes, config: ModelConfig, device: torch.device | str
) -> ImageBatch:
    resize = config.resize
    padded = {padded_size(*size, resize) for size in original_sizes}
    if len(padded) != 1:
        raise ValueError(f"a batch needs images of one padded shape, got {sorted(padded) or 'no images'}")
    # Divided, not multiplied by the reciprocal: the last bit of the input differs otherwise.
    mean, std = (_channels_on(torch.device(device), values) for values in (resize.mean_rgb, resize.std_rgb))
    pixels = torch.zeros((len(original_sizes), 3, *padded.pop()), device=device)
    image_sizes = [resized_size(*size, resize) for size in original_sizes]
    for slot, image, (height, width) in zip(pixels, images, image_sizes, strict=True):
        resized = resize_uint8(image, (height, width)).permute(2, 0, 1).to(torch.float32)
        resized = resized.sub_(mean).div_(std)
        slot[:, :height, :width] = resized.flip(0) if resize.has_bgr else resized
    return ImageBatch(pixels=pixels, image_sizes=image_sizes, original_sizes=original_sizes)


@lru_cache(maxsize=64)
def _channels_on(device: torch.device, values: tuple[float, ...]) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
