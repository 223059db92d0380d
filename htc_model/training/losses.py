"""Loss functions of predictions and targets: averaged, not yet weighted.

All compute in float32 whatever the predictions' dtype, so that mixed precision does not change them. A batch without
positives gives an exact zero with zero gradients: in data-parallel training every process must reach the same
parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from htc_model.training.semantic_targets import IGNORED_PIXEL

# Added to every divisor that counts boxes (MMDetection 3.3, models/losses/utils.py: float32's machine epsilon).
_EPSILON = torch.finfo(torch.float32).eps


def smooth_l1(pred: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Smooth L1: squared below `beta`, linear above (Fast R-CNN, arXiv:1504.08083, eq. 3); `beta` 0 is plain L1.

    Args:
        pred, target: of the same shape.
        beta: where the two parts meet, in the unit of the difference.

    Returns:
        the same shape, float32, not reduced.
    """
    distance = (pred.float() - target).abs()
    if beta == 0:
        return distance
    return torch.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


def objectness_loss(logits: Tensor, is_object: Tensor, *, average_factor: float) -> Tensor:
    """Binary cross-entropy of the proposal network's objectness over its sampled anchors.

    Args:
        logits: [K].
        is_object: [K] bool.
        average_factor: the sampled anchors of all images of the batch.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), is_object.float(), reduction="sum")
    return loss / (average_factor + _EPSILON)


def delta_loss(pred: Tensor, target: Tensor, *, beta: float, average_factor: float) -> Tensor:
    """Box regression loss, summed over positives and divided by all sampled boxes, as in MMDetection.

    Args:
        pred, target: [P, 4], positives only; P = 0 gives a differentiable zero.
        beta: of `smooth_l1`.
        average_factor: positives and negatives of the whole batch.
    """
    return smooth_l1(pred, target, beta=beta).sum() / (average_factor + _EPSILON)


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over classes and background, mean over the sampled RoIs.

    Args:
        logits: [N, C + 1].
        labels: [N] int64; C is background.
    """
    return F.cross_entropy(logits.float(), labels, reduction="sum") / (max(len(labels), 1) + _EPSILON)


def accuracy_percent(logits: Tensor, labels: Tensor) -> Tensor:
    """Percentage of RoIs whose largest logit is their label's, background included; 0 without RoIs."""
    if len(labels) == 0:
        return logits.new_zeros(())
    return (logits.detach().argmax(dim=1) == labels).float().mean() * 100.0


def deltas_of_labels(deltas: Tensor, labels: Tensor) -> Tensor:
    """Select each row's own class from class-specific deltas; class-agnostic deltas are returned as they are.

    Args:
        deltas: [P, 4] or [P, 4 * C], class-major.
        labels: [P] int64 in [0, C).

    Returns:
        [P, 4].
    """
    if deltas.shape[1] == 4:
        return deltas
    rows = torch.arange(len(labels), device=deltas.device)
    return deltas.view(len(labels), -1, 4)[rows, labels]


def mask_loss(own_logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of each RoI's own class channel (Mask R-CNN, arXiv:1703.06870, sec. 3).

    Args:
        own_logits: [M, S, S], each RoI's logits at its own class; the other classes have no loss.
        targets: [M, S, S] 0 or 1, any dtype.
    """
    if len(own_logits) == 0:
        return own_logits.float().sum() * 0.0
    return F.binary_cross_entropy_with_logits(own_logits.float(), targets.float())


def semantic_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the semantic branch: summed over labelled cells, divided by *all* cells.

    The published models were trained with the division by all cells, ignored ones included: a batch with half of its
    cells ignored weighs half.

    Args:
        logits: [B, K, h, w].
        targets: [B, h, w] integers in [0, K), or `IGNORED_PIXEL`.
    """
    loss = F.cross_entropy(logits.float(), targets.long(), ignore_index=IGNORED_PIXEL, reduction="sum")
    return loss / targets.numel()
