"""Semantic segmentation branch of HTC (arXiv:1901.07518, sec. 3.2 and fig. 4)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from htc_model.config import ModelConfig
from htc_model.network.fpn import ConvModule
from htc_model.structures import SemanticMap

SEMANTIC_STRIDE = 8  # the branch works at P3's resolution
_FUSION_LEVEL = 1  # P3 among P2..P6
_LEVELS = 5
_CONVS = 4  # HTC, fig. 4


class SemanticHead(nn.Module):
    """Fuses all pyramid levels at stride 8; gives an embedding for the RoIs and, on request, class logits.

    Args:
        config: reads fpn_channels and semantic_classes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.fpn_channels
        self.lateral_convs = nn.ModuleList(ConvModule(channels, channels, 1) for _ in range(_LEVELS))
        self.convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in range(_CONVS))
        self.conv_embedding = ConvModule(channels, channels, 1)
        self.conv_logits: nn.Module = nn.Conv2d(channels, config.semantic_classes, 1)

    def fuse(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Resize P2..P6 to P3's size, sum their laterals and convolve: -> [B, C, H / 8, W / 8].

        The resize comes before the lateral's ReLU; the other order gives other numbers.
        """
        size = pyramid[_FUSION_LEVEL].shape[-2:]
        x: Tensor = self.lateral_convs[_FUSION_LEVEL](pyramid[_FUSION_LEVEL])
        for level, (lateral, feature) in enumerate(zip(self.lateral_convs, pyramid, strict=True)):
            if level != _FUSION_LEVEL:
                x = x + lateral(F.interpolate(feature, size=size, mode="bilinear", align_corners=True))
        for conv in self.convs:
            x = conv(x)
        return x

    def embed(self, fused: Tensor) -> Tensor:
        """Map the fused features to `semantic_feat` of the same shape, which is pooled for every RoI."""
        embedding: Tensor = self.conv_embedding(fused)
        return embedding

    def classify(self, fused: Tensor) -> Tensor:
        """Map the fused features to logits [B, semantic_classes, H / 8, W / 8], for training and semantic maps."""
        logits: Tensor = self.conv_logits(fused)
        return logits

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Map P2..P6 to `semantic_feat` [B, C, H / 8, W / 8]."""
        return self.embed(self.fuse(pyramid))


def cut_map(logits: Tensor, image_size: tuple[int, int]) -> SemanticMap:
    """Cut the padding off one image's logits [C, H / 8, W / 8]; `image_size` is (height, width) before padding.

    A cell is about every eighth pixel, beginning with the first: so the branch is trained, here and in the published
    code, which scales the maps of labels down by nearest neighbour.
    """
    height, width = (-(-side // SEMANTIC_STRIDE) for side in image_size)
    return SemanticMap(logits[:, :height, :width].float(), image_size, SEMANTIC_STRIDE)
