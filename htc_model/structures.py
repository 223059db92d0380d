"""The network's input and output types: image batches, detections, masks.

Sizes are always (height, width) in pixels; boxes are always xyxy, x to the right and y down, with continuous
coordinates whose unit is one pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from torch import Tensor


class Rle(TypedDict):
    """A COCO compressed run-length mask, as `pycocotools.mask.decode` takes it.

    size: [height, width] of the original image.
    counts: the run lengths in column-major order, in COCO's variable-length ASCII code.
    """

    size: list[int]
    counts: bytes


@dataclass(frozen=True)
class ImageBatch:
    """Images of one padded shape, ready for the network.

    pixels: [B, 3, H, W] float32, RGB, normalised, zero-padded right and bottom (after normalising).
    image_sizes: B x (height, width) after resizing, before padding.
    original_sizes: B x (height, width) of the decoded images.
    wants_semantic: whether the semantic branch's maps are asked for as well.
    """

    pixels: Tensor
    image_sizes: Sequence[tuple[int, int]]
    original_sizes: Sequence[tuple[int, int]]
    wants_semantic: bool = False

    def __len__(self) -> int:
        return int(self.pixels.shape[0])


@dataclass(frozen=True)
class SemanticMap:
    """What the semantic branch makes of an image, or of one view of it.

    logits: [C, h, w] float32 on the model's device; the cell in row i and column j is about the pixel in row i * stride
        and column j * stride of the resized image, and there is one for each such pixel inside the image.
    image_size: (height, width) of the resized image, before padding.
    stride: pixels of the resized image from one cell to the next.
    is_mirrored: whether the image was mirrored, left to right, before it was resized.
    """

    logits: Tensor
    image_size: tuple[int, int]
    stride: int
    is_mirrored: bool = False


@dataclass(frozen=True)
class SemanticRegion:
    """All pixels of an image that have one semantic class.

    label: the class's channel. mask: COCO RLE of the original image's size. area: pixels, at least 1.
    """

    label: int
    mask: Rle
    area: int


@dataclass(frozen=True)
class RawDetections:
    """One image's detections before their masks are pasted and encoded; tensors on the model's device.

    boxes_xyxy: [N, 4] float32, pixels of the original image, clipped to it.
    scores: [N] float32 in [0, 1], descending.
    labels: [N] int64 in [0, C).
    mask_probs: [N, 28, 28] float32 in [0, 1] at each detection's own class, or None for a box-only model.
    original_size: (height, width) of the decoded image.
    mask_boxes_xyxy: [N, 4], over which the masks are stretched; None: over `boxes_xyxy`, as in all networks here.
    semantic: the semantic branch's map in each view; None where it was not asked for.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    mask_probs: Tensor | None
    original_size: tuple[int, int]
    mask_boxes_xyxy: Tensor | None = field(default=None, kw_only=True)
    semantic: Sequence[SemanticMap] | None = field(default=None, kw_only=True)

    @property
    def mask_boxes(self) -> Tensor:
        """The boxes [N, 4] over which the masks are stretched."""
        return self.boxes_xyxy if self.mask_boxes_xyxy is None else self.mask_boxes_xyxy


@dataclass(frozen=True)
class FrameDetections:
    """One image's detections whose masks cover the whole image, before they are encoded; tensors on one device.

    boxes_xyxy: [N, 4] float32, pixels of the original image; None for the boxes that enclose the masks.
    scores: [N] float32 in [0, 1].
    labels: [N] int64 in [0, C).
    masks: [N, h, w], bool, or floats (logits or probabilities); h x w pixels of any number are stretched over the
        original image, and hold no padding.
    is_logits: whether float masks are logits, which are foreground above 0; probabilities are above 0.5.
    original_size: (height, width) of the decoded image.
    """

    boxes_xyxy: Tensor | None
    scores: Tensor
    labels: Tensor
    masks: Tensor
    is_logits: bool
    original_size: tuple[int, int]


@dataclass(frozen=True)
class Detections:
    """One image's instances, most confident first; tensors on the CPU.

    boxes_xyxy: [N, 4] float32, pixels of the original image.
    scores: [N] float32 in [0, 1], descending.
    labels: [N] int64 in [0, C), without background.
    masks: N COCO RLE of the original image's size; None for a box-only model.
    semantic: the regions of the classes that the image has, in the order of labels, which cover it without overlap;
        None where they were not asked for.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    masks: list[Rle] | None
    semantic: list[SemanticRegion] | None = None

    def __len__(self) -> int:
        return int(self.scores.shape[0])
