"""What the members of an ensemble found, brought together: proposals merged, votes averaged, boxes fused."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from htc_model.config import ModelConfigError
from htc_model.inference.views import Proposals
from htc_model.network.box_ops import has_area
from htc_model.network.postprocess import BoxDetections

Fusion = Literal["nms", "soft_nms", "wbf"]
# The default of ensemble-boxes, and the best value of its paper (arXiv:1910.13302, sec. 4).
WBF_IOU = 0.55


def merge_proposals(members: Sequence[Proposals], *, iou: float, limit: int) -> Proposals:
    """Merge the proposals of several networks: one falls to a better one of another network that it overlaps.

    Proposals of one network do not suppress each other: its own NMS, level by level, has done that. So a network merged
    with itself keeps its proposals, in their order.

    Args:
        members: per network boxes_xyxy [N, 4] and scores [N], best first, in the same pixels.
        iou: in [0, 1]. limit: the number of proposals to keep at most.
    """
    if len(members) == 1:
        return members[0]
    boxes = torch.cat([each for each, _ in members])
    scores = torch.cat([each for _, each in members])
    owners = torch.cat([scores.new_full((len(each),), index) for index, (_, each) in enumerate(members)])
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, owners = boxes[order], scores[order], owners[order]
    overlaps = (box_iou(boxes, boxes) > iou) & (owners[:, None] != owners[None])
    kept = torch.from_numpy(_greedy(overlaps.cpu().numpy(), limit)).to(boxes.device)
    return boxes[kept], scores[kept]


def _greedy(overlaps: NDArray[np.bool_], limit: int) -> NDArray[np.int64]:
    """Return the places that are kept, at most `limit`; overlaps: [N, N], best first."""
    kept: list[int] = []
    is_left = np.ones(len(overlaps), bool)
    for place in range(len(overlaps)):
        if is_left[place]:
            kept.append(place)
            if len(kept) == limit:
                break
            is_left &= ~overlaps[place]
    return np.array(kept, np.int64)


def average_votes(values: Sequence[Tensor], knows: Sequence[Tensor], votes: Sequence[float]) -> Tensor:
    """Average what several networks say, each where it knows: equal values stay as they are, bit for bit.

    Args:
        values: per network a tensor of one shape; where it does not know, finite and not used.
        knows: per network bool, broadcastable to the values; everywhere one network at least knows.
        votes: per network, more than 0.
    """
    total = torch.stack([known.double() * vote for known, vote in zip(knows, votes, strict=True)]).sum(dim=0)
    mean, is_begun = values[0], knows[0]
    for value, known in zip(values[1:], knows[1:], strict=True):
        mean = torch.where(is_begun, mean, value)
        is_begun = is_begun | known
    # Differences to the first network that knows: those of equal values are zero.
    first, moved = mean, torch.zeros_like(mean)
    for value, known, vote in zip(values, knows, votes, strict=True):
        moved = moved + torch.where(known, (vote / total).to(mean.dtype), 0) * (value - first)
    return first + moved


def check_wbf() -> None:
    """Check that the library of weighted boxes fusion is installed.

    Raises:
        ModelConfigError: it is not.
    """
    if find_spec("ensemble_boxes") is None:
        raise ModelConfigError(
            "ensemble.fusion is wbf, which needs the package ensemble-boxes: pip install 'htc-batch[ensembles]', or "
            "leave fusion out."
        )


def fuse_boxes(
    members: Sequence[BoxDetections],
    knows: Sequence[Sequence[bool]],
    votes: Sequence[float],
    size: tuple[int, int],
    *,
    score_threshold: float,
    limit: int,
) -> BoxDetections:
    """Fuse the detections of several networks by weighted boxes fusion (arXiv:1910.13302).

    A fused box is the mean of the boxes that overlap, weighted by score and vote; a box that not all networks found
    that know its class loses score.

    Args:
        members: per network boxes_xyxy [N, 4], scores [N] and labels [N] in the classes of all.
        knows: per network and class, whether it knows the class. votes: per network.
        size: (height, width) that the boxes lie in.
        score_threshold: detections score above it. limit: how many to keep at most.
    """
    # Imports numba.
    from ensemble_boxes import weighted_boxes_fusion

    device = members[0][0].device
    known_by = list(zip(*knows, strict=True))
    height, width = size
    side = np.array([width, height, width, height], np.float64)
    found: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]] = []
    for voters in dict.fromkeys(known_by):
        # Classes that other networks do not know must not lose score for that.
        classes = torch.tensor([voter == voters for voter in known_by], device=device)
        own = [_of_classes(each, classes) for each, is_voter in zip(members, voters, strict=True) if is_voter]
        weights = [vote for vote, is_voter in zip(votes, voters, strict=True) if is_voter]
        boxes, scores, labels = weighted_boxes_fusion(
            [(boxes.double().cpu().numpy() / side).clip(0, 1) for boxes, _, _ in own],
            [scores.double().cpu().numpy() for _, scores, _ in own],
            [labels.cpu().numpy() for _, _, labels in own],
            weights=weights,
            iou_thr=WBF_IOU,
        )
        found.append((boxes * side, scores, labels.astype(np.int64)))
    scores = torch.from_numpy(np.concatenate([each for _, each, _ in found])).float().to(device)
    boxes = torch.from_numpy(np.concatenate([each for each, _, _ in found])).float().to(device)
    labels = torch.from_numpy(np.concatenate([each for _, _, each in found])).to(device)
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > score_threshold][:limit]
    return boxes[order], scores[order].clamp(0, 1), labels[order]


def _of_classes(found: BoxDetections, classes: Tensor) -> BoxDetections:
    boxes, scores, labels = found
    is_kept = has_area(boxes) & classes[labels]
    return boxes[is_kept], scores[is_kept], labels[is_kept]
