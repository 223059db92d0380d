"""PANet's heads (arXiv:1803.01534): RoI features from all levels, and a mask that also sees the whole RoI.

    every RoI -> pooled from each of N2..N5 -> one layer, level by level -> element-wise maximum -> the other layers

    mask head: conv -> max -> conv -> conv -> conv -> upsample -> 28x28 per class ----+-> sum
                                       +-> two convs -> one linear layer -> 28x28 for all classes

No weights of this network are published in a form that fits; the names are this project's own.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htc_model.config import ModelConfig
from htc_model.network.cascade_roi_head import CascadeHead
from htc_model.network.fpn import ConvModule
from htc_model.network.resnet import STRIDES
from htc_model.network.roi_align import pool_map
from htc_model.network.roi_heads import BOX_POOL, MASK_POOL, MASK_SIDE, BoxHead, MaskHead


class PANetBoxHead(BoxHead):
    """`BoxHead` whose first linear layer is applied to each level's features, before their maximum (sec. 3.2)."""

    def share(self, roi_features: Tensor) -> Tensor:
        """Compute what classes and boxes are predicted from: [K, levels, C, 7, 7] -> [K, box_fc_channels]."""
        first, *others = self.shared_fcs
        x: Tensor
        count, levels = roi_features.shape[:2]
        each = F.relu(first(roi_features.flatten(0, 1).flatten(1)), inplace=True)
        x = each.reshape(count, levels, -1).amax(dim=1)
        for layer in others:
            x = F.relu(layer(x), inplace=True)
        return x


class PANetMaskHead(MaskHead):
    """`MaskHead` with features of all levels and a fully-connected branch from its third convolution (sec. 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, takes_previous=False)
        width = config.mask_channels
        self.fusion_convs = nn.ModuleList([ConvModule(width, width, 3), ConvModule(width, width // 2, 3)])
        self.fusion_fc = nn.Linear(width // 2 * MASK_POOL * MASK_POOL, MASK_SIDE * MASK_SIDE)

    def forward(self, roi_features: Tensor, previous: Tensor | None = None) -> Tensor:
        """Compute the mask features, and behind them those that the fully-connected branch begins with.

        Args:
            roi_features: [K, levels, C, 14, 14].
            previous: ignored.

        Returns:
            mask_feat: [K, 2 * M, 14, 14].
        """
        count, levels = roi_features.shape[:2]
        each = self.convs[0](roi_features.flatten(0, 1))
        x = each.reshape(count, levels, *each.shape[1:]).amax(dim=1)
        x = self.convs[1](x)
        third = self.convs[2](x)
        return torch.cat([self.convs[3](third), third], dim=1)

    def predict(self, mask_feat: Tensor) -> Tensor:
        """Compute the mask logits of every class: [K, 2 * M, 14, 14] -> [K, classes, 28, 28]."""
        last, third = mask_feat.chunk(2, dim=1)
        return super().predict(last) + self._fuse(third)[:, None]

    def predict_class(self, mask_feat: Tensor, labels: Tensor) -> Tensor:
        """Compute the mask logits of each RoI's own class: labels [K] int64 -> [K, 28, 28] float32."""
        last, third = mask_feat.chunk(2, dim=1)
        return super().predict_class(last, labels) + self._fuse(third).float()

    def _fuse(self, third: Tensor) -> Tensor:
        """Predict foreground for all classes alike from the whole RoI: [K, M, 14, 14] -> [K, 28, 28]."""
        x = third
        for conv in self.fusion_convs:
            x = conv(x)
        fused: Tensor = self.fusion_fc(x.flatten(1))
        return fused.reshape(len(third), MASK_SIDE, MASK_SIDE)


class PANetHead(CascadeHead):
    """PANet's heads, one stage.

    Args:
        config: as for `CascadeHead`; without the semantic branch and mask information flow.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.bbox_head = PANetBoxHead(config)
        if config.has_masks:
            self.mask_head = PANetMaskHead(config)

    def box_features(self, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor) -> Tensor:
        """Pool a box head's input from every level: rois [K, 5] -> [K, levels, C, 7, 7]."""
        return pool_all_levels(pyramid, rois, BOX_POOL)

    def mask_features(self, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor) -> Tensor:
        """Pool the mask head's input from every level: rois [K, 5] -> [K, levels, C, 14, 14]."""
        return pool_all_levels(pyramid, rois, MASK_POOL)


def pool_all_levels(pyramid: Sequence[Tensor], rois: Tensor, side: int) -> Tensor:
    """Pool each RoI from each of N2..N5 (adaptive feature pooling): [K, 5] -> [K, levels, C, side, side] float32."""
    levels = [
        pool_map(level, rois, stride, side) for level, stride in zip(pyramid[: len(STRIDES)], STRIDES, strict=True)
    ]
    return torch.stack(levels, dim=1)
