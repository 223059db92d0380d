"""A model that finds painted rectangles exactly: each colour but black is one object, in whatever part it sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from htc_model.config import ModelConfig, load_preset
from htc_model.structures import FrameDetections, ImageBatch, RawDetections
from pipeline.models.protocol import PixelFormat

Rectangle = tuple[int, int, int, int]


def config_for(side: int) -> ModelConfig:
    """Return a configuration under which images and tiles of sides up to `side` are seen as they are."""
    config = load_preset("htc_lite0_fpn")
    return replace(config, resize=replace(config.resize, long_side=side, short_side=side))


@dataclass
class PaintedModel:
    """Finds the bounding box of each colour; its class is the red level modulo the number of classes.

    on_tile: called with the colours that each image or tile shows, before its result; may raise.
    sizes: (height, width) of each image or tile so far. batch_sizes: of all batches.
    """

    config: ModelConfig
    on_tile: Callable[[set[tuple[int, int, int]]], None] = lambda colors: None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)

    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        self.batch_sizes.append(len(batch))
        mean = torch.tensor(self.config.resize.mean_rgb)[:, None, None]
        std = torch.tensor(self.config.resize.std_rgb)[:, None, None]
        found = []
        for pixels, size, original in zip(batch.pixels, batch.image_sizes, batch.original_sizes, strict=True):
            assert tuple(size) == tuple(original), "the test's tiles are not resized"
            self.sizes.append((int(original[0]), int(original[1])))
            seen = (pixels * std + mean).round()[:, : size[0], : size[1]].permute(1, 2, 0).numpy().astype(np.int64)
            found.append(self._detect(seen, (int(original[0]), int(original[1]))))
        return found

    def _detect(self, seen: NDArray[np.int64], size: tuple[int, int]) -> RawDetections:
        codes = seen @ np.array([65536, 256, 1])
        colors = [int(code) for code in np.unique(codes) if code]
        self.on_tile({(code >> 16, code >> 8 & 255, code & 255) for code in colors})
        boxes = []
        for code in colors:
            rows, columns = np.nonzero(codes == code)
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        labels = [(code >> 16) % len(self.config.classes) for code in colors]
        return RawDetections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.full((len(colors),), 0.75),
            torch.tensor(labels, dtype=torch.int64),
            torch.ones(len(colors), 28, 28),
            size,
        )


class PaintedFrames:
    """A model of one's own, which finds each colour but black exactly, whatever its shape, and returns bitmaps."""

    name = "painted"
    classes = ("thing",)
    pixels = PixelFormat(dtype="uint8")

    def infer(self, batch: ImageBatch) -> list[FrameDetections]:
        return [
            self._detect(pixels[:, : size[0], : size[1]], (int(size[0]), int(size[1])))
            for pixels, size in zip(batch.pixels, batch.original_sizes, strict=True)
        ]

    def _detect(self, pixels: torch.Tensor, size: tuple[int, int]) -> FrameDetections:
        codes = (pixels.long() * torch.tensor([65536, 256, 1])[:, None, None]).sum(dim=0)
        found = [code for code in codes.unique().tolist() if code]
        masks = torch.stack([codes == code for code in found]) if found else torch.zeros(0, *size, dtype=torch.bool)
        count = len(found)
        return FrameDetections(
            None, torch.full((count,), 0.5), torch.zeros(count, dtype=torch.int64), masks, False, size
        )


def paint(size: tuple[int, int], rectangles: Sequence[Rectangle], *, red: int = 7) -> NDArray[np.uint8]:
    """Paint rectangles (x0, y0, x1, y1) of one class and different colours on black, [H, W, 3]."""
    pixels = np.zeros((*size, 3), np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(rectangles):
        pixels[y0:y1, x0:x1] = (red, 50 + number // 200, 40 + number % 200)
    return pixels


def write_png(path: Path, pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None = None) -> Path:
    """Write a PNG, with transparency where `alpha` [H, W] is given."""
    channels = pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(channels).save(path, compress_level=1)
    return path
