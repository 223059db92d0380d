"""Models of one's own, as users write them: without a network, with a fault on request."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from htc_model.structures import FrameDetections, ImageBatch, RawDetections
from pipeline.models import PixelFormat

CLASSES = ("bright", "dark")
# What a model may raise that is no Exception.
EXITS = {
    "exits": SystemExit(0),
    "interrupts": KeyboardInterrupt(),
    "leaves": GeneratorExit(),
    "is cancelled": asyncio.CancelledError(),
}
# Images of this width get the fault.
SPOILT_WIDTH = 48


@dataclass
class Regions:
    """Finds the bright and the dark part of an image.

    fault: what is wrong with the results of images that are `SPOILT_WIDTH` wide, "" for nothing.
    has_frames: masks over the whole image, else over the boxes. batch_sizes: of all batches so far.
    """

    fault: str = ""
    has_frames: bool = True
    max_batch: int = 1000
    name: str = "regions"
    classes: Sequence[str] = CLASSES
    pixels: PixelFormat = PixelFormat(long_side=64, short_side=64)  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        self.batch_sizes: list[int] = []

    def infer(self, batch: ImageBatch) -> list[RawDetections | FrameDetections]:
        self.batch_sizes.append(len(batch))
        if len(batch) > self.max_batch:
            raise torch.OutOfMemoryError("the fake memory is full")
        found: list[RawDetections | FrameDetections] = []
        for pixels, (height, width), size in zip(batch.pixels, batch.image_sizes, batch.original_sizes, strict=True):
            grey = pixels[:, :height, :width].mean(dim=0)
            result = self._frames(grey, size) if self.has_frames else _boxes(grey, size)
            found.append(self._spoil(result) if self.fault and size[1] == SPOILT_WIDTH else result)
        return found

    def _frames(self, grey: torch.Tensor, size: tuple[int, int]) -> FrameDetections:
        masks = torch.stack([grey >= 0.5, grey < 0.5])
        return FrameDetections(None, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), masks, False, size)

    def _spoil(self, found: RawDetections | FrameDetections) -> RawDetections | FrameDetections:
        if self.fault in EXITS:
            raise EXITS[self.fault]
        if self.fault == "raises":
            raise RuntimeError("the licence server does not answer")
        if self.fault == "label":
            return replace(found, labels=torch.tensor([0, 91]))
        if self.fault == "score":
            return replace(found, scores=torch.tensor([0.9, float("nan")]))
        if self.fault == "mask size":
            assert isinstance(found, FrameDetections)
            return replace(found, masks=found.masks[:, :, :20])
        assert isinstance(found, RawDetections)
        return replace(found, boxes_xyxy=found.boxes_xyxy * float("nan"))


def _boxes(grey: torch.Tensor, size: tuple[int, int]) -> RawDetections:
    height, width = size
    boxes = torch.tensor([[-5.0, 0.0, width / 2, height], [0.0, 0.0, width + 7.0, height]])
    return RawDetections(boxes, torch.tensor([0.6, 0.7]), torch.tensor([0, 1]), torch.ones(2, 4, 4), size)


def load(fault: str = "", *, has_frames: bool = True) -> Regions:
    return Regions(fault, has_frames)


def load_weights(weights: str = "none") -> Regions:
    return Regions(name=f"regions with {weights}")


def raise_error() -> Regions:
    raise RuntimeError("no licence")


def call_exit() -> Regions:
    sys.exit(0)


def need_a_package() -> Regions:
    import a_package_that_is_not_there  # noqa: F401

    return Regions()


def return_nothing() -> None:
    return None


no_function = 3
