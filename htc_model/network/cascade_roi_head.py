"""Cascade RoI head: box heads, mask heads, semantic features.

    proposals -> box head 0 -> boxes -> box head 1 -> boxes -> box head 2 -> detections
                     |                      |                      |              |
                     +---- mean of the three stages' class logits -+              v
                                               mask head 0 -> mask head 1 -> mask head 2
                                                    +---- mean of the stages' masks ----+

Every head's RoI features are pooled from the pyramid, plus, with the semantic branch, from `semantic_feat`.
One stage is Mask R-CNN; three are Cascade R-CNN; three with mask information flow and the semantic branch are HTC.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from htc_model.config import ModelConfig
from htc_model.finite import check_finite, check_predictions
from htc_model.network.box_ops import clip_boxes, decode_deltas
from htc_model.network.roi_align import pool_map, pool_pyramid
from htc_model.network.roi_heads import BOX_POOL, MASK_POOL, MASK_SIDE, BoxHead, MaskHead
from htc_model.network.semantic_head import SEMANTIC_STRIDE, SemanticHead

# A head processes the RoIs of a whole batch in chunks of this size: pooled features take 200 kB each.
BOX_CHUNK_ROIS = 1024
MASK_CHUNKS_ROIS = (256, 32, 4)


class CascadeHead(nn.Module):
    """All heads that work on RoIs, with the published checkpoints' names.

    Args:
        config: one box head per row of `box_stds`, as many mask heads if `has_masks`, and the three switches are read.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        stages = range(config.num_stages)
        self.bbox_head = _stage_modules([BoxHead(config) for _ in stages])
        self.mask_head = (
            _stage_modules([MaskHead(config, takes_previous=config.mask_info_flow and s > 0) for s in stages])
            if config.has_masks
            else None
        )
        self.semantic_head = SemanticHead(config) if config.semantic else None

    # The parts, each callable on its own

    def semantic_forward(self, pyramid: Sequence[Tensor]) -> Tensor | None:
        """Map P2..P6 to `semantic_feat` [B, C, H / 8, W / 8]; None without the branch."""
        return None if self.semantic_head is None else self.semantic_head(pyramid)

    def semantic_with_logits(self, pyramid: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Map P2..P6 to what `semantic_forward` gives, and to class logits [B, semantic_classes, H / 8, W / 8].

        Both are None without the branch. The features are the same to the last bit.
        """
        if self.semantic_head is None:
            return None, None
        fused = self.semantic_head.fuse(pyramid)
        return self.semantic_head.embed(fused), self.semantic_head.classify(fused)

    def box_features(self, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor) -> Tensor:
        """Pool a box head's input: rois [K, 5] -> [K, C, 7, 7]."""
        features = pool_pyramid(pyramid, rois, BOX_POOL)
        if semantic_feat is None:
            return features
        # Pooled at 14x14 and averaged to 7x7, as the weights were trained; pooling at 7x7 gives other numbers.
        averaged = MASK_POOL // BOX_POOL
        return features + pool_map(semantic_feat, rois, SEMANTIC_STRIDE, BOX_POOL, averaged=averaged)

    def mask_features(self, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor) -> Tensor:
        """Pool the mask heads' input: rois [K, 5] -> [K, C, 14, 14]."""
        features = pool_pyramid(pyramid, rois, MASK_POOL)
        if semantic_feat is None:
            return features
        return features + pool_map(semantic_feat, rois, SEMANTIC_STRIDE, MASK_POOL)

    def box_forward(
        self, stage: int, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run one box head: rois [K, 5] -> class logits [K, classes + 1] and deltas [K, 4 or 4 * classes]."""
        head = self.box_heads[stage]
        chunks = [head(self.box_features(pyramid, semantic_feat, chunk)) for chunk in torch.split(rois, BOX_CHUNK_ROIS)]
        return torch.cat([logits for logits, _ in chunks]), torch.cat([deltas for _, deltas in chunks])

    def mask_forward(self, roi_features: Tensor, stages: int | None = None) -> list[Tensor]:
        """Run the mask heads in order; with mask information flow each reads the features of the one before.

        Args:
            roi_features: [K, C, 14, 14] from `mask_features`.
            stages: how many heads, all by default; training stops at the stage it trains.

        Returns:
            One mask_feat [K, M, 14, 14] per stage.
        """
        mask_feats: list[Tensor] = []
        for head in self.mask_heads[:stages]:
            previous = mask_feats[-1] if mask_feats else None
            mask_feats.append(head(roi_features, previous))
        return mask_feats

    def refine(self, stage: int, rois: Tensor, deltas: Tensor, sizes: Tensor) -> Tensor:
        """Decode one stage's deltas and clip them to the images.

        Args:
            rois: [K, 5] in network pixels.
            deltas: [K, 4] or [K, 4 * classes].
            sizes: [B, 2] (height, width) of the images, before padding.

        Returns:
            [K, 1, 4] or [K, classes, 4] boxes_xyxy in network pixels.
        """
        per_class = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
        boxes = decode_deltas(rois[:, None, 1:], per_class, self.config.box_stds[stage])
        return clip_boxes(boxes, sizes[rois[:, 0].long()][:, None])

    # The whole head, at inference

    def detect_boxes(
        self, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refine proposals stage by stage and score them by all stages together.

        Args:
            rois: [K, 5] proposals of all images, network pixels.
            sizes: [B, 2] (height, width) before padding.

        Returns:
            boxes_xyxy [K, 1, 4] or [K, classes, 4] of the last stage, and scores [K, classes] in [0, 1]: the
            softmax of the stages' mean logits (the mean of logits, not of probabilities), background dropped.

        Raises:
            NonFiniteError: a stage's logits or deltas are NaN or infinite.
        """
        stage_logits = []
        boxes = rois[:, None, 1:]
        for stage in range(self.config.num_stages):
            logits, deltas = self.box_forward(stage, pyramid, semantic_feat, rois)
            check_predictions(f"scores and boxes of stage {stage + 1}", [logits], [deltas])
            boxes = self.refine(stage, rois, deltas, sizes)
            stage_logits.append(logits)
            # Only a last stage may have a box per class (ModelConfig), so here the one box is the next RoI.
            rois = torch.cat([rois[:, :1], boxes[:, 0]], dim=1)
        scores = (sum(stage_logits[1:], stage_logits[0]) / len(stage_logits)).softmax(dim=1)
        # Finite logits may have an infinite sum.
        check_finite("scores", [scores])
        return boxes, scores[:, :-1]

    def detect_masks(
        self, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor, labels: Tensor
    ) -> Tensor:
        """Predict the detections' masks: the mean of all stages' probabilities at the detection's class.

        If they do not fit the device's memory, they are predicted in smaller chunks.

        Args:
            rois: [N, 5] final boxes of all images, network pixels.
            labels: [N] int64 in [0, classes).

        Returns:
            [N, 28, 28] float32 in [0, 1].

        Raises:
            OutOfMemoryError: not even the smallest chunk fits.
            NonFiniteError: a mask's logits are NaN or infinite.
        """
        for chunk_rois in MASK_CHUNKS_ROIS[:-1]:
            try:
                return self._detect_masks(pyramid, semantic_feat, rois, labels, chunk_rois)
            except torch.OutOfMemoryError:
                # Leaving this handler frees the memory of the failed attempt.
                continue
        return self._detect_masks(pyramid, semantic_feat, rois, labels, MASK_CHUNKS_ROIS[-1])

    def _detect_masks(
        self, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor, labels: Tensor, chunk_rois: int
    ) -> Tensor:
        masks = [rois.new_zeros(0, MASK_SIDE, MASK_SIDE)]
        for chunk, chunk_labels in zip(torch.split(rois, chunk_rois), torch.split(labels, chunk_rois), strict=True):
            mask_feats = self.mask_forward(self.mask_features(pyramid, semantic_feat, chunk))
            stage_logits = [
                head.predict_class(mask_feat, chunk_labels)
                for head, mask_feat in zip(self.mask_heads, mask_feats, strict=True)
            ]
            check_finite("mask logits", stage_logits)
            stage_probs = [logits.sigmoid() for logits in stage_logits]
            masks.append(sum(stage_probs[1:], stage_probs[0]) / len(stage_probs))
        return torch.cat(masks)

    @property
    def box_heads(self) -> list[BoxHead]:
        return _stages(self.bbox_head)

    @property
    def mask_heads(self) -> list[MaskHead]:
        return [] if self.mask_head is None else _stages(self.mask_head)


def _stage_modules(heads: list[nn.Module]) -> nn.Module:
    """Name stages as the checkpoints do: `bbox_head.0.fc_cls` in a cascade, `bbox_head.fc_cls` for one stage."""
    return heads[0] if len(heads) == 1 else nn.ModuleList(heads)


def _stages(module: nn.Module) -> list[Any]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]
