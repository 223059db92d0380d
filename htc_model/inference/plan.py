"""An inference plan: the network's whole way from pixels to detections for one padded shape and batch size.

    pixels -> pyramid -> R proposals -> cascade stages -> NMS -> D detections -> masks of the first `bucket` RoIs
                              [B, R]                                  [B, D]         [bucket], then back to [B, D]

R is `rpn_proposals`, D is `max_detections`; slots that nothing fills are marked and change nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from htc_model.config import ModelConfig
from htc_model.finite import LARGEST_SIDE_PX, NonFiniteError
from htc_model.inference import exhaustive, static_ops
from htc_model.network.box_ops import apply_deltas, clip_boxes, has_area
from htc_model.network.detector import HTC
from htc_model.network.fpn import STRIDES
from htc_model.network.guided_rpn import BOX_STDS, LOCATION_THRESHOLD, SHAPE_STDS, build_squares, decode_guided
from htc_model.network.roi_heads import BOX_POOL, MASK_POOL, MASK_SIDE
from htc_model.network.rpn import build_anchors
from htc_model.network.scnet import SCNetHead

Precision = Literal["fp32", "bf16"]
# (pyramid, semantic_feat, rois, side, semantic_averaged=) -> pooled, see `static_ops.pool_levels`.
PoolLevels = Callable[..., Tensor]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# RoIs that a head processes at once: pooled features of a box take 50 kB in float32, those of a mask 200 kB.
BOX_CHUNK_ROIS = 8192
MASK_CHUNK_ROIS = 2048
# The smallest number of mask RoIs that is worth a size of its own.
SMALLEST_BUCKET = 64
# Candidates of an image, over all classes, whose overlaps are computed. More are only needed if these give fewer than
# `max_detections`; `StaticDetections.is_exact` says so.
NMS_CANDIDATES = 2048
# Steps of the iteration of NMS, see `static_ops.suppress`. The example photos need 9 to 18 for proposals and 2 to 6
# for detections; the deterministic weights, which give twenty times the candidates, need 6.
RPN_NMS_STEPS = 32
NMS_STEPS = 16


def why_not_static(config: ModelConfig) -> str:
    """Return why a network cannot run at fixed shapes; "" if it can."""
    if config.suppression != "hard":
        return "soft-NMS takes boxes one by one, each time the best of changed scores"
    if config.roi_head == "panet":
        return "PANet's heads pool every RoI from all levels, which the fixed-shape RoIAlign does not"
    return ""


@dataclass(frozen=True)
class StaticDetections:
    """The detections of a batch at fixed shapes, on the model's device; B images, D = `max_detections` slots each.

    boxes_xyxy: [B, D, 4] float32, pixels of the original image, clipped to it; zeros in empty slots.
    scores: [B, D] float32, descending; -inf in empty slots.
    labels: [B, D] int64 in [0, C); 0 in empty slots.
    counts: [B] int64, how many slots are detections; they come first.
    mask_probs: [B, D, 28, 28] float32 in [0, 1], zeros in empty slots; None for a box-only model, or before `masks`.
    finite: [B, checks] bool, in the order of `InferencePlan.checks`; False where the image's values overflowed.
    is_exact: [B] bool; False where the fixed sizes did not suffice, and the exhaustive way must decide.
    semantic_logits: [B, semantic_classes, H / 8, W / 8] of a plan that gives them.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    mask_probs: Tensor | None
    finite: Tensor
    is_exact: Tensor
    semantic_logits: Tensor | None = None


@dataclass(frozen=True)
class BoxState:
    """What the box part leaves for the mask part, on the device.

    detections: without masks.
    pyramid, semantic_feat: the features that masks are pooled from.
    rois: [B * D, 5] float32, image index and network pixels, the detections of all images first; then boxes of zeros.
    labels: [B * D] int64 of those RoIs.
    slots: [B * D] int64, each RoI's place among all images' detections (image * D + slot); B * D for empty ones.
    total: [] int64, the number of RoIs that are detections.
    """

    detections: StaticDetections
    pyramid: list[Tensor]
    semantic_feat: Tensor | None
    rois: Tensor
    labels: Tensor
    slots: Tensor
    total: Tensor


