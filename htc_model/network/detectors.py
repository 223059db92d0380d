"""DetectoRS (arXiv:2006.02334): a ResNet of switchable atrous convolutions, run twice through a recursive pyramid.

image -> ResNet -> FPN -> ASPP of each level -> second ResNet, which adds them after its stages -> the same FPN
                    |                                                                                    |
                    +------------------ weighted mean of both, level by level, weights learnt -----------+
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htc_model.config import BackboneConfig
from htc_model.network.fpn import FPN
from htc_model.network.resnet import BLOCKS, EXPANSION, sample_deformable

# Variance of a kernel's weights below this counts as this (weight standardisation, arXiv:1903.10520).
_VARIANCE_FLOOR = 1e-5
_ASPP_CHANNELS = 64  # four branches give 256 (the published configs)
_ASPP_DILATIONS = (1, 3, 6, 1)  # the last branch sees the whole map's mean
_SWITCH_WINDOW = 5  # pixels averaged to decide between the two rates (the paper, sec. 4.1)
_LARGE_RATE = 3


class StandardisedConv2d(nn.Conv2d):
    """A convolution without bias whose kernels are standardised, then scaled and shifted by stored numbers.

    weight_gamma and weight_beta are buffers: they keep the scale of pretrained kernels and are not trained.
    """

    weight_gamma: Tensor
    weight_beta: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        # He's deviation (arXiv:1502.01852), for a training from scratch; weights files have the pretrained kernels'.
        deviation = math.sqrt(2 / (inputs * kernel * kernel))
        self.register_buffer("weight_gamma", torch.full((outputs, 1, 1, 1), deviation))
        self.register_buffer("weight_beta", torch.zeros(outputs, 1, 1, 1))

    def standardised(self) -> Tensor:
        """Compute the kernels that the convolution uses: mean zero, deviation one, times gamma plus beta."""
        rows = self.weight.flatten(1)
        mean = rows.mean(dim=1)[:, None, None, None]
        deviation = (rows.var(dim=1) + _VARIANCE_FLOOR).sqrt()[:, None, None, None]
        return self.weight_gamma * ((self.weight - mean) / deviation) + self.weight_beta

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        return F.conv2d(input, self.standardised(), None, self.stride, self.padding)


class SwitchableConv2d(StandardisedConv2d):
    """A 3x3 convolution at two dilation rates, 1 and 3, mixed pixel by pixel; both are deformable (SAC, sec. 4).

    Before and after it, a 1x1 convolution of the map's mean is added: its global context.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride=stride)
        self.rate_stride = stride
        self.weight_diff = nn.Parameter(torch.zeros_like(self.weight))
        self.switch = nn.Conv2d(channels, 1, 1, stride=stride)
        self.pre_context = nn.Conv2d(channels, channels, 1)
        self.post_context = nn.Conv2d(channels, channels, 1)
        self.offset_s = nn.Conv2d(channels, 18, 3, stride=stride, padding=1)
        self.offset_l = nn.Conv2d(channels, 18, 3, stride=stride, padding=1)
        # An untrained one is the convolution at the small rate, without offsets and context (the paper, sec. 4.3).
        for layer in (self.switch, self.pre_context, self.post_context, self.offset_s, self.offset_l):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 1.0 if layer is self.switch else 0.0)

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H / stride, W / stride], in float32: offsets are sub-pixel."""
        with torch.autocast(input.device.type, enabled=False):
            return self.mix(input.float(), self.standardised())

    def mix(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Compute the result from float32 pixels and the standardised kernels."""
        x = x + self.pre_context(F.adaptive_avg_pool2d(x, 1))
        around = F.avg_pool2d(reflect(x, _SWITCH_WINDOW // 2), _SWITCH_WINDOW, stride=1)
        share = self.switch(around)
        stride = self.rate_stride
        small = sample_deformable(x, self.offset_s(around), kernels, stride=stride)
        large = sample_deformable(x, self.offset_l(around), kernels + self.weight_diff, stride=stride, rate=_LARGE_RATE)
        mixed = share * small + (1 - share) * large
        result: Tensor = mixed + self.post_context(F.adaptive_avg_pool2d(mixed, 1))
        return result


def reflect(x: Tensor, margin: int) -> Tensor:
    """Pad all sides of [B, C, H, W] by reflection, again and again where the map is smaller than the margin."""
    if min(x.shape[-2:]) > margin:
        return F.pad(x, (margin,) * 4, mode="reflect")
    for dim in (2, 3):
        size = x.shape[dim]
        period = max(2 * (size - 1), 1)
        places = torch.arange(-margin, size + margin, device=x.device) % period
        x = x.index_select(dim, torch.minimum(places, period - places) if size > 1 else places * 0)
    return x


class SwitchableBottleneck(nn.Module):
    """ResNet's bottleneck of standardised convolutions; in a second pass it adds a fed-back feature.

    Args:
        inputs, planes, stride: as for `resnet.Bottleneck`.
        is_switchable: the 3x3 convolution is a SwitchableConv2d.
        feedback: channels of the fed-back feature; None for blocks that take none.
    """

    def __init__(self, inputs: int, planes: int, stride: int, *, is_switchable: bool, feedback: int | None) -> None:
        super().__init__()
        outputs = planes * EXPANSION
        self.conv1 = StandardisedConv2d(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2: nn.Module = (
            SwitchableConv2d(planes, stride) if is_switchable else StandardisedConv2d(planes, planes, 3, stride=stride)
        )
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = StandardisedConv2d(planes, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                StandardisedConv2d(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs)
            )
        self.rfp_conv: nn.Module | None = None
        if feedback is not None:
            self.rfp_conv = nn.Conv2d(feedback, outputs, 1)
            nn.init.zeros_(self.rfp_conv.weight)  # at the start, the second pass is the first (the paper, sec. 3.2)
            if self.rfp_conv.bias is not None:
                nn.init.zeros_(self.rfp_conv.bias)

    def forward(self, x: Tensor, fed_back: Tensor | None = None) -> Tensor:
        """Map [B, inputs, H, W] to [B, 4 * planes, H / stride, W / stride].

        Args:
            fed_back: [B, feedback, H / stride, W / stride], for blocks that take it.
        """
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out)) + shortcut
        if self.rfp_conv is not None and fed_back is not None:
            out = out + self.rfp_conv(fed_back)
        return F.relu(out, inplace=True)


class DetectorsResNet(nn.Module):
    """DetectoRS' ResNet-50 or -101: standardised convolutions, switchable ones in the stages of C3-C5.

    Args:
        config: its depth is read.
        feedback: channels of the fed-back pyramid, for the second pass.
    """

    def __init__(self, config: BackboneConfig, feedback: int | None = None) -> None:
        super().__init__()
        self.conv1 = StandardisedConv2d(3, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        stages = []
        inputs = 64
        for index, blocks in enumerate(BLOCKS[config.depth]):
            planes, is_later = 64 * 2**index, index > 0
            stage = [
                SwitchableBottleneck(
                    inputs if block == 0 else planes * EXPANSION,
                    planes,
                    2 if is_later and block == 0 else 1,
                    is_switchable=is_later,
                    feedback=feedback if is_later and block == 0 else None,
                )
                for block in range(blocks)
            ]
            stages.append(nn.ModuleList(stage))
            inputs = planes * EXPANSION
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(64 * 2**index * EXPANSION for index in range(4))

    def forward(self, pixels: Tensor, fed_back: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Map [B, 3, H, W] to the pixels themselves, which the neck needs for its second pass, and C2..C5.

        Args:
            fed_back: of the second pass, one of P2..P5's shapes each; C2's stage takes none.
        """
        x = F.relu(self.bn1(self.conv1(pixels)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        features = [pixels]
        for index, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            for block in stage:
                x = block(x, None if fed_back is None else fed_back[index])
            features.append(x)
        return features


class ASPP(nn.Module):
    """What is fed back of a level: three convolutions of other dilation rates and the map's mean, 64 channels each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.aspp = nn.ModuleList(
            nn.Conv2d(
                channels,
                _ASPP_CHANNELS,
                3 if dilation > 1 else 1,
                dilation=dilation,
                padding=dilation if dilation > 1 else 0,
            )
            for dilation in _ASPP_DILATIONS
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, 256, H, W]."""
        *local, whole = self.aspp
        branches = [F.relu(layer(x), inplace=True) for layer in local]
        mean = F.relu(whole(F.adaptive_avg_pool2d(x, 1)), inplace=True)
        return torch.cat([*branches, mean.expand_as(branches[0])], dim=1)


class RecursivePyramid(FPN):
    """The FPN of both passes, with the second pass's backbone (RFP, sec. 3).

    Args:
        inputs: channels of C2..C5.
        channels: channels of every P.
        config: of the second backbone.
    """

    def __init__(self, inputs: Sequence[int], channels: int, config: BackboneConfig) -> None:
        super().__init__(inputs, channels)
        self.rfp_modules = nn.ModuleList([DetectorsResNet(config, feedback=_ASPP_CHANNELS * len(_ASPP_DILATIONS))])
        self.rfp_aspp = ASPP(channels)
        self.rfp_weight = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.rfp_weight.weight)
        if self.rfp_weight.bias is not None:
            nn.init.zeros_(self.rfp_weight.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map the pixels and C2..C5 to P2..P6."""
        pixels, *first_features = features
        first = super().forward(first_features)
        fed_back = [first[0], *(self.rfp_aspp(level) for level in first[1:-1])]
        second = super().forward(self.rfp_modules[0](pixels, fed_back)[1:])
        mixed = []
        for old, new in zip(first, second, strict=True):
            share = torch.sigmoid(self.rfp_weight(new))
            mixed.append(share * new + (1 - share) * old)
        return mixed
