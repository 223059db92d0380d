"""SCNet's heads (arXiv:2012.10150): HTC's cascade of boxes, but one mask head that sees what the last box head saw.

    RoI features of every head = pyramid + semantic branch + global context
    mask head's input = those + the last box head's shared features, brought to 14x14 ("feature relay")

The mask head runs once, on the final boxes, at training as at inference ("sample consistency").
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from htc_model.config import ModelConfig
from htc_model.network.cascade_roi_head import CascadeHead
from htc_model.network.roi_heads import BOX_POOL, MASK_POOL, MaskHead
from htc_model.network.semantic_head import SemanticHead

# The paper's sec. 3.3 and the published configs: 12, 4 and 4 convolutions, two in each residual block.
_MASK_BLOCKS = 6
_SEMANTIC_BLOCKS = 2
_CONTEXT_BLOCKS = 2


class PlainBlock(nn.Module):
    """Two 3x3 convolutions with bias and a shortcut; no norm, and no ReLU after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        result: Tensor = self.conv2(F.relu(self.conv1(x), inplace=True)) + x
        return result


class SCNetSemanticHead(SemanticHead):
    """The semantic branch with two residual blocks in place of four convolutions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.convs = nn.ModuleList(PlainBlock(config.fpn_channels) for _ in range(_SEMANTIC_BLOCKS))


class SCNetMaskHead(MaskHead):
    """The mask head with six residual blocks in place of four convolutions.

    Args:
        config: reads fpn_channels, which `mask_channels` must equal, and num_classes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, takes_previous=False)
        self.convs = nn.ModuleList(PlainBlock(config.fpn_channels) for _ in range(_MASK_BLOCKS))


class GlobalContextHead(nn.Module):
    """A feature of the whole image from P6; for training, which classes the image has."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.convs = nn.ModuleList(PlainBlock(config.fpn_channels) for _ in range(_CONTEXT_BLOCKS))
        self.fc = nn.Linear(config.fpn_channels, config.num_classes)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Map P2..P6 to [B, C, 1, 1]."""
        x = pyramid[-1]
        for block in self.convs:
            x = block(x)
        return F.adaptive_avg_pool2d(x, 1)


class FeatureRelayHead(nn.Module):
    """Brings a box head's shared features to the mask head: one linear layer to 7x7, then bilinear to 14x14."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.box_fc_channels, config.fpn_channels * BOX_POOL * BOX_POOL)

    def forward(self, shared: Tensor) -> Tensor:
        """Map [K, box_fc_channels] to [K, C, 14, 14]."""
        x = self.fc(shared).reshape(len(shared), -1, BOX_POOL, BOX_POOL)
        return F.interpolate(x, size=(MASK_POOL, MASK_POOL), mode="bilinear", align_corners=True)


class SCNetHead(CascadeHead):
    """All of SCNet's heads that work on RoIs, with the published checkpoints' names.

    Args:
        config: as for `CascadeHead`; `semantic` and `has_masks` must be set.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.mask_head = SCNetMaskHead(config)
        self.semantic_head = SCNetSemanticHead(config)
        self.feat_relay_head = FeatureRelayHead(config)
        self.glbctx_head = GlobalContextHead(config)

    def semantic_forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Map P2..P6 to one map [B, C, H / 8, W / 8]: the semantic features plus the image's global context.

        Every RoI receives both, and RoIAlign of a constant is the constant, so that one pooling gives their sum. (Only
        an RoI without area, of which RoIAlign takes no sample, then lacks the context.)
        """
        return self._with_context(super().semantic_forward(pyramid), pyramid)

    def semantic_with_logits(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Map P2..P6 to what `semantic_forward` gives, and to class logits."""
        semantic_feat, logits = super().semantic_with_logits(pyramid)
        return self._with_context(semantic_feat, pyramid), logits

    def _with_context(self, semantic_feat: Tensor | None, pyramid: Sequence[Tensor]) -> Tensor:
        context: Tensor = self.glbctx_head(pyramid)
        return context if semantic_feat is None else semantic_feat + context

    def relay(self, box_features: Tensor) -> Tensor:
        """Compute what the mask head receives from the last box head: [K, C, 7, 7] -> [K, C, 14, 14]."""
        relayed: Tensor = self.feat_relay_head(self.box_heads[-1].share(box_features))
        return relayed

    def mask_features(self, pyramid: Sequence[Tensor], semantic_feat: Tensor | None, rois: Tensor) -> Tensor:
        """Pool the mask head's input and add the relayed features: rois [K, 5] -> [K, C, 14, 14]."""
        pooled = super().mask_features(pyramid, semantic_feat, rois)
        return pooled + self.relay(self.box_features(pyramid, semantic_feat, rois))
