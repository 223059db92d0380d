"""Operations on boxes in xyxy format: pixels, x to the right, y down, continuous coordinates."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

# A box may grow or shrink by a factor of at most 1000/16 in one step, which keeps exp() finite (Detectron).
MAX_LOG_RATIO = math.log(1000 / 16)

# Up to this many candidates go through one NMS call over all groups, whose cost grows with the square of their number;
# more go group by group. The kept boxes are the same. The limit is memory on a GPU (n * n / 8 bytes) and time on a CPU.
SINGLE_CALL_CANDIDATES = {"cpu": 1_000, "cuda": 10_000}
_OTHER_DEVICES_CANDIDATES = 10_000


def decode_deltas(boxes_xyxy: Tensor, deltas: Tensor, stds: Sequence[float]) -> Tensor:
    """Move and scale boxes by predicted deltas (R-CNN's parameterisation, arXiv:1311.2524, appendix C).

    Args:
        boxes_xyxy: [..., 4] float32, the boxes that the deltas were predicted for.
        deltas: [..., 4] (dx, dy, dw, dh), normalised; means are zero.
        stds: the four normalising standard deviations.

    Returns:
        [..., 4] float32, not clipped.
    """
    return apply_deltas(boxes_xyxy, deltas * deltas.new_tensor(stds))


def apply_deltas(boxes_xyxy: Tensor, deltas: Tensor) -> Tensor:
    """Move and scale boxes [..., 4] by deltas [..., 4] that are not normalised: [..., 4], not clipped."""
    centre = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) * 0.5
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    centre = centre + size * deltas[..., :2]
    half = size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def clip_boxes(boxes_xyxy: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes to their images.

    Args:
        boxes_xyxy: [..., 4].
        sizes: (height, width) in pixels, [2] or broadcastable to [..., 2].

    Returns:
        [..., 4] with x in [0, width] and y in [0, height].
    """
    limit = sizes.flip(-1).to(boxes_xyxy.dtype)
    return torch.minimum(boxes_xyxy.clamp(min=0), torch.cat([limit, limit], dim=-1))


def has_area(boxes_xyxy: Tensor) -> Tensor:
    """Return which boxes [..., 4] have positive width and height: [...] bool."""
    return (boxes_xyxy[..., 2:] > boxes_xyxy[..., :2]).all(dim=-1)


def boxes_to_rois(boxes_per_image: Sequence[Tensor]) -> Tensor:
    """Concatenate B tensors [N_b, 4] to rois [K, 5]: image index, then xyxy."""
    return torch.cat(
        [
            torch.cat([boxes.new_full((len(boxes), 1), index), boxes], dim=1)
            for index, boxes in enumerate(boxes_per_image)
        ]
    )


def grouped_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou: float,
    limit: int,
    *,
    single_call_candidates: int | None = None,
) -> Tensor:
    """Suppress boxes that overlap a better box of the same group by more than `iou`.

    Groups are shifted apart by (largest coordinate + 1), in float32. That rounds coordinates of late groups by up to
    some thousandths of a pixel, so it is done even where NMS runs group by group: the result is then that of the
    published pipeline (mmcv's batched_nms) for any number of boxes.

    Args:
        boxes_xyxy: [N, 4] float32, coordinates >= 0.
        scores: [N] float32.
        groups: [N] int64 >= 0: a class or a pyramid level.
        iou: in [0, 1].
        limit: the number of boxes to keep at most, the best ones.
        single_call_candidates: more candidates than this are processed group by group; by default
            `SINGLE_CALL_CANDIDATES` of the device.

    Returns:
        [M <= limit] int64 indices, best score first.
    """
    if boxes_xyxy.numel() == 0:
        return groups.new_zeros(0)
    apart = boxes_xyxy + (groups.to(boxes_xyxy.dtype) * (boxes_xyxy.max() + 1))[:, None]
    if single_call_candidates is None:
        single_call_candidates = SINGLE_CALL_CANDIDATES.get(apart.device.type, _OTHER_DEVICES_CANDIDATES)
    if len(apart) <= single_call_candidates:
        best: Tensor = nms(apart, scores, iou)[:limit]
        return best
    kept = torch.cat([members[nms(apart[members], scores[members], iou)] for members in _members(groups)]).sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)[:limit]]


def soft_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    groups: Tensor,
    limit: int,
    *,
    linear_iou: float | None,
    sigma: float,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    """Take the best box again and again, and lower the scores of those of its group that it overlaps (Soft-NMS).

    arXiv:1704.04503, sec. 3. Linear: a score is multiplied by 1 - IoU where the IoU is at least `linear_iou`; gaussian:
    by exp(-IoU^2 / sigma) for every IoU.

    Args:
        boxes_xyxy: [N, 4] float32.
        scores: [N] float32.
        groups: [N] int64; boxes of different groups do not change one another's score.
        limit: the number of boxes to take at most.
        linear_iou: in [0, 1]; None for gaussian.
        sigma: of gaussian.
        min_score: boxes whose score falls below it are dropped.

    Returns:
        [M <= limit] int64 indices, best first, and their lowered scores [M].
    """
    left = scores.clone()
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(dim=1)
    taken, taken_scores = [], []
    for _ in range(min(limit, len(left))):
        best = left.argmax()
        taken.append(best)
        taken_scores.append(left[best])
        low = torch.maximum(boxes_xyxy[best, :2], boxes_xyxy[:, :2])
        high = torch.minimum(boxes_xyxy[best, 2:], boxes_xyxy[:, 2:])
        both = (high - low).clamp(min=0).prod(dim=1)
        # Two boxes without area have no overlap.
        iou = (both / (areas[best] + areas - both)).nan_to_num(0)
        factor = (-(iou**2) / sigma).exp() if linear_iou is None else torch.where(iou >= linear_iou, 1 - iou, 1.0)
        left = torch.where(groups == groups[best], left * factor, left)
        left[best] = -torch.inf
    if not taken:
        return groups.new_zeros(0), scores.new_zeros(0)
    indices, lowered = torch.stack(taken), torch.stack(taken_scores)
    is_kept = lowered >= min_score
    return indices[is_kept], lowered[is_kept]


def _members(groups: Tensor) -> list[Tensor]:
    """Split the indices of `groups` [N] by value, each part ascending."""
    order = groups.argsort(stable=True)
    counts = groups.bincount()
    return list(order.split_with_sizes(counts[counts > 0].tolist()))
