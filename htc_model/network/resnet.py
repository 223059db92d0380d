"""ResNet and ResNeXt backbones with optional deformable 3x3 convolutions and group norms, C2..C5 out.

Module names are those of the published checkpoints (`layer2.0.conv2.conv_offset.weight` and so on), so that weights
load without renaming. The 3x3 convolution has the stride ("pytorch style").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from htc_model.config import BackboneConfig, ModelConfigError
from htc_model.network.norms import GroupNorm

STRIDES = (4, 8, 16, 32)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # arXiv:1512.03385, table 1
EXPANSION = 4  # a bottleneck's output has four times its inner planes, same table


class DeformConv2d(nn.Module):
    """A 3x3 deformable convolution, version 1 (arXiv:1703.06211): each tap is moved by a learnt (dy, dx)."""

    def __init__(self, channels: int, stride: int, groups: int, outputs: int | None = None) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs or channels, channels // groups, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.conv_offset = nn.Conv2d(channels, 2 * 3 * 3, 3, stride=stride, padding=1)
        # Zero offsets at the start: an untrained deformable convolution is an ordinary one (the paper, sec. 2.1).
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(_bias(self.conv_offset))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H / stride, W / stride], in float32: offsets are sub-pixel."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return sample_deformable(x, self.conv_offset(x), self.weight, stride=self.stride)


class ModulatedDeformConv2d(nn.Module):
    """A 3x3 deformable convolution, version 2 (arXiv:1811.11168): each tap also has a learnt weight in (0, 1)."""

    def __init__(self, channels: int, stride: int, groups: int, outputs: int | None = None) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs or channels, channels // groups, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.conv_offset = nn.Conv2d(channels, MODULATED_OUTPUTS, 3, stride=stride, padding=1)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(_bias(self.conv_offset))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H / stride, W / stride], in float32: offsets are sub-pixel."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            offsets, weights = split_modulated(self.conv_offset(x))
            return sample_deformable(x, offsets, self.weight, stride=self.stride, tap_weights=weights)


# Of each of nine taps: dy, dx, and the logit of its weight.
MODULATED_OUTPUTS = 3 * 3 * 3


def split_modulated(predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Split 27 channels into nine pairs of offsets and nine weights in (0, 1)."""
    offsets, logits = predicted.tensor_split((18,), dim=1)
    return offsets, logits.sigmoid()


def sample_deformable(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int,
    rate: int = 1,
    tap_weights: Tensor | None = None,
) -> Tensor:
    """Run torchvision's 3x3 deformable convolution; where an offset is NaN, the result is NaN.

    torchvision reads outside its input there, and the process dies: activations that overflow would end a worker.

    Args:
        x: [B, C, H, W] float32.
        offsets: [B, 18 * groups of offsets, H / stride, W / stride], (dy, dx) of each tap.
        rate: of dilation, and the padding.
        tap_weights: half as many channels as the offsets.

    Returns:
        [B, outputs, H / stride, W / stride].
    """
    sampled: Tensor = deform_conv2d(
        x, offsets.nan_to_num(), weight, bias, stride=stride, padding=rate, dilation=rate, mask=tap_weights
    )
    return torch.where(offsets.isnan().any(dim=1, keepdim=True), torch.nan, sampled)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; grouped (ResNeXt) or deformable in the middle.

    Args:
        inputs: channels in.
        planes: the stage's nominal width; 4 * planes channels come out.
        stride: of the 3x3 convolution and the shortcut.
        config: cardinality, width, norm and version of deformable convolutions; `depth` is not read.
        is_deformable: the 3x3 convolution is deformable.
    """

    def __init__(self, inputs: int, planes: int, stride: int, config: BackboneConfig, *, is_deformable: bool) -> None:
        super().__init__()
        # ResNeXt's width rule (arXiv:1611.05431): 64 planes become groups * base_width channels.
        width = planes * config.base_width // 64 * config.groups
        outputs = planes * EXPANSION
        self.norm_name = _norm_name(config)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.add_module(f"{self.norm_name}1", _norm(config, width))
        self.conv2: nn.Module = (
            deformable(width, stride, config)
            if is_deformable
            else nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=config.groups, bias=False)
        )
        self.add_module(f"{self.norm_name}2", _norm(config, width))
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.add_module(f"{self.norm_name}3", _norm(config, outputs))
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), _norm(config, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, 4 * planes, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.norm(1)(self.conv1(x)), inplace=True)
        out = F.relu(self.norm(2)(self.conv2(out)), inplace=True)
        out = self.norm(3)(self.conv3(out))
        return F.relu(out + shortcut, inplace=True)

    def norm(self, number: int) -> nn.Module:
        """Return the norm after convolution 1, 2 or 3: `bn1` or, in published weights with group norm, `gn1`."""
        return self.get_submodule(f"{self.norm_name}{number}")


class ResNet(nn.Module):
    """ResNet-50/101 or ResNeXt-101 without its classifier.

    Args:
        config: raises ModelConfigError for a depth other than 50 and 101.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.depth not in BLOCKS:
            raise ModelConfigError(f"A ResNet of depth {config.depth} is not known; known: {sorted(BLOCKS)}.")
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.norm_name = _norm_name(config)
        self.add_module(f"{self.norm_name}1", _norm(config, 64))
        stages = []
        inputs = 64
        for index, blocks in enumerate(BLOCKS[config.depth]):
            # The published models are deformable in C3-C5 (arXiv:1811.11168, table 1: no gain in C2).
            is_deformable = config.has_deformable_stages and index + 2 >= config.first_deformable
            stages.append(_build_stage(inputs, 64 * 2**index, blocks, config, is_deformable=is_deformable))
            inputs = 64 * 2**index * EXPANSION
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(64 * 2**index * EXPANSION for index in range(4))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map [B, 3, H, W] to C2..C5: [B, 256 * 2^i, H / 4 / 2^i, W / 4 / 2^i]."""
        x = F.relu(self.get_submodule(f"{self.norm_name}1")(self.conv1(pixels)), inplace=True)
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
    rest = [Bottleneck(planes * EXPANSION, planes, 1, config, is_deformable=is_deformable) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def deformable(channels: int, stride: int, config: BackboneConfig) -> nn.Module:
    """Build the 3x3 deformable convolution of a config's version."""
    kind = ModulatedDeformConv2d if config.is_modulated else DeformConv2d
    return kind(channels, stride, config.groups)


def _norm_name(config: BackboneConfig) -> str:
    return "gn" if config.norm == "group_published" else "bn"


def _norm(config: BackboneConfig, channels: int) -> nn.Module:
    """Build a norm; `group` is replaced afterwards, in whatever backbone (`norms.use_group_norm`)."""
    return GroupNorm(channels) if config.norm == "group_published" else nn.BatchNorm2d(channels)


def _bias(convolution: nn.Conv2d) -> Tensor:
    if convolution.bias is None:
        raise ModelConfigError("A deformable convolution's offsets need a bias.")
    return convolution.bias
