"""The losses as pure functions of predictions and targets, each already averaged, none yet weighted.

All are computed in float32 whatever the predictions' type, so that mixed precision reaches no loss. A
batch without positives gives an exact zero that still carries (zero) gradients to the head: under
data-parallel training every rank must touch the same parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to every divisor that counts boxes (MMDetection 3.3, models/losses/utils.py: float32's machine
# epsilon).
_EPSILON = torch.finfo(torch.float32).eps
IGNORED_PIXEL = 255


def smooth_l1(pred: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Squared below `beta`, linear above (Fast R-CNN, arXiv:1504.08083, eq. 3); `beta` 0 is plain L1.

    Args:
        pred, target: of one shape.
        beta: where the two parts meet, in the unit of the difference.

    Returns:
        the same shape, float32, not reduced.
    """
    distance = (pred.float() - target).abs()
    if beta == 0:
        return distance
    return torch.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


def objectness_loss(logits: Tensor, is_object: Tensor, *, average_factor: float) -> Tensor:
    """Binary cross-entropy of the proposal network over its sampled anchors.

    Args:
        logits: [K].
        is_object: [K] bool.
        average_factor: the sampled anchors of all images of the batch.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), is_object.float(), reduction="sum")
    return loss / (average_factor + _EPSILON)


def delta_loss(pred: Tensor, target: Tensor, *, beta: float, average_factor: float) -> Tensor:
    """Box regression, summed over positives and divided by all sampled boxes, as MMDetection averages.

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
    """Share of RoIs whose strongest logit is their label, background included, in percent; 0 for no RoI."""
    if len(labels) == 0:
        return logits.new_zeros(())
    return (logits.detach().argmax(dim=1) == labels).float().mean() * 100.0


def deltas_of_labels(deltas: Tensor, labels: Tensor) -> Tensor:
    """Pick each row's own class among class-specific deltas; class-agnostic ones pass through.

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
        own_logits: [M, S, S], each RoI's logits at its own class; the other classes' channels are not judged.
        targets: [M, S, S] 0 or 1, any dtype.
    """
    if len(own_logits) == 0:
        return own_logits.float().sum() * 0.0
    return F.binary_cross_entropy_with_logits(own_logits.float(), targets.float())


def semantic_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the semantic branch: summed over labelled cells, divided by *all* cells.

    Dividing by all cells, ignored ones included, is what the published models were trained with; a batch
    that is half ignored therefore weighs half.

    Args:
        logits: [B, K, h, w].
        targets: [B, h, w] integers in [0, K), or `IGNORED_PIXEL`.
    """
    loss = F.cross_entropy(logits.float(), targets.long(), ignore_index=IGNORED_PIXEL, reduction="sum")
    return loss / targets.numel()
