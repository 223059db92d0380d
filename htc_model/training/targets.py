"""Training targets of anchors, RoIs and masks, from the annotated objects."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import roi_align

from htc_model.network.roi_heads import MASK_SIDE
from htc_model.training.matcher import UNUSED, AssignRule, assign_boxes
from htc_model.training.sampler import Sample, SampleRule, sample_assigned


@dataclass(frozen=True)
class Truth:
    """One image's ground truth at network scale, without crowd regions.

    boxes_xyxy: [G, 4] float32, pixels of the resized image, clipped to it.
    labels: [G] int64 in [0, C).
    masks: [G, H, W] uint8, 0 or 1, the resized image's size; None for a box-only model.
    semantic_map: [H, W] uint8 with `IGNORED_PIXEL`, or None where the model has no semantic branch.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    masks: Tensor | None
    semantic_map: Tensor | None

    def to(self, device: torch.device) -> "Truth":
        """Copy to a device, asynchronously where the memory is pinned."""
        return Truth(
            self.boxes_xyxy.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            None if self.masks is None else self.masks.to(device, non_blocking=True),
            None if self.semantic_map is None else self.semantic_map.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class AnchorTargets:
    """One image's sampled anchors.

    sample: indices into all anchors of all levels.
    gt_indices: [P] int64, the object of each positive.
    deltas: [P, 4] float32, the positives' regression targets.
    """

    sample: Sample
    gt_indices: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class RoiSample:
    """One image's sampled RoIs, positives before negatives, each in ascending order of `sample`'s indices.

    sample: indices into [the image's objects; the given boxes], since objects are added as proposals.
    rois_xyxy: [N, 4] float32.
    gt_indices: [P] int64, the object of each positive.
    labels: [N] int64; the class count for background.
    is_gt: [N] bool, the row is an object's own box.
    """

    sample: Sample
    rois_xyxy: Tensor
    gt_indices: Tensor
    labels: Tensor
    is_gt: Tensor

    @property
    def positive_count(self) -> int:
        """P, the number of positives, which are the first rows."""
        return len(self.gt_indices)


def encode_deltas(boxes_xyxy: Tensor, gt_boxes_xyxy: Tensor, stds: Sequence[float]) -> Tensor:
    """Encode objects relative to boxes: shift over size, log of the ratio (R-CNN, arXiv:1311.2524, app. C).

    Args:
        boxes_xyxy: [P, 4] float32, of positive size.
        gt_boxes_xyxy: [P, 4] float32, the object of each box.
        stds: four divisors for (dx, dy, dw, dh).

    Returns:
        [P, 4] float32.
    """
    x1, y1, x2, y2 = boxes_xyxy.unbind(dim=1)
    gt_x1, gt_y1, gt_x2, gt_y2 = gt_boxes_xyxy.unbind(dim=1)
    width, height = x2 - x1, y2 - y1
    dx = ((gt_x1 + gt_x2) * 0.5 - (x1 + x2) * 0.5) / width
    dy = ((gt_y1 + gt_y2) * 0.5 - (y1 + y2) * 0.5) / height
    dw = torch.log((gt_x2 - gt_x1) / width)
    dh = torch.log((gt_y2 - gt_y1) / height)
    return torch.stack([dx, dy, dw, dh], dim=1) / boxes_xyxy.new_tensor(tuple(stds))


def usable_anchors(
    anchors_xyxy: Tensor,
    level_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    image_size: tuple[int, int],
    padded_size: tuple[int, int],
    allowed_border: int | None,
) -> Tensor:
    """Find the anchors that take part in training.

    Args:
        anchors_xyxy: [A, 4] float32, flat in the order level, row, column, anchor of the cell.
        level_sizes: (rows, columns) of each level's map.
        strides: pixels per cell of each level.
        image_size: (height, width) before padding.
        padded_size: the image's own padded (height, width), which a batch may exceed.
        allowed_border: by how many pixels an anchor may extend beyond the image; None: by any number, as long as its
            cell is inside the padded image.

    Returns:
        [A] bool.
    """
    cells = sum(rows * columns for rows, columns in level_sizes)
    anchors_per_cell = anchors_xyxy.shape[0] // cells
    masks = []
    for (rows, columns), stride in zip(level_sizes, strides, strict=True):
        row_is_valid = torch.arange(rows, device=anchors_xyxy.device) < -(-padded_size[0] // stride)
        column_is_valid = torch.arange(columns, device=anchors_xyxy.device) < -(-padded_size[1] // stride)
        masks.append((row_is_valid[:, None] & column_is_valid[None, :]).flatten())
    is_usable = torch.cat(masks).repeat_interleave(anchors_per_cell)
    if allowed_border is None:
        return is_usable
    x1, y1, x2, y2 = anchors_xyxy.unbind(dim=1)
    height, width = image_size
    is_inside = (x1 >= -allowed_border) & (y1 >= -allowed_border)
    return is_usable & is_inside & (x2 < width + allowed_border) & (y2 < height + allowed_border)


def assign_anchors(anchors_xyxy: Tensor, is_usable: Tensor, gt_boxes_xyxy: Tensor, rule: AssignRule) -> Tensor:
    """Assign the usable anchors; the others are `UNUSED` and cannot be an object's best match.

    Returns:
        [A] int64: the object's index, `BACKGROUND` or `UNUSED`.
    """
    assigned = torch.full((len(anchors_xyxy),), UNUSED, dtype=torch.int64, device=anchors_xyxy.device)
    assigned[is_usable] = assign_boxes(gt_boxes_xyxy, anchors_xyxy[is_usable], rule)
    return assigned


def build_anchor_targets(
    anchors_xyxy: Tensor,
    assigned: Tensor,
    gt_boxes_xyxy: Tensor,
    rule: SampleRule,
    generator: torch.Generator | None = None,
) -> AnchorTargets:
    """Sample assigned anchors and encode the positives' objects, with standard deviations of 1."""
    sample = sample_assigned(assigned, rule, generator)
    gt_indices = assigned[sample.positives]
    deltas = encode_deltas(anchors_xyxy[sample.positives], gt_boxes_xyxy[gt_indices], (1.0, 1.0, 1.0, 1.0))
    return AnchorTargets(sample, gt_indices, deltas)


def sample_rois(
    boxes_xyxy: Tensor,
    truth: Truth,
    assign_rule: AssignRule,
    sample_rule: SampleRule,
    *,
    class_count: int,
    generator: torch.Generator | None = None,
) -> RoiSample:
    """Assign and sample one image's boxes, after adding the objects themselves in front as perfect proposals.

    Args:
        boxes_xyxy: [R, 4] float32, without gradient.
        truth: the image's objects.
        assign_rule, sample_rule: of the stage.
        class_count: C, also the label of background.
        generator: see `sample_assigned`.
    """
    gt_count = len(truth.boxes_xyxy)
    device = boxes_xyxy.device
    candidates = torch.cat([truth.boxes_xyxy, boxes_xyxy])
    assigned = torch.cat(
        [torch.arange(gt_count, device=device), assign_boxes(truth.boxes_xyxy, boxes_xyxy, assign_rule)]
    )
    sample = sample_assigned(assigned, sample_rule, generator)
    chosen = torch.cat([sample.positives, sample.negatives])
    gt_indices = assigned[sample.positives]
    background = torch.full((len(sample.negatives),), class_count, dtype=torch.int64, device=device)
    return RoiSample(
        sample=sample,
        rois_xyxy=candidates[chosen],
        gt_indices=gt_indices,
        labels=torch.cat([truth.labels[gt_indices], background]),
        is_gt=chosen < gt_count,
    )


def build_mask_targets(
    masks: Tensor,
    gt_indices: Tensor,
    rois_xyxy: Tensor,
    *,
    canvas_size: tuple[int, int],
    cells: int = MASK_SIDE,
) -> Tensor:
    """Crop each RoI from its object's mask, averaged over cells and thresholded at one half.

    Args:
        masks: [G, H, W] uint8, 0 or 1.
        gt_indices: [M] int64 into `masks`.
        rois_xyxy: [M, 4] float32.
        canvas_size: (height, width), at least the masks' own: RoIs are clipped to it. The published HTC
            models clip to the image, Cascade and Mask R-CNN to the padded image.
        cells: side length of the target.

    Returns:
        [M, cells, cells] bool.
    """
    if len(gt_indices) == 0:
        return torch.zeros((0, cells, cells), dtype=torch.bool, device=masks.device)
    canvas = masks.new_zeros((len(masks), 1, *canvas_size), dtype=torch.float32)
    canvas[:, 0, : masks.shape[1], : masks.shape[2]] = masks
    clipped = torch.empty_like(rois_xyxy)
    clipped[:, 0::2] = rois_xyxy[:, 0::2].clamp(0, canvas_size[1])
    clipped[:, 1::2] = rois_xyxy[:, 1::2].clamp(0, canvas_size[0])
    # RoIAlign gets the object's index in place of the image's, so that no mask is copied per RoI.
    rois = torch.cat([gt_indices.to(clipped.dtype)[:, None], clipped], dim=1)
    cut: Tensor = roi_align(canvas, rois, (cells, cells), spatial_scale=1.0, sampling_ratio=-1, aligned=True)
    return cut[:, 0] >= 0.5
