"""Losses of one cascade stage: box head, refined boxes, mask head.

With interleaving (HTC, arXiv:1901.07518, sec. 3.1) a stage's mask head is trained on the boxes that its box head has
just refined, assigned and sampled again; otherwise on the box head's own positives. With mask information flow
(sec. 3.1, eq. 5) the earlier mask heads run on the same RoIs and receive gradients too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from htc_model.network.box_ops import boxes_to_rois
from htc_model.network.cascade_roi_head import CascadeHead
from htc_model.network.roi_heads import BoxHead, MaskHead
from htc_model.structures import ImageBatch
from htc_model.training.losses import (
    accuracy_percent,
    class_loss,
    delta_loss,
    deltas_of_labels,
    mask_loss,
)
from htc_model.training.roi_features import box_features, mask_features
from htc_model.training.targets import RoiSample, Truth, build_mask_targets, encode_deltas, sample_rois
from htc_model.training.train_config import TrainConfig


@dataclass(frozen=True)
class CascadeInputs:
    """What all stages of one step read.

    pyramid: P2..P6. semantic_feat: of the semantic branch, or None. batch, truths: the images and their objects.
    """

    pyramid: Sequence[Tensor]
    semantic_feat: Tensor | None
    batch: ImageBatch
    truths: Sequence[Truth]


@dataclass(frozen=True)
class BoxTrace:
    """A box head's losses and what they were computed from.

    loss_class, loss_box: scalars before the stage's weight. accuracy: percent.
    samples: one per image. rois [N, 5], logits [N, C + 1], deltas [N, 4 or 4 * C]: of all images, in order.
    targets: [P, 4] normalised deltas of the positives.
    """

    loss_class: Tensor
    loss_box: Tensor
    accuracy: Tensor
    samples: list[RoiSample]
    rois: Tensor
    logits: Tensor
    deltas: Tensor
    targets: Tensor


@dataclass(frozen=True)
class MaskTrace:
    """A mask head's loss and what it was computed from.

    loss: scalar before the stage's weight. samples: one per image.
    own_logits [M, 28, 28] float32 and targets [M, 28, 28] bool: of all positives, in order.
    """

    loss: Tensor
    samples: list[RoiSample]
    own_logits: Tensor
    targets: Tensor


def sample_stage_rois(
    boxes: Sequence[Tensor],
    truths: Sequence[Truth],
    train_config: TrainConfig,
    stage: int,
    *,
    class_count: int,
    generator: torch.Generator | None,
) -> list[RoiSample]:
    """Assign and sample each image's boxes by one stage's settings."""
    return [
        sample_rois(
            image_boxes,
            truth,
            train_config.roi_assign[stage],
            train_config.roi_sample,
            class_count=class_count,
            generator=generator,
        )
        for image_boxes, truth in zip(boxes, truths, strict=True)
    ]


def compute_box_losses(
    head: CascadeHead, stage: int, inputs: CascadeInputs, samples: list[RoiSample], train_config: TrainConfig
) -> BoxTrace:
    """Compute one box head's losses on the sampled RoIs of all images."""
    rois = boxes_to_rois([sample.rois_xyxy for sample in samples])
    labels = torch.cat([sample.labels for sample in samples])
    box_head: BoxHead = head.box_heads[stage]
    logits, deltas = box_head(box_features(head, inputs.pyramid, inputs.semantic_feat, rois))
    is_positive = labels < head.config.num_classes
    targets = torch.cat(
        [
            encode_deltas(
                sample.rois_xyxy[: sample.positive_count],
                truth.boxes_xyxy[sample.gt_indices],
                head.config.box_stds[stage],
            )
            for sample, truth in zip(samples, inputs.truths, strict=True)
        ]
    )
    positive_deltas = deltas_of_labels(deltas[is_positive], labels[is_positive])
    # Divided by all RoIs, so that the box loss is small where positives are few (Fast R-CNN, arXiv:1504.08083,
    # sec. 2.3).
    loss_box = delta_loss(positive_deltas, targets, beta=train_config.box_beta, average_factor=max(len(labels), 1))
    return BoxTrace(
        loss_class=class_loss(logits, labels),
        loss_box=loss_box,
        accuracy=accuracy_percent(logits, labels),
        samples=samples,
        rois=rois,
        logits=logits,
        deltas=deltas,
        targets=targets,
    )


@torch.no_grad()
def refine_boxes(head: CascadeHead, stage: int, boxes: BoxTrace, batch: ImageBatch) -> list[Tensor]:
    """Decode the head's predictions for the sampled RoIs: the next head's proposals, without gradient.

    RoIs that were objects' own boxes are left out: at inference no stage receives such boxes.

    Returns:
        Per image [R, 4] in network pixels, clipped to the image.
    """
    sizes = torch.tensor(batch.image_sizes, device=boxes.rois.device)
    per_class = head.refine(stage, boxes.rois, boxes.deltas.detach(), sizes)
    if per_class.shape[1] > 1:
        labels = torch.cat([sample.labels for sample in boxes.samples])
        likeliest = boxes.logits[:, :-1].argmax(dim=1)
        own = torch.where(labels < head.config.num_classes, labels, likeliest)
        refined = per_class[torch.arange(len(own), device=own.device), own]
    else:
        refined = per_class[:, 0]
    counts = [len(sample.labels) for sample in boxes.samples]
    return [
        image_boxes[~sample.is_gt]
        for image_boxes, sample in zip(torch.split(refined, counts), boxes.samples, strict=True)
    ]


def compute_mask_loss(
    head: CascadeHead, stage: int, inputs: CascadeInputs, samples: list[RoiSample], train_config: TrainConfig
) -> MaskTrace:
    """Compute one mask head's loss on the positives among the sampled RoIs of all images."""
    positives = [sample.rois_xyxy[: sample.positive_count] for sample in samples]
    labels = torch.cat([sample.labels[: sample.positive_count] for sample in samples])
    roi_features = mask_features(head, inputs.pyramid, inputs.semantic_feat, boxes_to_rois(positives))
    own_logits = _own_mask_logits(head, stage, roi_features, labels)
    padded_size = (int(inputs.batch.pixels.shape[-2]), int(inputs.batch.pixels.shape[-1]))
    targets = torch.cat(
        [
            build_mask_targets(
                _masks(truth),
                sample.gt_indices,
                boxes,
                canvas_size=padded_size if train_config.has_padded_canvas else image_size,
            )
            for truth, sample, boxes, image_size in zip(
                inputs.truths, samples, positives, inputs.batch.image_sizes, strict=True
            )
        ]
    )
    return MaskTrace(mask_loss(own_logits, targets), samples, own_logits, targets)


def _own_mask_logits(head: CascadeHead, stage: int, roi_features: Tensor, labels: Tensor) -> Tensor:
    """Run mask head `stage`, with mask information flow after the heads before it: [M, 28, 28] logits."""
    mask_head: MaskHead = head.mask_heads[stage]
    if head.config.mask_info_flow:
        mask_feat = head.mask_forward(roi_features, stage + 1)[-1]
    else:
        mask_feat = mask_head(roi_features)
    own_logits: Tensor = mask_head.predict_class(mask_feat, labels)
    return own_logits


def _masks(truth: Truth) -> Tensor:
    if truth.masks is None:
        raise ValueError("a network with mask heads needs the objects' masks to train on")
    return truth.masks
