"""Batch norms with the statistics of all processes' images (SyncBN, arXiv:1711.07240, sec. 3.2).

torch's own `SyncBatchNorm` runs on GPUs only; this one runs wherever torch.distributed does.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.nn import functional as exchange

from htc_model.training.distributed import world_size


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that, in training, normalises by the mean and variance over all processes.

    Args:
        norm: the one that it replaces; parameters, statistics and activation (timm's norms include one) are shared.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        activation: Any = getattr(norm, "act", None)
        self.act: nn.Module = activation if isinstance(activation, nn.Module) else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape; the processes may have different numbers of pixels."""
        normed = super().forward(input) if not self.training or world_size() == 1 else self._normalise(input)
        activated: Tensor = self.act(normed)
        return activated

    def _normalise(self, x: Tensor) -> Tensor:
        values = x.float()
        count = values.new_tensor([values.numel() / self.num_features])
        totals = _sum(torch.cat([values.sum(dim=(0, 2, 3)), count]))
        mean, pixels = totals[:-1] / totals[-1], totals[-1].detach()
        centred = values - mean[:, None, None]
        # From the centred values, in a second exchange: the difference of large sums would lose digits.
        variance = _sum(centred.square().sum(dim=(0, 2, 3))) / pixels
        self._remember(mean.detach(), variance.detach() * pixels / (pixels - 1).clamp(min=1))
        scale = self.weight * (variance + self.eps).rsqrt()
        normed: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normed.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        momentum = 0.1 if self.momentum is None else self.momentum
        for stored, new in ((self.running_mean, mean), (self.running_var, variance)):
            if stored is not None:
                stored.lerp_(new.to(stored.dtype), momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def _sum(values: Tensor) -> Tensor:
    """Add up over all processes, with gradients."""
    total: Tensor = exchange.all_reduce(values)  # type: ignore[no-untyped-call]
    return total


def synchronise_batch_norms(module: nn.Module) -> None:
    """Replace every batch norm below a module, keeping its name and its state's keys."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, SynchronisedBatchNorm2d(child))
        else:
            synchronise_batch_norms(child)
