"""Explains detections that only one of two computations has, by the network's discrete decisions that differ.

Between its smooth layers a detector decides: is a score above the threshold, do two boxes overlap by more than NMS
allows, is a detection among the best hundred, from which pyramid level and with how many samples per bin is an RoI
pooled. Rounding differs between processors, by some 1e-4 of a standard deviation, and may change a decision that is
that close; then a detection appears, disappears, or moves by a visible step. A bug changes decisions that are not
close. `explain_both` distinguishes the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from htc_model.config import ModelConfig
from htc_model.network.box_ops import boxes_to_rois
from htc_model.network.detector import HTC
from htc_model.network.resnet import STRIDES
from htc_model.network.roi_align import roi_levels
from htc_model.network.roi_heads import BOX_POOL, MASK_POOL
from htc_model.network.semantic_head import SEMANTIC_STRIDE
from htc_model.structures import ImageBatch

Reason = Literal["score threshold", "NMS overlap", "NMS order", "follows another", "cut", "RoI grid", "proposal"]

# Largest distance of two sides' boxes of the same detection: 0.023 px was measured on six code paths of oneDNN.
BOX_MARGIN_PX = 0.1
# Distance of an RoI from the size where its pyramid level or sample count changes.
GRID_MARGIN_PX = 0.1
# The change of the IoU of two boxes of 50 px that are moved by BOX_MARGIN_PX / 2.
IOU_MARGIN = 2e-3
# Margins of a mask's probability, and of the position where it is sampled.
PROBABILITY_MARGIN = 0.01
PIXEL_MARGIN_PX = 0.05
# Two sides' boxes with at least this IoU are the same detection.
SAME_IOU = 0.95
# Boxes of the same object that come from one RoI by different pooling.
NEAR_IOU = 0.5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """Scored boxes of one side: boxes_xyxy [N, 4] in network pixels, scores [N], labels [N]."""

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Candidates:
    """The input of a side's detection filter.

    found: one per proposal and class with a score above the threshold, or slightly below it.
    is_at_border: whether one of its RoIs is close to a change of the pooling grid. is_shared: whether the other side
    has its proposal too.
    """

    found: Boxes
    is_at_border: NDArray[np.bool_]
    is_shared: NDArray[np.bool_]


@dataclass(frozen=True)
class FilterSettings:
    """The thresholds of the detection filter, and the distance at which two scores are called close."""

    score_threshold: float
    nms_iou: float
    max_detections: int
    score_margin: float

    @classmethod
    def of(cls, config: ModelConfig, score_margin: float) -> "FilterSettings":
        """Return the thresholds of a network."""
        return cls(config.score_threshold, config.nms_iou, config.max_detections, score_margin)


def pairwise_iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    """Compute the IoU of boxes [N, 4] and [M, 4]: [N, M]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = (high - low).clip(0).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    iou: Floats = (overlap / np.maximum(areas[0][:, None] + areas[1][None] - overlap, 1e-9)).astype(np.float64)
    return iou


def are_same(a: Boxes, b: Boxes, score_margin: float) -> NDArray[np.bool_]:
    """Return which boxes of two sides are the same detection: [N, M]."""
    same: NDArray[np.bool_] = pairwise_iou(a.boxes, b.boxes) > SAME_IOU
    same &= a.labels[:, None] == b.labels[None]
    same &= np.abs(a.scores[:, None] - b.scores[None]) < score_margin
    same &= np.abs(a.boxes[:, None] - b.boxes[None]).max(axis=2, initial=0) <= BOX_MARGIN_PX
    return same


@dataclass(frozen=True)
class Side:
    """One of the two compared computations: its detections and their candidates."""

    detections: Boxes
    candidates: Candidates


@torch.inference_mode()
def collect_candidates(
    model: HTC, pyramid: Sequence[Tensor], batch: ImageBatch, proposals: tuple[Tensor, Tensor]
) -> tuple[Candidates, Candidates]:
    """Run the cascade on each side's proposals [R, 4], and collect the input of its detection filter.

    Args:
        pyramid, batch: of one image; both sides' proposals are pooled from these features.
    """
    semantic_feat = model.roi_head.semantic_forward(pyramid)
    sizes = torch.tensor(batch.image_sizes)
    mine, others = proposals
    return (
        _candidates_of(model, pyramid, semantic_feat, (mine, others, sizes)),
        _candidates_of(model, pyramid, semantic_feat, (others, mine, sizes)),
    )


