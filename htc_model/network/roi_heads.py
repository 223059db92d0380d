"""RoI heads: the box head (class and box deltas) and the mask head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htc_model.config import ModelConfig
from htc_model.network.fpn import ConvModule

BOX_POOL = 7  # RoI features for boxes are 7x7, for masks 14x14 (Mask R-CNN, arXiv:1703.06870, fig. 4)
MASK_POOL = 14
MASK_SIDE = 28  # twice 14: the mask head upsamples once
_MASK_CONVS = 4  # Mask R-CNN, fig. 4
_BOX_CONVS = 4  # of the heads with convolutions (arXiv:1803.08494, sec. 4.2)


class BoxHead(nn.Module):
    """Shared layers, then class logits and box deltas.

    Args:
        config: reads fpn_channels, box_fc_channels, num_classes, has_class_specific_boxes, box_head, has_group_norm.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.box_fc_channels
        self.fc_cls = nn.Linear(width, config.num_classes + 1)
        self.fc_reg = nn.Linear(width, 4 * config.num_classes if config.has_class_specific_boxes else 4)
        channels = config.fpn_channels
        convs = _BOX_CONVS if config.box_head == "four_conv_one_linear" else 0
        self.shared_convs = nn.ModuleList(
            ConvModule(channels, channels, 3, has_norm=config.has_group_norm) for _ in range(convs)
        )
        self.shared_fcs = nn.ModuleList([nn.Linear(channels * BOX_POOL * BOX_POOL, width)])
        if not convs:
            self.shared_fcs.append(nn.Linear(width, width))

    def forward(self, roi_features: Tensor) -> tuple[Tensor, Tensor]:
        """Predict from pooled features.

        Args:
            roi_features: [K, C, 7, 7].

        Returns:
            float32 class logits [K, classes + 1], background last, and deltas [K, 4] or [K, 4 * classes].
        """
        x = self.share(roi_features)
        return self.fc_cls(x).float(), self.fc_reg(x).float()

    def share(self, roi_features: Tensor) -> Tensor:
        """Compute what classes and boxes are predicted from: [K, C, 7, 7] -> [K, box_fc_channels]."""
        x = roi_features
        for conv in self.shared_convs:
            x = conv(x)
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x), inplace=True)
        return x


class MaskHead(nn.Module):
    """Four convolutions, one upsampling, one mask per class; in HTC it also reads the previous head's features.

    Args:
        config: reads fpn_channels, mask_channels, num_classes and has_group_norm.
        takes_previous: the head has `conv_res` and accepts the previous head's features (HTC, eq. 5).
    """

    def __init__(self, config: ModelConfig, *, takes_previous: bool) -> None:
        super().__init__()
        width = config.mask_channels
        self.convs = nn.ModuleList(
            ConvModule(config.fpn_channels if index == 0 else width, width, 3, has_norm=config.has_group_norm)
            for index in range(_MASK_CONVS)
        )
        self.upsample = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.conv_logits = nn.Conv2d(width, config.num_classes, 1)
        self.conv_res = ConvModule(width, config.fpn_channels, 1) if takes_previous else None

    def forward(self, roi_features: Tensor, previous: Tensor | None = None) -> Tensor:
        """Compute the mask features.

        Args:
            roi_features: [K, C, 14, 14].
            previous: the previous stage's mask features, [K, M, 14, 14]; ignored without `conv_res`.

        Returns:
            mask_feat: [K, M, 14, 14], for `predict`, `predict_class` and the next stage.
        """
        x = roi_features
        if self.conv_res is not None and previous is not None:
            x = x + self.conv_res(previous)
        for conv in self.convs:
            x = conv(x)
        return x

    def predict(self, mask_feat: Tensor) -> Tensor:
        """Compute the mask logits of every class: [K, M, 14, 14] -> [K, classes, 28, 28]."""
        logits: Tensor = self.conv_logits(F.relu(self.upsample(mask_feat), inplace=True))
        return logits

    def predict_class(self, mask_feat: Tensor, labels: Tensor) -> Tensor:
        """Compute the mask logits of each RoI's own class: labels [K] int64 -> [K, 28, 28] float32.

        Equal to selecting from `predict`, without computing the other classes' masks.
        """
        x = F.relu(self.upsample(mask_feat), inplace=True).flatten(2)
        weight = self.conv_logits.weight.flatten(1)[labels][:, None]
        logits = torch.bmm(weight, x).float()
        if self.conv_logits.bias is not None:
            logits = logits + self.conv_logits.bias[labels][:, None, None]
        return logits.reshape(len(labels), MASK_SIDE, MASK_SIDE)
