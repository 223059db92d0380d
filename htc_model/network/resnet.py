"""ResNet and ResNeXt backbones with optional deformable 3x3 convolutions, C2..C5 out.

Module names are those of the published checkpoints (`layer2.0.conv2.conv_offset.weight` and so on), so that weights
load without renaming. The 3x3 convolution has the stride ("pytorch style").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from htc_model.config import BackboneConfig, ModelConfigError

STRIDES = (4, 8, 16, 32)
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # arXiv:1512.03385, table 1
_EXPANSION = 4  # a bottleneck's output has four times its inner planes, same table


class DeformConv2d(nn.Module):
    """A 3x3 deformable convolution, version 1 (arXiv:1703.06211): each tap is moved by a learnt (dy, dx)."""

    def __init__(self, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, channels // groups, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.conv_offset = nn.Conv2d(channels, 2 * 3 * 3, 3, stride=stride, padding=1)
        # Zero offsets at the start: an untrained deformable convolution is an ordinary one (the paper, sec. 2.1).
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(_bias(self.conv_offset))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H / stride, W / stride], in float32: offsets are sub-pixel."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            sampled: Tensor = deform_conv2d(x, self.conv_offset(x), self.weight, stride=self.stride, padding=1)
        return sampled


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; grouped (ResNeXt) or deformable in the middle.

    Args:
        inputs: channels in.
        planes: the stage's nominal width; 4 * planes channels come out.
        stride: of the 3x3 convolution and the shortcut.
        config: cardinality and width; `depth` is not read.
        is_deformable: the 3x3 convolution is a DeformConv2d.
    """

    def __init__(self, inputs: int, planes: int, stride: int, config: BackboneConfig, *, is_deformable: bool) -> None:
        super().__init__()
        # ResNeXt's width rule (arXiv:1611.05431): 64 planes become groups * base_width channels.
        width = planes * config.base_width // 64 * config.groups
        outputs = planes * _EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2: nn.Module = (
            DeformConv2d(width, stride, config.groups)
            if is_deformable
            else nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=config.groups, bias=False)
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, 4 * planes, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + shortcut, inplace=True)


class ResNet(nn.Module):
    """ResNet-50/101 or ResNeXt-101 without its classifier.

    Args:
        config: raises ModelConfigError for a depth other than 50 and 101.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.depth not in _BLOCKS:
            raise ModelConfigError(f"A ResNet of depth {config.depth} is not known; known: {sorted(_BLOCKS)}.")
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        stages = []
        inputs = 64
        for index, blocks in enumerate(_BLOCKS[config.depth]):
            # The published models are deformable in C3-C5 only (arXiv:1811.11168, table 1: no gain in C2).
            is_deformable = config.has_deformable_stages and index > 0
            stages.append(_build_stage(inputs, 64 * 2**index, blocks, config, is_deformable=is_deformable))
            inputs = 64 * 2**index * _EXPANSION
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(64 * 2**index * _EXPANSION for index in range(4))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map [B, 3, H, W] to C2..C5: [B, 256 * 2^i, H / 4 / 2^i, W / 4 / 2^i]."""
        x = F.relu(self.bn1(self.conv1(pixels)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


def _build_stage(
    inputs: int, planes: int, blocks: int, config: BackboneConfig, *, is_deformable: bool
) -> nn.Sequential:
    stride = 1 if planes == 64 else 2
    first = Bottleneck(inputs, planes, stride, config, is_deformable=is_deformable)
    rest = [Bottleneck(planes * _EXPANSION, planes, 1, config, is_deformable=is_deformable) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _bias(convolution: nn.Conv2d) -> Tensor:
    if convolution.bias is None:
        raise ModelConfigError("A deformable convolution's offsets need a bias.")
    return convolution.bias
