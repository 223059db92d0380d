"""One network over the views of images: proposals, boxes and masks in the pixels of the original images.

A view is a resize, mirrored or not. Without views the network sees the plain image: positions are then float64, in
which the way to the original image and back gives the same float32 bits. With views they are rounded to a grid on which
mirroring is exact.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import nms

from htc_model.config import ModelConfig, ViewConfig
from htc_model.finite import check_predictions
from htc_model.network.box_ops import boxes_to_rois, has_area
from htc_model.network.detector import HTC
from htc_model.preprocess import assemble_batch, padded_size
from htc_model.structures import ImageBatch, SemanticMap

# Positions are multiples of these, in pixels of the original image: W - x is then exact in float32 for images of up to
# 2^14 pixels a side. The second is finer than the first, because a mean of two multiples of the first must be exact.
VIEW_GRID = 64.0
MEAN_GRID = 1024.0

# One image's boxes_xyxy [N, 4] and scores [N], best first.
Proposals = tuple[Tensor, Tensor]
# One image's boxes_xyxy [R, 1 or classes, 4] and scores [R, classes].
ScoredBoxes = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Item:
    """One view of one image.

    image, view: indices. pixels: [H, W, 3] uint8 of the image as decoded, mirrored where the view is.
    """

    image: int
    view: int
    pixels: Tensor


@dataclass(frozen=True)
class _Chunk:
    """Items of one resize and one padded shape, computed together."""

    items: tuple[_Item, ...]
    config: ModelConfig


@dataclass(frozen=True)
class _Features:
    """What a chunk's heads need."""

    batch: ImageBatch
    pyramid: Sequence[Tensor]
    semantic_feat: Tensor | None
    maps: Sequence[SemanticMap] | Sequence[None]