def _candidates_of(
    model: HTC, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, boxes_and_sizes: tuple[Tensor, Tensor, Tensor]
) -> Candidates:
    proposals, others, sizes = boxes_and_sizes
    head, config = model.roi_head, model.config
    rois = boxes_to_rois([proposals])
    is_at_border = torch.zeros(len(rois), dtype=torch.bool)
    for stage in range(config.num_stages):
        is_at_border |= _is_at_border(rois, BOX_POOL, has_semantic=semantic_feat is not None)
        if stage + 1 < config.num_stages:
            _, deltas = head.box_forward(stage, pyramid, semantic_feat, rois)
            rois = torch.cat([rois[:, :1], head.refine(stage, rois, deltas, sizes)[:, 0]], dim=1)
    boxes, scores = head.detect_boxes(pyramid, semantic_feat, boxes_to_rois([proposals]), sizes)
    is_shared = (torch.cdist(proposals, others, p=float("inf")) <= BOX_MARGIN_PX).any(dim=1)
    rows, labels = (scores > 0.9 * config.score_threshold).nonzero(as_tuple=True)
    found = Boxes(
        boxes[rows, 0 if boxes.shape[1] == 1 else labels].double().numpy(),
        scores[rows, labels].double().numpy(),
        labels.numpy(),
    )
    return Candidates(found, is_at_border[rows].numpy(), is_shared[rows].numpy())


def explain_both(
    sides: tuple[Side, Side], pairs: Sequence[tuple[int, int]], filter_settings: FilterSettings
) -> tuple[dict[int, Reason], dict[int, Reason]]:
    """Find the close decision behind each detection that only one side has; detections without one are left out.

    Args:
        pairs: indices on the first and on the second side that are the same detection.

    Returns:
        reasons by index on the first side, and on the second.
    """
    first, second = sides
    alone = [
        sorted(set(range(len(side.detections))) - {pair[number] for pair in pairs}) for number, side in enumerate(sides)
    ]
    reasons: tuple[dict[int, Reason], dict[int, Reason]] = ({}, {})
    known = -1
    while known < len(reasons[0]) + len(reasons[1]):
        # Repeated, since a detection that is explained now may have suppressed one that is not yet explained.
        known = len(reasons[0]) + len(reasons[1])
        reasons = (
            _explain(first, alone[0], second, set(reasons[1]), filter_settings),
            _explain(second, alone[1], first, set(reasons[0]), filter_settings),
        )
    return reasons


def _explain(
    mine: Side, alone: Sequence[int], other: Side, other_explained: set[int], filter_settings: FilterSettings
) -> dict[int, Reason]:
    reasons = {place: _explain_one(mine, place, other, other_explained, filter_settings) for place in alone}
    return {place: reason for place, reason in reasons.items() if reason is not None}


def _explain_one(
    mine: Side, place: int, other: Side, other_explained: set[int], filter_settings: FilterSettings
) -> Reason | None:
    have = mine.detections
    one = Boxes(have.boxes[[place]], have.scores[[place]], have.labels[[place]])
    if abs(one.scores[0] - filter_settings.score_threshold) < filter_settings.score_margin:
        return "score threshold"
    theirs, own = other.candidates, mine.candidates
    for twin in are_same(one, theirs.found, filter_settings.score_margin)[0].nonzero()[0]:
        reason = _why_dropped(theirs.found, int(twin), other.detections, other_explained, filter_settings)
        if reason is not None:
            return reason
    if _is_from_border(one, theirs) or _is_from_border(one, own):
        return "RoI grid"
    twins = are_same(one, own.found, filter_settings.score_margin)[0]
    if twins.any() and not own.is_shared[twins].any():
        return "proposal"
    return None


