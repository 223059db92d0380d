"""The detector: an image batch in, detections out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from htc_model.config import BackboneConfig, ModelConfig, load_preset
from htc_model.finite import check_predictions
from htc_model.masks.encode import encode_detections
from htc_model.network.box_ops import boxes_to_rois
from htc_model.network.cascade_roi_head import CascadeHead
from htc_model.network.detectors import DetectorsResNet, RecursivePyramid
from htc_model.network.efficientnet import EfficientNetLite0
from htc_model.network.fpn import FPN, PAFPN
from htc_model.network.guided_rpn import GuidedRPNHead
from htc_model.network.norms import use_group_norm
from htc_model.network.panet import PANetHead
from htc_model.network.postprocess import BoxDetections, select_detections, to_original
from htc_model.network.resnet import ResNet
from htc_model.network.rpn import RPNHead
from htc_model.network.scnet import SCNetHead
from htc_model.network.semantic_head import cut_map
from htc_model.network.senet import SENet
from htc_model.structures import Detections, ImageBatch, RawDetections, SemanticMap


class HTC(nn.Module):
    """Hybrid Task Cascade (arXiv:1901.07518); other configs give Mask R-CNN, Cascade R-CNN and Cascade Mask R-CNN.

    Args:
        config: what to build; stored as `self.config`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _build_backbone(config.backbone)
        if config.backbone.norm == "group":
            use_group_norm(self.backbone)
        self.neck = _build_neck(config, self.backbone.channels)
        self.rpn_head: Any = GuidedRPNHead(config) if config.rpn == "guided" else RPNHead(config)
        self.roi_head: CascadeHead = _ROI_HEADS[config.roi_head](config)

    def forward(self, batch: ImageBatch) -> list[Detections]:
        """Detect, segment and encode masks: one Detections per image, on the CPU, most confident first."""
        return [encode_detections(raw) for raw in self.infer(batch)]

    @torch.inference_mode()
    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        """Detect and segment; masks stay 28x28 on the model's device, and semantic maps at a stride of 8.

        Runs under the caller's autocast, if any; boxes, scores and mask probabilities are float32 in any case.
        An image's detections do not depend on the other images of the batch.

        Args:
            batch: on the model's device.

        Returns:
            One RawDetections per image, most confident first.

        Raises:
            NonFiniteError: an image's activations overflow, or the weights contain NaN. Without this error, comparisons
                with NaN would drop all its detections, and the image would seem empty.
        """
        return self.infer_from(self.features(batch.pixels), batch)

    @torch.inference_mode()
    def infer_from(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> list[RawDetections]:
        """Detect and segment, as `infer`, from features that are computed already: P2..P6."""
        semantic_feat, maps = self.semantic(pyramid, batch)
        proposals = self.propose(pyramid, batch)
        detected = self.detect(pyramid, semantic_feat, proposals, batch)
        mask_probs = self.segment(pyramid, semantic_feat, detected)
        return [
            RawDetections(
                to_original(boxes, image_size, original_size),
                scores,
                labels,
                probs,
                original_size,
                semantic=None if semantic is None else (semantic,),
            )
            for (boxes, scores, labels), probs, image_size, original_size, semantic in zip(
                detected, mask_probs, batch.image_sizes, batch.original_sizes, maps, strict=True
            )
        ]

    def semantic(
        self, pyramid: Sequence[Tensor], batch: ImageBatch
    ) -> tuple[Tensor | None, list[SemanticMap] | list[None]]:
        """Compute the semantic branch: its features for the RoIs, and each image's map if the batch wants it.

        Without the branch both are None.
        """
        if not batch.wants_semantic:
            return self.roi_head.semantic_forward(pyramid), [None] * len(batch)
        semantic_feat, logits = self.roi_head.semantic_with_logits(pyramid)
        if logits is None:
            return semantic_feat, [None] * len(batch)
        return semantic_feat, [cut_map(*each) for each in zip(logits, batch.image_sizes, strict=True)]

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Compute P2..P6 of normalised pixels [B, 3, H, W]."""
        if pixels.device.type == "cpu":
            # Channels-last convolutions are faster on a CPU, and RoI pooling reads whole rows of channels.
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        pyramid: list[Tensor] = self.neck(self.backbone(pixels))
        return pyramid

    def propose(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> list[Tensor]:
        """Compute proposals: per image boxes_xyxy [N, 4] in network pixels, best first."""
        logits, deltas = self.rpn_head(pyramid)
        check_predictions("objectness scores and boxes of the proposal network", logits, deltas)
        return [boxes for boxes, _ in self.rpn_head.select_proposals(logits, deltas, batch.image_sizes)]

    def detect(
        self,
        pyramid: Sequence[Tensor],
        semantic_feat: Tensor | None,
        proposals: Sequence[Tensor],
        batch: ImageBatch,
    ) -> list[BoxDetections]:
        """Refine and score the proposals of all images together, then post-process each image."""
        sizes = torch.tensor(batch.image_sizes, device=batch.pixels.device)
        rois = boxes_to_rois(proposals)
        boxes, scores = self.roi_head.detect_boxes(pyramid, semantic_feat, rois, sizes)
        counts = [len(image_boxes) for image_boxes in proposals]
        per_image = zip(boxes.split_with_sizes(counts), scores.split_with_sizes(counts), strict=True)
        return [select_detections(*image, self.config) for image in per_image]

    def segment(
        self, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, detected: Sequence[BoxDetections]
    ) -> list[Tensor] | list[None]:
        """Predict all images' masks together: per image [N, 28, 28] in [0, 1]; None for a box-only model."""
        if not self.config.has_masks:
            return [None] * len(detected)
        rois = boxes_to_rois([boxes for boxes, _, _ in detected])
        labels = torch.cat([labels for _, _, labels in detected])
        mask_probs = self.roi_head.detect_masks(pyramid, semantic_feat, rois, labels)
        return list(mask_probs.split_with_sizes([len(boxes) for boxes, _, _ in detected]))


_ROI_HEADS: Mapping[str, type[CascadeHead]] = {"cascade": CascadeHead, "scnet": SCNetHead, "panet": PANetHead}


def _build_backbone(config: BackboneConfig) -> Any:
    if config.kind == "efficientnet_lite0":
        return EfficientNetLite0()
    if config.kind in {"senet154", "seresnext101_32x4d"}:
        return SENet(config)
    return DetectorsResNet(config) if config.kind == "detectors_resnet" else ResNet(config)


def _build_neck(config: ModelConfig, inputs: Sequence[int]) -> nn.Module:
    if config.neck == "recursive":
        return RecursivePyramid(inputs, config.fpn_channels, config.backbone)
    neck = PAFPN if config.neck == "pafpn" else FPN
    return neck(inputs, config.fpn_channels, has_norm=config.has_group_norm)


def build_model(config: str | ModelConfig) -> HTC:
    """Build a network with random weights, in training mode.

    Args:
        config: a preset's name or a config.

    Raises:
        ModelConfigError: there is no such preset.
    """
    return HTC(load_preset(config) if isinstance(config, str) else config)
