"""Train config: box assignment, sampling and loss weights, one `TrainConfig` per kind of network.

The numbers are those of MMDetection's published configs (configs/_base_/models/{mask-rcnn,cascade-mask-rcnn}_r50_fpn.py
and configs/htc/htc-without-semantic_r50_fpn_1x_coco.py, htc_r50_fpn_1x_coco.py), which the published checkpoints were
trained with.
"""

from dataclasses import dataclass

from htc_model.config import ModelConfig
from htc_model.training.matcher import AssignRule
from htc_model.training.sampler import SampleRule

# Cascade R-CNN (arXiv:1712.00726, sec. 4.2): each stage needs a higher overlap than the one before.
_STAGE_IOUS = (0.5, 0.6, 0.7)
# HTC (arXiv:1901.07518, sec. 4.2): the stages' losses weigh 1, 0.5, 0.25; the semantic loss 0.2.
_STAGE_WEIGHTS = (1.0, 0.5, 0.25)
_SEMANTIC_WEIGHT = 0.2


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training step.

    anchor_assign, anchor_sample: of the proposal network. anchor_border: pixels by which an anchor may extend beyond
        the image; None for any.
    rpn_beta, box_beta: where the box losses turn linear (`smooth_l1`), in units of the normalised deltas.
    candidates_per_level, proposals: how many proposals a level and an image keep for the box stages.
    roi_assign: one rule per stage. roi_sample: of every stage. stage_weights: one factor per stage.
    has_padded_canvas: for mask targets, RoIs are clipped to the padded image, not to the image.
    semantic_weight: of the semantic branch's loss.
    """

    anchor_assign: AssignRule
    anchor_sample: SampleRule
    anchor_border: int | None
    rpn_beta: float
    candidates_per_level: int
    proposals: int
    roi_assign: tuple[AssignRule, ...]
    roi_sample: SampleRule
    box_beta: float
    stage_weights: tuple[float, ...]
    has_padded_canvas: bool
    semantic_weight: float = _SEMANTIC_WEIGHT


def train_config_for(config: ModelConfig) -> TrainConfig:
    """Return the published train config of the network's kind.

    One stage is Mask R-CNN. Several stages with any of HTC's switches on are HTC, with none Cascade Mask
    R-CNN: the two differ in low-quality matches and in the mask canvas, because the published configs do.
    """
    is_cascade = config.num_stages > 1
    is_hybrid = config.interleaved or config.mask_info_flow or config.semantic
    keeps_low_quality = is_hybrid or not is_cascade
    stage_ious = [_STAGE_IOUS[min(stage, len(_STAGE_IOUS) - 1)] for stage in range(config.num_stages)]
    return TrainConfig(
        anchor_assign=AssignRule(0.7, 0.3, 0.3, matches_low_quality=True),
        anchor_sample=SampleRule(256, 0.5),
        anchor_border=0 if is_cascade else None,
        rpn_beta=1 / 9 if is_cascade else 0.0,
        candidates_per_level=2000,
        proposals=2000 if is_cascade else 1000,
        roi_assign=tuple(AssignRule(iou, iou, iou, keeps_low_quality) for iou in stage_ious),
        roi_sample=SampleRule(512, 0.25),
        box_beta=1.0 if is_cascade else 0.0,
        stage_weights=tuple(
            _STAGE_WEIGHTS[stage] if stage < len(_STAGE_WEIGHTS) else 0.5**stage for stage in range(config.num_stages)
        ),
        has_padded_canvas=not is_hybrid,
    )
