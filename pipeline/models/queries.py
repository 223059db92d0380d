"""Detections from models with queries: each family's own rule from logits to instances, without maps of full size."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from htc_model.structures import FrameDetections, ImageBatch

# Values of stretched maps that are worked on at a time, some 12 bytes each: 25 MB.
_CHUNK = 2**21
# As in the published post-processing of MaskFormer and its successors: an empty mask divides by this.
_NO_PIXELS = 1e-6

# Scores [B, K] in descending or any order, the queries [B, K] and the labels [B, K], from class logits [B, Q, C].
Choose = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
# Where masks are scored: at the maps' own size, at the resized image's, or at a square of this side.
ScoreSize = Literal["maps", "image"] | int


def choose_pairs_by_softmax(class_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the best pairs of query and class, as many as there are queries; the last class is "no object"."""
    return _best_pairs(class_logits.float().softmax(dim=-1)[..., :-1])


def choose_pairs_by_sigmoid(class_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the best pairs of query and class, as many as there are queries; every class is an object."""
    return _best_pairs(class_logits.float().sigmoid())


def choose_classes_by_softmax(class_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose each query's best class; the last class is "no object"."""
    scores, labels = class_logits.float().softmax(dim=-1)[..., :-1].max(dim=-1)
    return scores, torch.arange(scores.shape[1], device=scores.device).expand_as(scores), labels


def _best_pairs(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    images, queries, classes = scores.shape
    best, place = scores.reshape(images, -1).topk(queries, dim=1)
    return best, place // classes, place % classes


@dataclass(frozen=True)
class QueryRule:
    """How a family's outputs become instances.

    class_logits, mask_logits, boxes: names of the outputs: [B, Q, C], [B, Q, h, w], and [B, Q, 4] as centre and size in
        fractions of the image; "" where the boxes are those of the masks.
    score_size: where a score is also multiplied by its mask's mean probability over its foreground, see `ScoreSize`;
        None where it is not.
    """

    class_logits: str
    mask_logits: str
    boxes: str
    choose: Choose
    score_size: ScoreSize | None

    def read(self, outputs: object, batch: ImageBatch) -> list[FrameDetections]:
        """Return each image's instances; a query whose map has no foreground is left out.

        Args:
            outputs: of the network, for this batch.
        """
        scores, queries, labels = self.choose(getattr(outputs, self.class_logits))
        maps = getattr(outputs, self.mask_logits)
        boxes = getattr(outputs, self.boxes) if self.boxes else None
        input_size = (batch.pixels.shape[2], batch.pixels.shape[3])
        found = []
        for place in range(len(batch)):
            own = cut_padding(maps[place], batch.image_sizes[place], input_size)
            # Not `> 0`: NaN stays, and is reported.
            has_pixels = ~(own.flatten(1).amax(dim=1) <= 0)
            own_scores, query = scores[place], queries[place]
            if self.score_size is not None:
                own_scores = own_scores * score_masks(own, self._size_of_scores(own, batch.image_sizes[place]))[query]
            keep = has_pixels[query]
            query = query[keep]
            found.append(
                FrameDetections(
                    boxes_xyxy=None if boxes is None else to_pixels(boxes[place, query], batch.original_sizes[place]),
                    scores=own_scores[keep],
                    labels=labels[place, keep],
                    masks=own[query],
                    is_logits=True,
                    original_size=batch.original_sizes[place],
                )
            )
        return found

    def _size_of_scores(self, maps: Tensor, image_size: tuple[int, int]) -> tuple[int, int]:
        if isinstance(self.score_size, int):
            return self.score_size, self.score_size
        return image_size if self.score_size == "image" else (maps.shape[1], maps.shape[2])


def cut_padding(maps: Tensor, image_size: tuple[int, int], input_size: tuple[int, int]) -> Tensor:
    """Cut the part of maps that covers padding.

    Args:
        maps: [Q, h, w], over an input of `input_size`, of which the image is the upper left `image_size`.

    Returns:
        [Q, h', w'], over the image alone. Where the image ends within a map's pixel, the maps are sampled anew at
        pixels that are smaller by as much, so that a whole number of them covers the image.
    """
    for axis, (image, whole) in enumerate(zip(image_size, input_size, strict=True), start=1):
        maps = _cut(maps, axis, image * maps.shape[axis] / whole)
    return maps


def _cut(maps: Tensor, axis: int, extent: float) -> Tensor:
    """Cut the maps at `extent` pixels along an axis, which may lie within a pixel."""
    side = max(1, math.ceil(extent))
    if side == extent:
        return maps.narrow(axis, 0, side)
    # Not F.interpolate with a scale: it copies where the numbers of pixels are equal.
    place = ((torch.arange(side, device=maps.device) + 0.5) * (extent / side) - 0.5).clamp(0, maps.shape[axis] - 1)
    low = place.floor()
    shape = [-1 if each == axis else 1 for each in range(maps.ndim)]
    before = maps.index_select(axis, low.long()).float()
    after = maps.index_select(axis, (low.long() + 1).clamp(max=maps.shape[axis] - 1)).float()
    return torch.lerp(before, after, (place - low).reshape(shape))


def score_masks(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute the mean probability of each map's foreground, with the maps stretched to `size`.

    Args:
        maps: [Q, h, w] logits.

    Returns:
        [Q] float32 in [0, 1]; 0 for a map without foreground.
    """
    scores = []
    for some in torch.split(maps, max(1, _CHUNK // (size[0] * size[1]))):
        stretched = some.float()
        if tuple(some.shape[1:]) != size:
            stretched = F.interpolate(stretched[None], size=size, mode="bilinear", align_corners=False)[0]
        is_set = (stretched > 0).flatten(1)
        total = stretched.sigmoid().flatten(1).mul_(is_set).sum(dim=1)
        scores.append(total / (is_set.sum(dim=1) + _NO_PIXELS))
    return torch.cat(scores)


def to_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert boxes [N, 4] of centre and size, as fractions of an image of `size` (height, width), to xyxy pixels."""
    centre, half = boxes[:, :2].float(), boxes[:, 2:].float() / 2
    height, width = size
    limits = half.new_tensor([width, height, width, height])
    return (torch.cat([centre - half, centre + half], dim=1) * limits).clamp(min=0).minimum(limits)
