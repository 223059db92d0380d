"""Test-time augmentation: one network over several views of each image, merged before the masks.

    views -> proposals of each view --NMS--> the same proposals for every view
          -> boxes and scores of each view --mean--> threshold, NMS per class -> detections
          -> masks of the detections in each view --mean--> 28x28 probabilities

Masks are averaged as probabilities at one box, never suppressed against each other. The order of the steps is that of
the published two-stage testing (MMDetection, `aug_test`), with which the paper's overall system was measured. A view is
mirrored before it is resized, and positions are rounded to a grid on which mirroring is exact, so that a mirrored
photo gives the mirrored detections.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import nms

from htc_model.config import ModelConfig, ViewConfig
from htc_model.finite import check_predictions
from htc_model.network.box_ops import boxes_to_rois, clip_boxes, has_area
from htc_model.network.detector import HTC
from htc_model.network.postprocess import BoxDetections, select_detections
from htc_model.preprocess import assemble_batch, padded_size
from htc_model.structures import ImageBatch, RawDetections, SemanticMap

# Positions are multiples of these, in pixels of the original image: W - x is then exact in float32 for images of up to
# 2^14 pixels a side. The second is finer than the first, because a mean of two multiples of the first must be exact.
_VIEW_GRID = 64.0
_MEAN_GRID = 1024.0


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


class AugmentedModel:
    """A network that sees each image in the views of its configuration.

    Args:
        network: in evaluation mode, on its device.
        views: at least one; by default those of the network's configuration.
        wants_semantic: whether each image's detections also have its semantic map in every view.
    """

    def __init__(
        self, network: HTC, views: Sequence[ViewConfig] | None = None, *, wants_semantic: bool = False
    ) -> None:
        self.network = network
        self.wants_semantic = wants_semantic
        self.config = network.config
        self.views = tuple(network.config.views if views is None else views)
        if not self.views:
            raise ValueError("test-time augmentation needs at least one view")

    @torch.inference_mode()
    def infer_images(self, images: Sequence[Tensor], *, at_once: int | None = None) -> list[RawDetections]:
        """Detect and segment over all views.

        Args:
            images: [H, W, 3] uint8 RGB, of any sizes, on the network's device.
            at_once: views of images that go through the network together; by default as many as there are images, which
                bounds the memory of the backbone by that of the same batch without augmentation.

        Returns:
            One RawDetections per image, most confident first; they do not depend on the other images.

        Raises:
            NonFiniteError: an image's activations overflow, or the weights contain NaN.
            torch.OutOfMemoryError: one view does not fit.
        """
        if self._is_plain():
            batches = (assemble_batch([image], self.config) for image in images)
            return [self.network.infer(replace(each, wants_semantic=self.wants_semantic))[0] for each in batches]
        chunks = list(self._chunks(images, at_once or max(1, len(images))))
        try:
            return self._infer(images, _Kept(chunks, self._features))
        except torch.OutOfMemoryError:
            # Leaving this handler frees the features of all views.
            pass
        return self._infer(images, _Recomputed(chunks, self._features))

    def _is_plain(self) -> bool:
        resize = self.config.resize
        return self.views == (ViewConfig(resize.long_side, resize.short_side),)

    def _infer(self, images: Sequence[Tensor], features: "_Kept | _Recomputed") -> list[RawDetections]:
        sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
        proposals = self._propose(sizes, features)
        boxes, scores = self._detect(sizes, proposals, features)
        detected = [
            select_detections(clip_boxes(each, each.new_tensor(size)), score, self.config)
            for each, score, size in zip(boxes, scores, sizes, strict=True)
        ]
        masks = self._segment(sizes, detected, features)
        maps = self._maps(len(sizes), features)
        return [
            RawDetections(found_boxes, found_scores, labels, probs, size, semantic)
            for (found_boxes, found_scores, labels), probs, size, semantic in zip(
                detected, masks, sizes, maps, strict=True
            )
        ]

    def _chunks(self, images: Sequence[Tensor], at_once: int) -> Iterator[_Chunk]:
        groups: dict[tuple[int, int, tuple[int, int]], list[_Item]] = {}
        for number, view in enumerate(self.views):
            resize = replace(self.config.resize, long_side=view.long_side, short_side=view.short_side)
            for index, image in enumerate(images):
                shape = padded_size(int(image.shape[0]), int(image.shape[1]), resize)
                pixels = image.flip(1) if view.is_mirrored else image
                groups.setdefault((view.long_side, view.short_side, shape), []).append(_Item(index, number, pixels))
        for (long_side, short_side, _), items in groups.items():
            resize = replace(self.config.resize, long_side=long_side, short_side=short_side)
            config = replace(self.config, resize=resize)
            for start in range(0, len(items), at_once):
                yield _Chunk(tuple(items[start : start + at_once]), config)

    def _features(self, chunk: _Chunk) -> _Features:
        batch = assemble_batch([item.pixels for item in chunk.items], chunk.config)
        batch = replace(batch, wants_semantic=self.wants_semantic)
        pyramid = self.network.features(batch.pixels)
        return _Features(batch, pyramid, *self.network.semantic(pyramid, batch))

    def _propose(self, sizes: Sequence[tuple[int, int]], features: "_Kept | _Recomputed") -> list[Tensor]:
        """Merge the proposals of all views: per image boxes_xyxy [N, 4] in original pixels, best first."""
        head = self.network.rpn_head
        found: list[list[tuple[Tensor, Tensor]]] = [[(_NOTHING, _NOTHING)] * len(self.views) for _ in sizes]
        for chunk, seen in features:
            logits, deltas = head(seen.pyramid)
            check_predictions("objectness scores and boxes of the proposal network", logits, deltas)
            selected = head.select_proposals(logits, deltas, seen.batch.image_sizes)
            for item, size, (boxes, scores) in zip(chunk.items, seen.batch.image_sizes, selected, strict=True):
                found[item.image][item.view] = (self._to_original(boxes, item, size, sizes[item.image]), scores)
        return [self._merge_proposals(views) for views in found]

    def _merge_proposals(self, views: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        boxes = torch.cat([each for each, _ in views])
        scores = torch.cat([each for _, each in views])
        is_real = has_area(boxes)
        boxes, scores = boxes[is_real], scores[is_real]
        kept = nms(boxes, scores, self.config.rpn_nms_iou)[: self.config.rpn_proposals]
        return boxes[kept]

    def _detect(
        self, sizes: Sequence[tuple[int, int]], proposals: Sequence[Tensor], features: "_Kept | _Recomputed"
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Refine and score the proposals in every view; returns per image the means of boxes and scores."""
        boxes: list[list[Tensor]] = [[_NOTHING] * len(self.views) for _ in sizes]
        scores: list[list[Tensor]] = [[_NOTHING] * len(self.views) for _ in sizes]
        for chunk, seen in features:
            in_view = [
                self._to_view(proposals[item.image], item, size, sizes[item.image])
                for item, size in zip(chunk.items, seen.batch.image_sizes, strict=True)
            ]
            image_sizes = torch.tensor(seen.batch.image_sizes, device=seen.batch.pixels.device)
            found, scored = self.network.roi_head.detect_boxes(
                seen.pyramid, seen.semantic_feat, boxes_to_rois(in_view), image_sizes
            )
            counts = [len(each) for each in in_view]
            per_item = zip(found.split_with_sizes(counts), scored.split_with_sizes(counts), strict=True)
            for item, size, (item_boxes, item_scores) in zip(
                chunk.items, seen.batch.image_sizes, per_item, strict=True
            ):
                original = self._to_original(item_boxes, item, size, sizes[item.image])
                boxes[item.image][item.view], scores[item.image][item.view] = original, item_scores
        return [_rounded(_mean(each), _MEAN_GRID) for each in boxes], [_mean(each) for each in scores]

    def _segment(
        self, sizes: Sequence[tuple[int, int]], detected: Sequence[BoxDetections], features: "_Kept | _Recomputed"
    ) -> list[Tensor] | list[None]:
        """Average the detections' masks over the views: per image [N, 28, 28]; None for a box-only model."""
        if not self.config.has_masks:
            return [None] * len(sizes)
        masks: list[list[Tensor]] = [[_NOTHING] * len(self.views) for _ in sizes]
        for chunk, seen in features:
            in_view = [
                self._to_view(detected[item.image][0], item, size, sizes[item.image])
                for item, size in zip(chunk.items, seen.batch.image_sizes, strict=True)
            ]
            labels = torch.cat([detected[item.image][2] for item in chunk.items])
            probs = self.network.roi_head.detect_masks(seen.pyramid, seen.semantic_feat, boxes_to_rois(in_view), labels)
            for item, each in zip(chunk.items, probs.split_with_sizes([len(own) for own in in_view]), strict=True):
                masks[item.image][item.view] = each.flip(-1) if self.views[item.view].is_mirrored else each
        return [_mean(each) for each in masks]

    def _maps(
        self, images: int, features: "_Kept | _Recomputed"
    ) -> "Sequence[tuple[SemanticMap, ...]] | Sequence[None]":
        """Collect the semantic maps: per image one of each view; None where they are not wanted."""
        if not self.wants_semantic or not self.config.semantic:
            return [None] * images
        found: list[dict[int, SemanticMap]] = [{} for _ in range(images)]
        for chunk, seen in features:
            for item, each in zip(chunk.items, seen.maps, strict=True):
                if each is not None:
                    is_mirrored = self.views[item.view].is_mirrored
                    found[item.image][item.view] = replace(each, is_mirrored=is_mirrored)
        return [tuple(of_view[view] for view in sorted(of_view)) for of_view in found]

    def _to_original(self, boxes: Tensor, item: _Item, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
        """Map boxes [..., 4] of a view of `size` to the original image, on the grid."""
        boxes = _rounded(boxes / _scales(boxes, size, original), _VIEW_GRID)
        return _mirrored(boxes, original[1]) if self.views[item.view].is_mirrored else boxes

    def _to_view(self, boxes: Tensor, item: _Item, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
        """Map boxes [N, 4] of the original image to a view of `size`."""
        boxes = _mirrored(boxes, original[1]) if self.views[item.view].is_mirrored else boxes
        return boxes * _scales(boxes, size, original)


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
    """The features of one chunk at a time, computed for each step again: three times the work, the least memory."""

    def __init__(self, chunks: Sequence[_Chunk], compute: Callable[[_Chunk], _Features]) -> None:
        self._chunks, self._compute = chunks, compute

    def __iter__(self) -> Iterator[tuple[_Chunk, _Features]]:
        for chunk in self._chunks:
            yield chunk, self._compute(chunk)


_NOTHING = torch.empty(0)


def _mean(views: Sequence[Tensor]) -> Tensor:
    """Average over views; a view and its mirror image are neighbours, so that their order does not change the sum."""
    pairs = [sum(views[start + 1 : start + 2], views[start]) for start in range(0, len(views), 2)]
    return sum(pairs[1:], pairs[0]) / len(views)


def _rounded(boxes: Tensor, grid: float) -> Tensor:
    return (boxes * grid).round() / grid


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    """Mirror boxes [..., 4] of an image of this width, left to right."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([width - right, top, width - left, bottom], dim=-1)


def _scales(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    scale_x, scale_y = size[1] / original[1], size[0] / original[0]
    return boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
