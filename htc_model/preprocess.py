"""Preprocessing of decoded pixels into the network's input, bit for bit as in the published pipeline.

The published checkpoints were trained on images that OpenCV had resized in 8-bit fixed point. Other bilinear filters
differ by a grey level in some pixels, which is enough to move detections; so the same integer arithmetic is done here
in torch, on the network's device.
"""

from collections.abc import Sequence

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


def resize_uint8(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly, bit for bit as OpenCV's INTER_LINEAR does on 8-bit images.

    Integer arithmetic on the image's device; columns first, and only on the rows that are needed.

    Args:
        image: [H, W, C] uint8, any channel order.
        size: (height, width) of the result.

    Returns:
        [height, width, C] uint8 on the same device; `image` itself if it has this size already.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    device = image.device
    row_indices, row_weights = _taps(height, image.shape[0], are_columns=False)
    column_indices, column_weights = _taps(width, image.shape[1], are_columns=True)
    needed_rows, rows_of = np.unique(row_indices, return_inverse=True)

    source = image.index_select(0, torch.from_numpy(needed_rows).to(device))
    by_column = _blend(source, column_indices, column_weights, dim=1, shift=0)
    by_column.bitwise_right_shift_(_COLUMN_SHIFT)
    by_row = _blend(by_column, rows_of.reshape(2, -1), row_weights, dim=0, shift=_ROW_SHIFT)
    # Half a unit of the two bits that are left rounds to nearest.
    by_row.add_(1 << (_FINAL_SHIFT - 1)).bitwise_right_shift_(_FINAL_SHIFT)
    return by_row.clamp_(0, 255).to(torch.uint8)


def _blend(source: Tensor, indices: NDArray[np.int64], weights: NDArray[np.int32], *, dim: int, shift: int) -> Tensor:
    """Sum two weighted int32 gathers of `source` along `dim`, each shifted right before the sum."""
    shape = (-1, 1, 1) if dim == 0 else (-1, 1)
    gathered = []
    for index, weight in zip(indices, weights, strict=True):
        taken = source.index_select(dim, torch.from_numpy(index).to(source.device)).to(torch.int32)
        factor = torch.from_numpy(weight).to(source.device).view(shape)
        gathered.append(taken.mul_(factor).bitwise_right_shift_(shift))
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
        config: its `resize` section gives sides, mean and standard deviation (in grey levels).
        device: of the resize and of the result.

    Raises:
        ValueError: no images, or their padded shapes differ.
    """
    resize = config.resize
    original_sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
    padded = {padded_size(*size, resize) for size in original_sizes}
    if len(padded) != 1:
        raise ValueError(f"a batch needs images of one padded shape, got {sorted(padded) or 'no images'}")
    padded_height, padded_width = padded.pop()
    # Divided, not multiplied by the reciprocal: the last bit of the input differs otherwise.
    mean = torch.tensor(resize.mean_rgb, dtype=torch.float32, device=device).view(3, 1, 1)
    std = torch.tensor(resize.std_rgb, dtype=torch.float32, device=device).view(3, 1, 1)
    pixels = torch.zeros((len(images), 3, padded_height, padded_width), device=device)
    image_sizes = [resized_size(*size, resize) for size in original_sizes]
    for slot, image, (height, width) in zip(pixels, images, image_sizes, strict=True):
        # A read-only array (from a buffer) is copied: torch supports only writable arrays.
        uploaded = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(device)
        resized = resize_uint8(uploaded, (height, width)).permute(2, 0, 1).to(torch.float32)
        slot[:, :height, :width] = resized.sub_(mean).div_(std)
    return ImageBatch(pixels=pixels, image_sizes=image_sizes, original_sizes=original_sizes)
