"""How decoded images become a batch: as a preset's network wants them, or as a model's `PixelFormat` says."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from htc_model.config import ModelConfig
from htc_model.preprocess import assemble_batch, build_batch, padded_size, resize_uint8, upload_pixels
from htc_model.structures import ImageBatch
from pipeline.models.protocol import PixelFormat

# Assumed of a model that takes images as they are, for the first batch size: full HD.
_UNBOUNDED = (1080, 1920)
_GREY_LEVELS = 255.0


class Pixels(Protocol):
    """Makes batches for one model."""

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the (height, width) of a decoded image inside a batch; equal ones may share one."""

    def largest_size(self) -> tuple[int, int]:
        """Return the (height, width) of the largest image inside a batch, or a usual one where there is no bound."""

    def build(self, images: Sequence[NDArray[np.uint8]], device: torch.device | str) -> ImageBatch:
        """Make a batch of images [H, W, 3] uint8 RGB of one padded size."""

    def assemble(self, images: Sequence[Tensor]) -> ImageBatch:
        """Make a batch of images [H, W, 3] uint8 RGB that are on the device already; the same bits as `build`."""


class PresetPixels:
    """Batches for a network of the presets; see `htc_model.preprocess`."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the (height, width) inside a batch."""
        return padded_size(height, width, self._config.resize)

    def largest_size(self) -> tuple[int, int]:
        """Return the (height, width) of the largest view."""
        resize, views = self._config.resize, self._config.views
        resizes = [replace(resize, long_side=view.long_side, short_side=view.short_side) for view in views] or [resize]
        sizes = [padded_size(each.short_side, each.long_side, each) for each in resizes]
        return max(sizes, key=lambda size: size[0] * size[1])

    def build(self, images: Sequence[NDArray[np.uint8]], device: torch.device | str) -> ImageBatch:
        """Make a batch of decoded images."""
        return build_batch(images, self._config, device)

    def assemble(self, images: Sequence[Tensor]) -> ImageBatch:
        """Make a batch of images on the device."""
        return assemble_batch(images, self._config)


class FormatPixels:
    """Batches as a model's `PixelFormat` says."""

    def __init__(self, pixels: PixelFormat) -> None:
        self._pixels = pixels

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the (height, width) inside a batch."""
        return self._pixels.padded_size(height, width)

    def largest_size(self) -> tuple[int, int]:
        """Return the (height, width) of the largest image inside a batch."""
        pixels = self._pixels
        long_side = pixels.long_side or (2 * pixels.short_side if pixels.short_side else None)
        if long_side is None:
            return pixels.padded_size(*_UNBOUNDED)
        return pixels.padded_size(min(pixels.short_side or long_side, long_side), long_side)

    def build(self, images: Sequence[NDArray[np.uint8]], device: torch.device | str) -> ImageBatch:
        """Make a batch of decoded images."""
        uploaded = (upload_pixels(image, device) for image in images)
        return self._assemble(uploaded, [(image.shape[0], image.shape[1]) for image in images], torch.device(device))

    def assemble(self, images: Sequence[Tensor]) -> ImageBatch:
        """Make a batch of images on the device."""
        return self._assemble(images, [(image.shape[0], image.shape[1]) for image in images], images[0].device)

    def _assemble(
        self, images: Iterable[Tensor], original_sizes: Sequence[tuple[int, int]], device: torch.device
    ) -> ImageBatch:
        padded = {self.padded_size(*size) for size in original_sizes}
        if len(padded) != 1:
            raise ValueError(f"a batch needs images of one padded size, got {sorted(padded) or 'no images'}")
        dtype = torch.uint8 if self._pixels.dtype == "uint8" else torch.float32
        pixels = torch.zeros((len(original_sizes), 3, *padded.pop()), device=device, dtype=dtype)
        image_sizes = [self._pixels.resized_size(*size) for size in original_sizes]
        for slot, image, (height, width) in zip(pixels, images, image_sizes, strict=True):
            ready = self._prepare(image, (height, width))
            slot[:, :height, :width] = ready.flip(0) if self._pixels.has_bgr else ready
        return ImageBatch(pixels=pixels, image_sizes=image_sizes, original_sizes=original_sizes)

    def _prepare(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize and normalise one image [H, W, 3] uint8 to [3, height, width]."""
        pixels = self._pixels
        if pixels.interpolation == "bilinear":
            # The order and the units of torchvision.models.detection.transform, for the same last bits.
            scaled = image.permute(2, 0, 1).to(torch.float32).div_(_GREY_LEVELS)
            mean, std = ([value / _GREY_LEVELS for value in each] for each in (pixels.mean_rgb, pixels.std_rgb))
            scaled = _normalised(scaled, mean, std)
            return F.interpolate(scaled[None], size=size, mode="bilinear", align_corners=False)[0]
        if pixels.interpolation == "opencv":
            resized = resize_uint8(image, size).permute(2, 0, 1)
        else:
            resized = _resize_as_pillow(image.permute(2, 0, 1), size, pixels.interpolation)
        if pixels.dtype == "uint8":
            return resized
        return _normalised(resized.to(torch.float32), pixels.mean_rgb, pixels.std_rgb)


def _resize_as_pillow(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize [3, H, W] uint8 to (height, width), antialiased."""
    # A second of imports, for models that need it.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    mode = InterpolationMode.BICUBIC if interpolation == "pillow_bicubic" else InterpolationMode.BILINEAR
    resized: Tensor = transforms.resize(image, list(size), interpolation=mode, antialias=True)
    return resized


def _normalised(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (image - mean) / std by channel, of [3, H, W] float32."""
    means, stds = (torch.tensor(each, dtype=torch.float32, device=image.device)[:, None, None] for each in (mean, std))
    return image.sub(means).div_(stds)
