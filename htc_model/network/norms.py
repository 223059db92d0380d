"""Replaces a backbone's batch norms by group norms, for training from scratch with small batches."""

from math import gcd
from typing import Any

from torch import Tensor, nn

# arXiv:1803.08494, sec. 3.1. Widths that 32 does not divide (Lite0's 24 or 40) take their greatest common divisor.
_GROUPS = 32


class ActivatedGroupNorm(nn.GroupNorm):
    """Group norm followed by the activation of the norm that it replaces (timm's norms include activations)."""

    def __init__(self, groups: int, channels: int, activation: nn.Module) -> None:
        super().__init__(groups, channels)
        self.act = activation

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape, with statistics per image."""
        activated: Tensor = self.act(super().forward(input))
        return activated


def use_group_norm(backbone: nn.Module) -> None:
    """Replace every batch norm of a backbone, keeping its name; scales start at 1 and shifts at 0."""
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _group_norm(child))


def _group_norm(norm: nn.BatchNorm2d) -> nn.GroupNorm:
    channels = norm.num_features
    activation: Any = getattr(norm, "act", None)
    if isinstance(activation, nn.Module):
        return ActivatedGroupNorm(gcd(_GROUPS, channels), channels, activation)
    return nn.GroupNorm(gcd(_GROUPS, channels), channels)
