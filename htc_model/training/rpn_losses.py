"""Losses of the region proposal network on sampled anchors, and the proposals for the cascade's training."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from htc_model.network.fpn import STRIDES
from htc_model.network.rpn import RPNHead, build_anchors
from htc_model.structures import ImageBatch
from htc_model.training.losses import delta_loss, objectness_loss
from htc_model.training.targets import (
    AnchorTargets,
    Truth,
    assign_anchors,
    build_anchor_targets,
    usable_anchors,
)
from htc_model.training.train_config import TrainConfig


@dataclass(frozen=True)
class RpnTrace:
    """The proposal network's losses in one step and what they were computed from.

    loss_class, loss_box: scalars.
    targets: one per image.
    assigned: per image [A] int64 over all anchors of all levels.
    logits: per level [B, 3, H, W]; deltas: per level [B, 12, H, W].
    """

    loss_class: Tensor
    loss_box: Tensor
    targets: list[AnchorTargets]
    assigned: list[Tensor]
    logits: list[Tensor]
    deltas: list[Tensor]


def compute_rpn_losses(
    head: RPNHead,
    pyramid: Sequence[Tensor],
    batch: ImageBatch,
    truths: Sequence[Truth],
    train_config: TrainConfig,
    *,
    pad_multiple: int,
    generator: torch.Generator | None = None,
) -> RpnTrace:
    """Compute the proposal network's two losses on sampled anchors.

    Args:
        head: predicts on every level.
        pyramid: P2..P6.
        batch: for its sizes.
        truths: one per image.
        train_config: thresholds and counts.
        pad_multiple: an image alone would be padded to multiples of this; cells beyond that size have no anchors.
        generator: see `sample_assigned`.
    """
    logits, deltas = head(pyramid)
    level_sizes = [(int(level.shape[-2]), int(level.shape[-1])) for level in logits]
    anchors = torch.cat(
        [build_anchors(*size, stride, batch.pixels.device) for size, stride in zip(level_sizes, STRIDES, strict=True)]
    )
    assigned, targets = [], []
    for truth, image_size in zip(truths, batch.image_sizes, strict=True):
        is_usable = usable_anchors(
            anchors,
            level_sizes,
            STRIDES,
            image_size=image_size,
            padded_size=_round_up(image_size, pad_multiple),
            allowed_border=train_config.anchor_border,
        )
        assigned.append(assign_anchors(anchors, is_usable, truth.boxes_xyxy, train_config.anchor_assign))
        targets.append(
            build_anchor_targets(anchors, assigned[-1], truth.boxes_xyxy, train_config.anchor_sample, generator)
        )
    loss_class, loss_box = _losses(logits, deltas, targets, train_config)
    return RpnTrace(loss_class, loss_box, targets, assigned, logits, deltas)


@torch.no_grad()
def select_training_proposals(
    head: RPNHead, rpn: RpnTrace, batch: ImageBatch, train_config: TrainConfig
) -> list[Tensor]:
    """Filter the predictions into the cascade's training boxes: per image [R, 4], without gradient."""
    # Training keeps more proposals than inference: a copy that shares every weight and differs in its two counts.
    training_head = copy.copy(head)
    training_head.candidates_per_level = train_config.candidates_per_level
    training_head.proposals = train_config.proposals
    selected = training_head.select_proposals(rpn.logits, rpn.deltas, batch.image_sizes)
    return [boxes for boxes, _ in selected]


def _losses(
    logits: Sequence[Tensor], deltas: Sequence[Tensor], targets: Sequence[AnchorTargets], train_config: TrainConfig
) -> tuple[Tensor, Tensor]:
    flat_logits = torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in logits], dim=1)
    flat_deltas = torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, 4) for level in deltas], dim=1)
    average_factor = sum(image.sample.average_factor for image in targets)
    chosen_logits, are_objects, positive_deltas = [], [], []
    for index, image in enumerate(targets):
        positives, negatives = image.sample.positives, image.sample.negatives
        chosen = torch.cat([positives, negatives])
        chosen_logits.append(flat_logits[index, chosen])
        are_objects.append(torch.arange(len(chosen), device=chosen.device) < len(positives))
        positive_deltas.append(flat_deltas[index, positives])
    loss_class = objectness_loss(torch.cat(chosen_logits), torch.cat(are_objects), average_factor=average_factor)
    loss_box = delta_loss(
        torch.cat(positive_deltas),
        torch.cat([image.deltas for image in targets]),
        beta=train_config.rpn_beta,
        average_factor=average_factor,
    )
    return loss_class, loss_box


def _round_up(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple
