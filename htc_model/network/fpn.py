"""Feature pyramid network (FPN, arXiv:1612.03144): C2..C5 in, P2..P6 out; with PANet's bottom-up path."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from htc_model.network.norms import GroupNorm

STRIDES = (4, 8, 16, 32, 64)


class ConvModule(nn.Module):
    """A convolution named `conv`, as in the published checkpoints, then an optional group norm `gn` and ReLU.

    Args:
        kernel: 1 or 3.
        has_norm: a group norm follows, and the convolution has no bias.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        has_relu: bool = True,
        has_norm: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=not has_norm)
        self.gn = GroupNorm(outputs) if has_norm else None
        self.has_relu = has_relu

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        x = self.conv(x)
        if self.gn is not None:
            x = self.gn(x)
        return F.relu(x, inplace=True) if self.has_relu else x


class FPN(nn.Module):
    """Top-down pyramid with nearest upsampling; P6 is P5 at every second pixel.

    Args:
        inputs: channels of C2..C5.
        channels: channels of every P.
        has_norm: group norms follow the convolutions.
    """

    def __init__(self, inputs: Sequence[int], channels: int, *, has_norm: bool = False) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(
            ConvModule(c, channels, 1, has_relu=False, has_norm=has_norm) for c in inputs
        )
        self.fpn_convs = nn.ModuleList(
            ConvModule(channels, channels, 3, has_relu=False, has_norm=has_norm) for _ in inputs
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map C2..C5 to P2..P6, all [B, channels, H / stride, W / stride]."""
        return with_p6(self.top_down(features))

    def top_down(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map C2..C5 to P2..P5."""
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, features, strict=True)]
        for lower in range(len(merged) - 2, -1, -1):
            size = merged[lower].shape[-2:]
            merged[lower] = merged[lower] + F.interpolate(merged[lower + 1], size=size, mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=True)]


class PAFPN(FPN):
    """`FPN` followed by a path from fine to coarse levels (PANet, arXiv:1803.01534, sec. 3.1).

    The paper has ReLUs after both kinds of convolution; the published configs, and so this, have none.
    """

    def __init__(self, inputs: Sequence[int], channels: int, *, has_norm: bool = False) -> None:
        super().__init__(inputs, channels, has_norm=has_norm)
        self.downsample_convs = nn.ModuleList(
            ConvModule(channels, channels, 3, stride=2, has_relu=False, has_norm=has_norm) for _ in inputs[1:]
        )
        self.pafpn_convs = nn.ModuleList(
            ConvModule(channels, channels, 3, has_relu=False, has_norm=has_norm) for _ in inputs[1:]
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map C2..C5 to N2..N6, of the shapes of P2..P6; N2 is P2."""
        finer, *others = self.top_down(features)
        summed = [finer]
        for downsample, x in zip(self.downsample_convs, others, strict=True):
            summed.append(x + downsample(summed[-1]))
        return with_p6([finer, *(conv(x) for conv, x in zip(self.pafpn_convs, summed[1:], strict=True))])


def with_p6(pyramid: list[Tensor]) -> list[Tensor]:
    """Append the next coarser level: the last one at every second pixel."""
    return [*pyramid, F.max_pool2d(pyramid[-1], 1, stride=2)]