class InferencePlan:
    """The network at one padded shape and batch size; a pure function of its inputs, so that a CUDA graph can hold it.

    Attributes:
        checks: what each column of `StaticDetections.finite` is about, in the order of the dynamic path's checks.
        mask_buckets: the numbers of RoIs that `masks` can run with, ascending.
    """

    def __init__(
        self,
        network: HTC,
        padded_shape: tuple[int, int],
        batch: int,
        precision: Precision = "fp32",
        *,
        pool_levels: PoolLevels = static_ops.pool_levels,
        is_exhaustive: bool = False,
        wants_semantic: bool = False,
    ) -> None:
        """Put what depends on the shape only onto the network's device.

        Args:
            network: in evaluation mode; its weights have the dtype of `precision`.
            padded_shape: (height, width) of the pixels.
            batch: B.
            pool_levels: RoIAlign, as `static_ops.pool_levels`.
            is_exhaustive: run NMS over any number of candidates and to the end, by operations whose shapes depend on
                values: for the images that are not `is_exact`.
            wants_semantic: whether it also gives the semantic branch's logits.

        Raises:
            ValueError: the network cannot run at fixed shapes, see `why_not_static`.
        """
        if reason := why_not_static(network.config):
            raise ValueError(reason)
        self.network = network
        self.config = network.config
        self.padded_shape = padded_shape
        self.batch = batch
        self.precision = precision
        self.is_exhaustive = is_exhaustive
        self.wants_semantic = wants_semantic
        self._pool_levels = pool_levels
        device = next(network.parameters()).device
        height, width = padded_shape
        # Not by way of the cache: the plan keeps them as long as it needs them.
        self._is_guided = self.config.rpn == "guided"
        build = build_squares.__wrapped__ if self._is_guided else build_anchors.__wrapped__
        self._anchors = [build(-(-height // stride), -(-width // stride), stride, device) for stride in STRIDES]
        self._images = torch.arange(batch, device=device)
        self._stds = [torch.tensor(stds, device=device) for stds in self.config.box_stds]
        self._guided_stds = torch.tensor(SHAPE_STDS, device=device), torch.tensor(BOX_STDS, device=device)
        self._rpn_threshold = static_ops.round_threshold(self.config.rpn_nms_iou)
        self._threshold = static_ops.round_threshold(self.config.nms_iou)
        self.checks: tuple[str, ...] = (
            "objectness scores and boxes of the proposal network",
            *(f"scores and boxes of stage {stage + 1}" for stage in range(self.config.num_stages)),
            "scores",
            *(["mask logits"] if self.config.has_masks else []),
        )
        self.mask_buckets = mask_buckets(batch * self.config.max_detections) if self.config.has_masks else ()

    def run(self, pixels: Tensor, image_sizes: Tensor, original_sizes: Tensor) -> StaticDetections:
        """Detect and segment with the largest bucket, so that the host reads nothing; arguments as for `boxes`."""
        state = self.boxes(pixels, image_sizes, original_sizes)
        return self.masks(state, self.mask_buckets[-1]) if self.config.has_masks else state.detections

    def boxes(self, pixels: Tensor, image_sizes: Tensor, original_sizes: Tensor) -> BoxState:
        """Detect boxes.

        Args:
            pixels: [B, 3, H, W] float32, normalised and padded.
            image_sizes: [B, 2] int64 (height, width) before padding; (0, 0) marks an empty slot of the batch.
            original_sizes: [B, 2] int64 (height, width) of the decoded images.
        """
        head = self.network.roi_head
        pixels = pixels.to(DTYPES[self.precision], memory_format=torch.channels_last)
        pyramid = self.network.features(pixels)
        semantic_feat, semantic_logits = (
            head.semantic_with_logits(pyramid) if self.wants_semantic else (head.semantic_forward(pyramid), None)
        )
        proposals, is_real, finite, is_decided = self._propose(pyramid, image_sizes)
        if self._pool_levels is static_ops.pool_levels:
            # torchvision's operator takes float32; converted here, the features are converted once.
            features = [level.float() for level in pyramid[:-1]]
            semantic_feat = None if semantic_feat is None else semantic_feat.float()
        else:
            features = pyramid[:-1]
        boxes, scores, finite_of_stages = self._refine(features, semantic_feat, proposals, is_real, image_sizes)
        found, found_scores, labels, is_exact = self._select(boxes, scores, is_real)
        counts = (found_scores > -torch.inf).sum(dim=1)
        is_found = (found_scores > -torch.inf)[..., None]
        in_original = clip_boxes(static_ops.to_original(found, image_sizes, original_sizes), original_sizes[:, None])
        detections = StaticDetections(
            boxes_xyxy=torch.where(is_found, in_original, 0),
            scores=found_scores,
            labels=labels,
            counts=counts,
            mask_probs=None,
            finite=torch.stack([finite, *finite_of_stages], dim=1),
            is_exact=is_decided & is_exact,
            semantic_logits=semantic_logits,
        )
        return self._compact(detections, found, features, semantic_feat)

    def bucket_for(self, total: int) -> int:
        """Return the smallest bucket for a number of RoIs."""
        return next(bucket for bucket in self.mask_buckets if bucket >= total)

    def masks(self, state: BoxState, bucket: int) -> StaticDetections:
        """Predict the masks of the first `bucket` RoIs.

        Args:
            state: from `boxes`.
            bucket: one of `mask_buckets`, at least `state.total`; a smaller one would leave detections without masks.
        """
        detections = state.detections
        slots = state.slots[:bucket]
        slot_count = self.batch * self.config.max_detections
        mask_probs = slots.new_zeros(slot_count + 1, MASK_SIDE, MASK_SIDE, dtype=torch.float32)
        overflows = slots.new_zeros(self.batch + 1)
        for start in range(0, bucket, MASK_CHUNK_ROIS):
            chunk = slice(start, min(start + MASK_CHUNK_ROIS, bucket))
            probs, is_finite = self._segment(state, chunk)
            # All empty RoIs write to one slot more, which is dropped.
            mask_probs = mask_probs.index_copy(0, slots[chunk], probs)
            overflows = overflows.index_add(0, slots[chunk] // self.config.max_detections, (~is_finite).long())
        finite = torch.cat([detections.finite, (overflows[:-1] == 0)[:, None]], dim=1)
        shape = (self.batch, self.config.max_detections, MASK_SIDE, MASK_SIDE)
        return replace(detections, mask_probs=mask_probs[:-1].reshape(shape), finite=finite)

    # Proposals

    def _propose(self, pyramid: Sequence[Tensor], image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return proposals [B, R, 4], which are real [B, R], which images are finite [B] and decided [B]."""
        logits, deltas = self.network.rpn_head(pyramid)
        finite = are_finite(logits, deltas)
        best_of_level = self._best_guided if self._is_guided else self._best_of_level
        levels = [best_of_level(*level) for level in zip(logits, deltas, self._anchors, strict=True)]
        # Levels as lists of one length; the smallest levels have fewer cells than candidates.
        longest = max(scores.shape[1] for _, scores in levels)
        boxes = torch.stack([_pad(boxes, longest, 0.0) for boxes, _ in levels], dim=1)
        scores = torch.stack([_pad(scores, longest, -torch.inf) for _, scores in levels], dim=1)
        boxes = torch.nan_to_num(clip_boxes(boxes, image_sizes[:, None, None]), 0, 0, 0)
        is_real = has_area(boxes) & (scores > -torch.inf)
        boxes, scores, is_real = (x.flatten(1, 2) for x in (boxes, scores, is_real))
        level_of = torch.arange(len(levels), device=boxes.device)[:, None].expand(-1, longest).flatten()
        # Levels are lists of their own, but shifting them apart is part of the published rounding; not in guided RPNs.
        apart = boxes if self._is_guided else static_ops.move_apart(boxes, level_of, is_real)
        lists = (self.batch * len(levels), longest)
        if self.is_exhaustive:
            kept = exhaustive.suppress(apart.reshape(*lists, 4), is_real.reshape(lists), self.config.rpn_nms_iou)
            is_decided = torch.ones_like(kept[:, 0])
        else:
            kept, is_decided = static_ops.suppress(
                apart.reshape(*lists, 4), is_real.reshape(lists), self._rpn_threshold, RPN_NMS_STEPS
            )
        scores = torch.where(kept.reshape(scores.shape), scores, -torch.inf)
        best, order = static_ops.top_k(scores, min(self.config.rpn_proposals, scores.shape[1]))
        is_real = best > -torch.inf
        proposals = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        return (
            torch.where(is_real[..., None], proposals, 0),
            is_real,
            finite,
            is_decided.reshape(self.batch, len(levels)).all(dim=1),
        )

    def _best_of_level(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one level's best candidates: [B, K, 4] boxes, unclipped, and [B, K] scores."""
        scores = logits.permute(0, 2, 3, 1).flatten(1).float().sigmoid()
        best, order = static_ops.top_k(scores, min(self.config.rpn_candidates_per_level, scores.shape[1]))
        chosen = deltas.permute(0, 2, 3, 1).reshape(len(deltas), -1, 4)
        chosen = chosen.gather(1, order[..., None].expand(-1, -1, 4)).float()
        return apply_deltas(anchors[order], chosen), best

    def _best_guided(self, logits: Tensor, deltas: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one level's best guided anchors, as `_best_of_level`; scores are -inf where no anchor is."""
        objectness, location = logits.float().sigmoid().flatten(2).unbind(1)
        scores = torch.where(location >= LOCATION_THRESHOLD, objectness, -torch.inf)
        best, order = static_ops.top_k(scores, min(self.config.rpn_candidates_per_level, scores.shape[1]))
        chosen = deltas.float().flatten(2).transpose(1, 2).gather(1, order[..., None].expand(-1, -1, 6))
        return decode_guided(squares[order], chosen, *self._guided_stds), best

    # Boxes

    def _refine(
        self,
        features: Sequence[Tensor],
        semantic_feat: Tensor | None,
        proposals: Tensor,
        is_real: Tensor,
        image_sizes: Tensor,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Refine and score proposals [B, R, 4].

        Returns:
            The last stage's boxes [B, R, 1 or classes, 4], scores [B, R, classes], and for each stage, and for the
            scores, which images are finite [B].
        """
        stage_logits = []
        finite = []
        boxes = proposals[:, :, None]
        batch, count = is_real.shape
        for stage in range(self.config.num_stages):
            logits, deltas = self._box_forward(stage, features, semantic_feat, self._rois(boxes[:, :, 0]))
            logits, deltas = logits.reshape(batch, count, -1), deltas.reshape(batch, count, -1, 4)
            is_finite = torch.isfinite(logits).all(dim=2) & _can_decode(deltas).flatten(2).all(dim=2)
            finite.append((is_finite | ~is_real).all(dim=1))
            boxes = apply_deltas(boxes[:, :, :1], deltas * self._stds[stage])
            boxes = torch.nan_to_num(clip_boxes(boxes, image_sizes[:, None, None]), 0, 0, 0)
            boxes = torch.where(is_real[..., None, None], boxes, 0)
            stage_logits.append(logits)
        scores = (sum(stage_logits[1:], stage_logits[0]) / len(stage_logits)).softmax(dim=2)
        finite.append((torch.isfinite(scores).all(dim=2) | ~is_real).all(dim=1))
        return boxes, scores[..., :-1], finite

    def _rois(self, boxes: Tensor) -> Tensor:
        """Put the image index before boxes [B, N, 4]: [B * N, 5]."""
        images = self._images.to(boxes.dtype)[:, None, None].expand(-1, boxes.shape[1], 1)
        return torch.cat([images, boxes], dim=2).flatten(0, 1)

    def _box_forward(
        self, stage: int, features: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor
    ) -> tuple[Tensor, Tensor]:
        head = self.network.roi_head.box_heads[stage]
        averaged = MASK_POOL // BOX_POOL
        chunks = []
        for start in range(0, len(rois), BOX_CHUNK_ROIS):
            chunk = rois[start : start + BOX_CHUNK_ROIS]
            pooled = self._pool_levels(features, semantic_feat, chunk, BOX_POOL, semantic_averaged=averaged)
            chunks.append(head(pooled.to(DTYPES[self.precision])))
        return torch.cat([logits for logits, _ in chunks]), torch.cat([deltas for _, deltas in chunks])

    def _select(self, boxes: Tensor, scores: Tensor, is_real: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keep the best boxes after NMS per class, as `postprocess.select_detections`.

        Only the `NMS_CANDIDATES` best candidates are looked at. NMS goes from the best to the worst, so what it does
        with them does not depend on the others; if they give D detections, or if there are no others, that is all.

        Returns:
            Boxes [B, D, 4] in network pixels, scores [B, D], labels [B, D], and which images are exact [B].
        """
        is_candidate = is_real[..., None] & (scores > self.config.score_threshold)
        flat = torch.where(is_candidate, scores, -torch.inf).flatten(1)
        classes = scores.shape[2]
        is_shared = boxes.shape[2] == 1
        # Over all candidates, also those that are not looked at: it is part of the boxes' rounding.
        counted = is_candidate.any(dim=2, keepdim=True) if is_shared else is_candidate
        largest = torch.where(counted[..., None], boxes, 0).flatten(1).amax(dim=1)
        wanted = min(self.config.max_detections, flat.shape[1])
        if self.is_exhaustive:
            order, best = exhaustive.select(boxes, flat, self.config.nms_iou, wanted)
            is_exact = torch.ones_like(is_real[:, 0])
        else:
            best, order = static_ops.top_k(flat, min(max(NMS_CANDIDATES, wanted), flat.shape[1]))
            is_looked_at = best > -torch.inf
            apart = _take(boxes, order, classes) + (order % classes * (largest + 1)[:, None])[..., None]
            kept, is_decided = static_ops.suppress(apart, is_looked_at, self._threshold, NMS_STEPS)
            is_all = is_candidate.flatten(1).sum(dim=1) <= best.shape[1]
            is_exact = is_decided & (is_all | (kept.sum(dim=1) >= wanted))
            place, is_kept = static_ops.compact(kept, wanted)
            order, best = order.gather(1, place), torch.where(is_kept, best.gather(1, place), -torch.inf)
        is_found = best > -torch.inf
        found = torch.where(is_found[..., None], _take(boxes, order, classes), 0)
        labels = torch.where(is_found, order % classes, 0)
        missing = self.config.max_detections
        return _pad(found, missing, 0.0), _pad(best, missing, -torch.inf), _pad(labels, missing, 0), is_exact

    # Masks

    def _compact(
        self, detections: StaticDetections, found: Tensor, features: list[Tensor], semantic_feat: Tensor | None
    ) -> BoxState:
        """Order the RoIs of masks: the detections of all images first."""
        is_found = (detections.scores > -torch.inf).flatten()
        order, is_roi = static_ops.compact(is_found, len(is_found))
        rois = self._rois(found)[order]
        return BoxState(
            detections=detections,
            pyramid=features,
            semantic_feat=semantic_feat,
            rois=torch.where(is_roi[:, None], rois, 0),
            labels=detections.labels.flatten()[order],
            slots=torch.where(is_roi, order, len(is_found)),
            total=detections.counts.sum(),
        )

    def _segment(self, state: BoxState, chunk: slice) -> tuple[Tensor, Tensor]:
        """Predict the masks [K, 28, 28] of some RoIs at their classes, and which are finite [K]."""
        head = self.network.roi_head
        labels = state.labels[chunk]
        pooled = self._pool_levels(state.pyramid, state.semantic_feat, state.rois[chunk], MASK_POOL)
        pooled = pooled.to(DTYPES[self.precision])
        if isinstance(head, SCNetHead):
            averaged = MASK_POOL // BOX_POOL
            small = self._pool_levels(
                state.pyramid, state.semantic_feat, state.rois[chunk], BOX_POOL, semantic_averaged=averaged
            )
            pooled = pooled + head.relay(small.to(DTYPES[self.precision]))
        mask_feats = head.mask_forward(pooled)
        stage_logits = [
            mask_head.predict_class(mask_feat, labels)
            for mask_head, mask_feat in zip(head.mask_heads, mask_feats, strict=True)
        ]
        is_finite = torch.stack([torch.isfinite(logits).flatten(1).all(dim=1) for logits in stage_logits]).all(dim=0)
        stage_probs = [logits.sigmoid() for logits in stage_logits]
        return sum(stage_probs[1:], stage_probs[0]) / len(stage_probs), is_finite


def raise_non_finite(checks: Sequence[str], rows: Sequence[Sequence[bool | int]]) -> None:
    """Raise for the first check that an image fails, in the words of `finite.check_finite`.

    Args:
        checks: `InferencePlan.checks`.
        rows: of each image the flags of `StaticDetections.finite`; before masks there is one less.

    Raises:
        NonFiniteError: an image's activations overflow, or the weights contain NaN.
    """
    for column, name in enumerate(checks):
        if any(column < len(row) and not row[column] for row in rows):
            raise NonFiniteError(f"{name} are not finite numbers (NaN or infinity)")


def mask_buckets(slots: int) -> tuple[int, ...]:
    """Return the numbers of RoIs that masks are predicted for: 64, 128, 256, ... and all slots."""
    sizes = [SMALLEST_BUCKET]
    while sizes[-1] < slots:
        sizes.append(sizes[-1] * 2)
    return (*sizes[:-1], slots)


def are_finite(logits: Sequence[Tensor], deltas: Sequence[Tensor]) -> Tensor:
    """Return which images' predictions `finite.check_predictions` accepts: B images' maps -> [B] bool."""
    is_finite = [torch.isfinite(level).flatten(1).all(dim=1) for level in logits]
    can_decode = [_can_decode(level).flatten(1).all(dim=1) for level in deltas]
    return torch.stack([*is_finite, *can_decode]).all(dim=0)


def _can_decode(deltas: Tensor) -> Tensor:
    return torch.isfinite(deltas.float() * LARGEST_SIDE_PX)


def _take(boxes: Tensor, order: Tensor, classes: int) -> Tensor:
    """Take candidates' boxes: [B, R, 1 or classes, 4] and [B, N], each row * classes + class -> [B, N, 4]."""
    place = order // classes if boxes.shape[2] == 1 else order
    return boxes.flatten(1, 2).gather(1, place[..., None].expand(-1, -1, 4))


def _pad(values: Tensor, length: int, value: float) -> Tensor:
    """Lengthen [B, N, ...] to [B, length, ...] with a value."""
    missing = length - values.shape[1]
    if missing == 0:
        return values
    return torch.cat([values, values.new_full((len(values), missing, *values.shape[2:]), value)], dim=1)