class SeenImages:
    """Some images as one network sees them; the steps in order, each over all views.

    Args:
        network: in evaluation mode, on the images' device.
        views: none is the plain image.
        images: [H, W, 3] uint8 RGB, of any sizes.
        at_once: views of images that go through the network together.
        keeps_features: whether the features of all views are kept from step to step. Else they are computed for each
            step again: three times the work, the least memory.
        wants_semantic: whether `maps` has the semantic maps.
    """

    def __init__(
        self,
        network: HTC,
        views: Sequence[ViewConfig],
        images: Sequence[Tensor],
        *,
        at_once: int,
        keeps_features: bool = True,
        wants_semantic: bool = False,
    ) -> None:
        self._network = network
        self._wants_semantic = wants_semantic and network.config.semantic
        self._config = network.config
        resize = self._config.resize
        self._is_plain = not views
        self._views = tuple(views) or (ViewConfig(resize.long_side, resize.short_side),)
        self._sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        chunks = list(self._chunks(images, at_once))
        self._features = (_Kept if keeps_features else _Recomputed)(chunks, self._compute)

    def propose(self) -> list[Proposals]:
        """Compute the proposals of all views, merged by NMS where there are several."""
        head = self._network.rpn_head
        found: list[list[Proposals]] = [[(_NOTHING, _NOTHING)] * len(self._views) for _ in self._sizes]
        for chunk, seen in self._features:
            logits, deltas = head(seen.pyramid)
            check_predictions("objectness scores and boxes of the proposal network", logits, deltas)
            selected = head.select_proposals(logits, deltas, seen.batch.image_sizes)
            for item, size, (boxes, scores) in zip(chunk.items, seen.batch.image_sizes, selected, strict=True):
                found[item.image][item.view] = (self._to_original(boxes, item, size), scores)
        return [views[0] if self._is_plain else self._merge_proposals(views) for views in found]

    def _merge_proposals(self, views: Sequence[Proposals]) -> Proposals:
        boxes = torch.cat([each for each, _ in views])
        scores = torch.cat([each for _, each in views])
        is_real = has_area(boxes)
        boxes, scores = boxes[is_real], scores[is_real]
        kept = nms(boxes, scores, self._config.rpn_nms_iou)[: self._config.rpn_proposals]
        return boxes[kept], scores[kept]

    def detect(self, proposals: Sequence[Tensor]) -> list[ScoredBoxes]:
        """Refine and score the proposals in every view; per image the means of boxes and of scores.

        Args:
            proposals: per image boxes_xyxy [R, 4].
        """
        boxes: list[list[Tensor]] = [[_NOTHING] * len(self._views) for _ in self._sizes]
        scores: list[list[Tensor]] = [[_NOTHING] * len(self._views) for _ in self._sizes]
        for chunk, seen in self._features:
            in_view = self._in_views(proposals, chunk, seen)
            image_sizes = torch.tensor(seen.batch.image_sizes, device=seen.batch.pixels.device)
            found, scored = self._network.roi_head.detect_boxes(
                seen.pyramid, seen.semantic_feat, boxes_to_rois(in_view), image_sizes
            )
            counts = [len(each) for each in in_view]
            per_item = zip(found.split_with_sizes(counts), scored.split_with_sizes(counts), strict=True)
            for item, size, (item_boxes, item_scores) in zip(
                chunk.items, seen.batch.image_sizes, per_item, strict=True
            ):
                original = self._to_original(item_boxes, item, size)
                boxes[item.image][item.view], scores[item.image][item.view] = original, item_scores
        return [(self._mean_of_boxes(one), _mean(other)) for one, other in zip(boxes, scores, strict=True)]

    def _mean_of_boxes(self, views: Sequence[Tensor]) -> Tensor:
        return views[0] if self._is_plain else rounded(_mean(views), MEAN_GRID)

    def segment(self, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """Average the detections' masks over the views: per image [N, 28, 28] in [0, 1].

        Args:
            boxes: per image boxes_xyxy [N, 4]. labels: [N] int64, the network's own.
        """
        masks: list[list[Tensor]] = [[_NOTHING] * len(self._views) for _ in self._sizes]
        for chunk, seen in self._features:
            in_view = self._in_views(boxes, chunk, seen)
            of_chunk = torch.cat([labels[item.image] for item in chunk.items])
            probs = self._network.roi_head.detect_masks(
                seen.pyramid, seen.semantic_feat, boxes_to_rois(in_view), of_chunk
            )
            for item, each in zip(chunk.items, probs.split_with_sizes([len(own) for own in in_view]), strict=True):
                masks[item.image][item.view] = each.flip(-1) if self._views[item.view].is_mirrored else each
        return [_mean(each) for each in masks]

    def maps(self) -> Sequence[tuple[SemanticMap, ...]] | Sequence[None]:
        """Collect the semantic maps: per image one of each view, in the order of views; None where not wanted."""
        if not self._wants_semantic:
            return [None] * len(self._sizes)
        found: list[dict[int, SemanticMap]] = [{} for _ in self._sizes]
        for chunk, seen in self._features:
            for item, each in zip(chunk.items, seen.maps, strict=True):
                if each is not None:
                    is_mirrored = self._views[item.view].is_mirrored
                    found[item.image][item.view] = replace(each, is_mirrored=is_mirrored)
        return [tuple(of_view[view] for view in sorted(of_view)) for of_view in found]

    def _chunks(self, images: Sequence[Tensor], at_once: int) -> Iterator[_Chunk]:
        groups: dict[tuple[int, int, tuple[int, int]], list[_Item]] = {}
        for number, view in enumerate(self._views):
            resize = replace(self._config.resize, long_side=view.long_side, short_side=view.short_side)
            for index, image in enumerate(images):
                shape = padded_size(int(image.shape[0]), int(image.shape[1]), resize)
                pixels = image.flip(1) if view.is_mirrored else image
                groups.setdefault((view.long_side, view.short_side, shape), []).append(_Item(index, number, pixels))
        for (long_side, short_side, _), items in groups.items():
            resize = replace(self._config.resize, long_side=long_side, short_side=short_side)
            config = replace(self._config, resize=resize)
            for start in range(0, len(items), at_once):
                yield _Chunk(tuple(items[start : start + at_once]), config)

    def _compute(self, chunk: _Chunk) -> _Features:
        batch = assemble_batch([item.pixels for item in chunk.items], chunk.config)
        batch = replace(batch, wants_semantic=self._wants_semantic)
        pyramid = self._network.features(batch.pixels)
        return _Features(batch, pyramid, *self._network.semantic(pyramid, batch))

    def _in_views(self, boxes: Sequence[Tensor], chunk: _Chunk, seen: _Features) -> list[Tensor]:
        """Map each image's boxes [N, 4] to the views of a chunk."""
        return [
            self._to_view(boxes[item.image], item, size)
            for item, size in zip(chunk.items, seen.batch.image_sizes, strict=True)
        ]

    def _to_original(self, boxes: Tensor, item: _Item, size: tuple[int, int]) -> Tensor:
        """Map boxes [..., 4] of a view of `size` to the original image."""
        original = self._sizes[item.image]
        if self._is_plain:
            return to_original_pixels(boxes, size, original)
        boxes = rounded(boxes / scales(boxes, size, original), VIEW_GRID)
        return _mirrored(boxes, original[1]) if self._views[item.view].is_mirrored else boxes

    def _to_view(self, boxes: Tensor, item: _Item, size: tuple[int, int]) -> Tensor:
        """Map boxes [N, 4] of the original image to a view of `size`: float32."""
        original = self._sizes[item.image]
        if self._is_plain:
            return from_original_pixels(boxes, size, original)
        boxes = boxes.float()
        boxes = _mirrored(boxes, original[1]) if self._views[item.view].is_mirrored else boxes
        return boxes * scales(boxes, size, original)


class _Kept:
    """The features of all chunks, each computed once: fast, and the memory of all views' pyramids."""

    def __init__(self, chunks: Sequence[_Chunk], compute: Callable[[_Chunk], _Features]) -> None:
        self._chunks, self._compute = chunks, compute
        self._features: list[_Features] = []

    def __iter__(self) -> Iterator[tuple[_Chunk, _Features]]:
        for index, chunk in enumerate(self._chunks):
            if index == len(self._features):
                self._features.append(self._compute(chunk))
            yield chunk, self._features[index]


class _Recomputed:
    """The features of one chunk at a time, computed for each step again."""

    def __init__(self, chunks: Sequence[_Chunk], compute: Callable[[_Chunk], _Features]) -> None:
        self._chunks, self._compute = chunks, compute

    def __iter__(self) -> Iterator[tuple[_Chunk, _Features]]:
        for chunk in self._chunks:
            yield chunk, self._compute(chunk)


_NOTHING = torch.empty(0)


def to_original_pixels(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Map boxes [..., 4] of an image resized to `size` to the original's pixels: float64, not clipped."""
    return boxes.double() / scales(boxes.double(), size, original)


def from_original_pixels(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Map boxes [..., 4] of the original image to the pixels of one resized to `size`: float32.

    Of boxes from `to_original_pixels` of the same size it gives the bits that they had before: the two roundings in
    float64 are less than half a unit of float32.
    """
    return (boxes.double() * scales(boxes.double(), size, original)).float()


def scales(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Return [4]: by what a box of the original image is multiplied, as each side was rounded separately."""
    scale_x, scale_y = size[1] / original[1], size[0] / original[0]
    return boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])


def rounded(boxes: Tensor, grid: float) -> Tensor:
    """Round boxes to multiples of 1 / grid, halves to even, so that mirrored boxes are rounded to mirrored ones."""
    return (boxes * grid).round() / grid


def _mean(views: Sequence[Tensor]) -> Tensor:
    """Average over views; a view and its mirror image are neighbours, so that their order does not change the sum."""
    pairs = [sum(views[start + 1 : start + 2], views[start]) for start in range(0, len(views), 2)]
    return sum(pairs[1:], pairs[0]) / len(views)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    """Mirror boxes [..., 4] of an image of this width, left to right."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([width - right, top, width - left, bottom], dim=-1)