def _why_dropped(
    found: Boxes, twin: int, kept: Boxes, kept_alone: set[int], filter_settings: FilterSettings
) -> Reason | None:
    """Return why a side's detection filter dropped one of its candidates; None if it was not a close decision."""
    overlap = pairwise_iou(found.boxes[[twin]], kept.boxes)[0]
    lead = kept.scores - found.scores[twin]
    rivals = (kept.labels == found.labels[twin]) & (overlap > filter_settings.nms_iou - IOU_MARGIN)
    rivals &= lead > -filter_settings.score_margin
    for rival in rivals.nonzero()[0]:
        if abs(overlap[rival] - filter_settings.nms_iou) < IOU_MARGIN:
            return "NMS overlap"
        if abs(lead[rival]) < filter_settings.score_margin:
            return "NMS order"
        if int(rival) in kept_alone:
            return "follows another"
    if not rivals.any() and len(kept) == filter_settings.max_detections and lead.min() > -filter_settings.score_margin:
        # Either close to the last kept one, or pushed out by others that are on that side only.
        is_pushed = len(kept_alone) > 0
        return "cut" if is_pushed or lead.min() < filter_settings.score_margin else None
    return None


def _is_from_border(one: Boxes, side: Candidates) -> bool:
    """Return whether the nearest candidate of the box's class comes from an RoI at a border of the pooling grid."""
    overlap = np.where(side.found.labels == one.labels[0], pairwise_iou(one.boxes, side.found.boxes)[0], 0)
    if not len(overlap) or overlap.max() < NEAR_IOU:
        return False
    return bool(side.is_at_border[overlap.argmax()])


def _is_at_border(rois: Tensor, side: int, *, has_semantic: bool) -> Tensor:
    """Return which RoIs [K, 5] would be pooled otherwise (level or samples) if they differed by GRID_MARGIN_PX."""
    grids = [_grid(_grown(rois, step * GRID_MARGIN_PX), side, has_semantic=has_semantic) for step in (-1, 1)]
    return (grids[0] != grids[1]).any(dim=1)


def _grown(rois: Tensor, by_px: float) -> Tensor:
    grown = rois + rois.new_tensor([0, -by_px, -by_px, by_px, by_px])
    # Smaller boxes must not get a negative size.
    return torch.cat([grown[:, :3], torch.maximum(grown[:, 3:], grown[:, 1:3])], dim=1)


def _grid(rois: Tensor, side: int, *, has_semantic: bool) -> Tensor:
    """Compute each RoI's level, and its samples per bin along x and y: [K, 3], with the semantic map's [K, 5]."""
    levels = roi_levels(rois)
    extent = (rois[:, 3:5] - rois[:, 1:3]).clamp(min=0)
    strides = torch.tensor(STRIDES)[levels][:, None]
    columns = [levels[:, None], (extent / strides / side).ceil().long()]
    if has_semantic:
        columns.append((extent / SEMANTIC_STRIDE / MASK_POOL).ceil().long())
    return torch.cat(columns, dim=1)


def far_pixels(mask_probs: Tensor, box_xyxy: Tensor, is_different: NDArray[np.bool_], *, threshold: float = 0.5) -> int:
    """Count the pixels that differ between two masks although the probability there is not close to the threshold.

    Args:
        mask_probs: [28, 28], of this implementation.
        box_xyxy: [4] in pixels of the image.
        is_different: [H, W].
    """
    ys, xs = (torch.from_numpy(axis).float() + 0.5 for axis in is_different.nonzero())
    steps = PIXEL_MARGIN_PX * torch.tensor(
        [[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [1, -1], [-1, 1], [-1, -1]]
    )
    places = torch.stack([xs, ys], dim=1)[None] + steps[:, None]
    # A box without width would divide by zero; it has no pixels either.
    size = (box_xyxy[2:] - box_xyxy[:2]).clamp(min=1e-6)
    grid = (places - box_xyxy[:2]) / size * 2 - 1
    values = grid_sample(mask_probs[None, None].float(), grid[None], align_corners=False)[0, 0]
    low, high = values.amin(dim=0) - PROBABILITY_MARGIN, values.amax(dim=0) + PROBABILITY_MARGIN
    return int(((low > threshold) | (high < threshold)).sum())
