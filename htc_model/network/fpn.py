"""Feature pyramid network (FPN, arXiv:1612.03144): C2..C5 in, P2..P6 out."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32, 64)


class ConvModule(nn.Module):
    """A convolution with bias named `conv`, as in the published checkpoints, then an optional ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, has_relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.has_relu = has_relu

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H, W]."""
        x = self.conv(x)
        return F.relu(x, inplace=True) if self.has_relu else x


class FPN(nn.Module):
    """Top-down pyramid with nearest upsampling; P6 is P5 at every second pixel.

    Args:
        inputs: channels of C2..C5.
        channels: channels of every P.
    """

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(c, channels, 1, has_relu=False) for c in inputs)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3, has_relu=False) for _ in inputs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map C2..C5 to P2..P6, all [B, channels, H / stride, W / stride]."""
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, features, strict=True)]
        for lower in range(len(merged) - 2, -1, -1):
            size = merged[lower].shape[-2:]
            merged[lower] = merged[lower] + F.interpolate(merged[lower + 1], size=size, mode="nearest")
        pyramid = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=True)]
        pyramid.append(F.max_pool2d(pyramid[-1], 1, stride=2))
        return pyramid
