"""Sampler: which of the assigned boxes a loss uses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from htc_model.training.matcher import BACKGROUND


@dataclass(frozen=True)
class SampleRule:
    """How many boxes of one image are sampled.

    count: positives and background together; None takes every box and uses no random numbers, for comparisons with
        another implementation.
    positive_fraction: at most this fraction of `count` are positives; background fills the rest.
    """

    count: int | None
    positive_fraction: float


@dataclass(frozen=True)
class Sample:
    """One image's sampled boxes, as ascending indices into the assigned ones.

    positives: [P] int64. negatives: [N] int64.
    """

    positives: Tensor
    negatives: Tensor

    @property
    def average_factor(self) -> int:
        """Divisor of the proposal losses; an empty set counts as one (MMDetection 3.3, SamplingResult)."""
        return max(len(self.positives), 1) + max(len(self.negatives), 1)


def sample_assigned(assigned: Tensor, rule: SampleRule, generator: torch.Generator | None = None) -> Sample:
    """Sample positives and background at random, positives first (Faster R-CNN, arXiv:1506.01497, sec. 3.1.3).

    Args:
        assigned: [N] int64 from `assign_boxes`.
        rule: the limits.
        generator: a CPU generator; None uses torch's global one. Not used when no box has to be left out.

    Returns:
        indices on `assigned`'s device.
    """
    positives = torch.nonzero(assigned >= 0).squeeze(1)
    negatives = torch.nonzero(assigned == BACKGROUND).squeeze(1)
    if rule.count is None:
        return Sample(positives, negatives)
    positives = _choose(positives, int(rule.count * rule.positive_fraction), generator)
    negatives = _choose(negatives, rule.count - len(positives), generator)
    return Sample(positives, negatives)


def _choose(indices: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    if len(indices) <= count:
        return indices
    # Sampled on the CPU whatever the device, so that the same seed chooses the same boxes everywhere.
    chosen = torch.randperm(len(indices), generator=generator)[:count].sort().values
    return indices[chosen.to(indices.device)]
