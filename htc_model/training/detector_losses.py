"""All losses of one training step, for every network that a `ModelConfig` describes.

    pyramid -> proposals -> [ boxes -> refined boxes -> masks ] x stages
       \\-> semantic branch

The losses have the names of MMDetection's logs (`s0.loss_cls`, …; without the stage for Mask R-CNN), so that curves can
be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from htc_model.network.detector import HTC
from htc_model.structures import ImageBatch
from htc_model.training.cascade_losses import (
    BoxTrace,
    CascadeInputs,
    MaskTrace,
    compute_box_losses,
    compute_mask_loss,
    refine_boxes,
    sample_stage_rois,
)
from htc_model.training.losses import semantic_loss
from htc_model.training.rpn_losses import RpnTrace, compute_rpn_losses, select_training_proposals
from htc_model.training.semantic_targets import build_semantic_targets
from htc_model.training.targets import Truth
from htc_model.training.train_config import TrainConfig


@dataclass(frozen=True)
class StageTrace:
    """One stage: its boxes, the refined boxes per image (None where nothing needs them), its masks or None."""

    boxes: BoxTrace
    refined: list[Tensor] | None
    masks: MaskTrace | None


@dataclass(frozen=True)
class StepTrace:
    """A step's losses and what they were computed from; keeping it keeps the autograd graph.

    losses: scalars by name, weighted; `total` sums those with "loss" in their names, the others are accuracies in
        percent.
    rpn: the proposal network's part. proposals: per image [R, 4], what the cascade was trained on.
    stages: one per stage. semantic_logits [B, K, H / 8, W / 8] and semantic_targets [B, H / 8, W / 8], or
        None.
    """

    losses: dict[str, Tensor]
    rpn: RpnTrace
    proposals: list[Tensor]
    stages: list[StageTrace]
    semantic_logits: Tensor | None
    semantic_targets: Tensor | None

    @property
    def total(self) -> Tensor:
        """The scalar to call `backward` on."""
        return torch.stack([value for name, value in self.losses.items() if "loss" in name]).sum()


def compute_losses(
    model: HTC,
    batch: ImageBatch,
    truths: Sequence[Truth],
    train_config: TrainConfig,
    *,
    proposals: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> StepTrace:
    """Compute all losses of one batch, ready for `trace.total.backward()`.

    Args:
        model: in training mode (see `freezing.set_training_mode`).
        batch: on the model's device; images may differ in size, then all are padded to the largest.
        truths: one per image, on the same device.
        train_config: from `train_config_for`.
        proposals: per image [R, 4] boxes to train the cascade on, instead of the proposal network's own.
        generator: a CPU generator, for sampling.

    Raises:
        ValueError: masks or a semantic map are missing where the model needs them.
    """
    pyramid = model.neck(model.backbone(batch.pixels))
    rpn = compute_rpn_losses(
        model.rpn_head,
        pyramid,
        batch,
        truths,
        train_config,
        pad_multiple=model.config.resize.pad_multiple,
        generator=generator,
    )
    losses = {"loss_rpn_cls": rpn.loss_class, "loss_rpn_bbox": rpn.loss_box}
    if proposals is None:
        proposals = select_training_proposals(model.rpn_head, rpn, batch, train_config)
    semantic_feat, semantic_logits, semantic_targets = _run_semantic(model, pyramid, batch, truths)
    if semantic_logits is not None and semantic_targets is not None:
        loss = semantic_loss(semantic_logits, semantic_targets)
        losses["loss_semantic_seg"] = train_config.semantic_weight * loss
    inputs = CascadeInputs(pyramid, semantic_feat, batch, truths)
    stages = _run_cascade(model, inputs, proposals, train_config, generator)
    for index, stage in enumerate(stages):
        losses.update(_stage_losses(stage, index, train_config))
    return StepTrace(losses, rpn, list(proposals), stages, semantic_logits, semantic_targets)


def _run_semantic(
    model: HTC, pyramid: Sequence[Tensor], batch: ImageBatch, truths: Sequence[Truth]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    branch = model.roi_head.semantic_head
    if branch is None:
        return None, None, None
    semantic_maps = [truth.semantic_map for truth in truths if truth.semantic_map is not None]
    if len(semantic_maps) != len(truths):
        raise ValueError("a network with a semantic branch needs a semantic map for every image")
    fused = branch.fuse(pyramid)
    padded_size = (int(batch.pixels.shape[-2]), int(batch.pixels.shape[-1]))
    return branch.embed(fused), branch.classify(fused), build_semantic_targets(semantic_maps, padded_size)


def _run_cascade(
    model: HTC,
    inputs: CascadeInputs,
    proposals: Sequence[Tensor],
    train_config: TrainConfig,
    generator: torch.Generator | None,
) -> list[StageTrace]:
    head, config = model.roi_head, model.config
    boxes = list(proposals)
    traces = []
    for stage in range(config.num_stages):
        samples = sample_stage_rois(
            boxes, inputs.truths, train_config, stage, class_count=config.num_classes, generator=generator
        )
        box_stage = compute_box_losses(head, stage, inputs, samples, train_config)
        is_last = stage == config.num_stages - 1
        is_interleaved = config.interleaved and config.has_masks
        refined = refine_boxes(head, stage, box_stage, inputs.batch) if is_interleaved or not is_last else None
        if is_interleaved and refined is not None:
            samples = sample_stage_rois(
                refined, inputs.truths, train_config, stage, class_count=config.num_classes, generator=generator
            )
        mask_stage = compute_mask_loss(head, stage, inputs, samples, train_config) if config.has_masks else None
        traces.append(StageTrace(box_stage, refined, mask_stage))
        if refined is not None:
            boxes = refined
    return traces


def _stage_losses(stage: StageTrace, index: int, train_config: TrainConfig) -> dict[str, Tensor]:
    weight = train_config.stage_weights[index]
    prefix = f"s{index}." if len(train_config.stage_weights) > 1 else ""
    losses = {
        f"{prefix}loss_cls": weight * stage.boxes.loss_class,
        f"{prefix}acc": stage.boxes.accuracy,
        f"{prefix}loss_bbox": weight * stage.boxes.loss_box,
    }
    if stage.masks is not None:
        losses[f"{prefix}loss_mask"] = weight * stage.masks.loss
    return losses
