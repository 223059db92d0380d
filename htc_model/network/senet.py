"""Squeeze-and-excitation backbones (arXiv:1709.01507) from timm: SENet-154 and SE-ResNeXt-101 32x4d, C2..C5 out."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from htc_model.config import BackboneConfig
from htc_model.network.resnet import DeformConv2d, ModulatedDeformConv2d

# timm's names of the networks, and of the modules before the first stage, in order.
_NETWORKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "senet154": ("legacy_senet154", ("layer0",)),
    "seresnext101_32x4d": ("seresnext101_32x4d", ("conv1", "bn1")),
}
_STAGES = ("layer1", "layer2", "layer3", "layer4")


class SENet(nn.Module):
    """A squeeze-and-excitation network without its classifier, randomly initialised.

    timm is imported only when a model is built. Its modules are registered here directly, so that the keys are
    `backbone.layer1.0.conv1.weight` and so on, without another level.

    Args:
        config: its kind, and which stages are deformable, are read.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        name, self.stem = _NETWORKS[config.kind]
        with warnings.catch_warnings():
            # timm uses torch APIs that torch has deprecated; callers cannot change that.
            warnings.simplefilter("ignore")
            import timm

            extractor: Any = timm.create_model(name, features_only=True, pretrained=False, out_indices=(1, 2, 3, 4))
        for part in (*self.stem, *_STAGES):
            self.add_module(part, getattr(extractor, part))
        self.channels = tuple(extractor.feature_info.channels())
        # SENet-154's pooling after the stem starts at the border and keeps the last, partly covered row and column.
        self.has_ceiling = config.kind == "senet154"
        if config.has_deformable_stages:
            for level, part in enumerate(_STAGES, start=2):
                if level >= config.first_deformable:
                    _make_deformable(self.get_submodule(part), config)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map [B, 3, H, W] to C2..C5 of 256, 512, 1024 and 2048 channels at strides 4, 8, 16 and 32."""
        x = pixels
        for part in self.stem:
            x = self.get_submodule(part)(x)
        if self.has_ceiling:
            x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        else:
            x = F.max_pool2d(F.relu(x, inplace=True), 3, stride=2, padding=1)
        features = []
        for part in _STAGES:
            x = self.get_submodule(part)(x)
            features.append(x)
        return features


def _make_deformable(stage: nn.Module, config: BackboneConfig) -> None:
    """Replace the 3x3 convolutions of a stage's blocks."""
    for block in stage.children():
        plain: Any = block.conv2
        kind = ModulatedDeformConv2d if config.is_modulated else DeformConv2d
        block.conv2 = kind(plain.in_channels, plain.stride[0], plain.groups, plain.out_channels)
