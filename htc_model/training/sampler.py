"""Which of the assigned boxes a loss looks at."""

from dataclasses import dataclass

import torch
from torch import Tensor

from htc_model.training.matcher import BACKGROUND


@dataclass(frozen=True)
class SampleRule:
    """How many boxes of one image count.

    count: objects and background together; None takes every box, which is what a comparison with another
        implementation needs: no random numbers are drawn.
    positive_fraction: at most this part of `count` are objects; background fills the rest.
    """

    count: int | None
    positive_fraction: float


@dataclass(frozen=True)
class Sample:
    """One image's chosen boxes, as ascending indices into the assigned ones.

    positives: [P] int64. negatives: [N] int64.
    """

    positives: Tensor
    negatives: Tensor

    @property
    def average_factor(self) -> int:
        """Divisor of the proposal losses; an empty side counts as one (MMDetection 3.3, SamplingResult)."""
        return max(len(self.positives), 1) + max(len(self.negatives), 1)


def sample_assigned(assigned: Tensor, rule: SampleRule, generator: torch.Generator | None = None) -> Sample:
    """Choose objects and background at random, objects first (Faster R-CNN, arXiv:1506.01497, sec. 3.1.3).

    Args:
        assigned: [N] int64 from `assign_boxes`.
        rule: the caps.
        generator: of the CPU; None uses torch's global one. Not touched when nothing has to be left out.

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
    # Drawn on the CPU whatever the device: the same seed then chooses the same boxes everywhere.
    chosen = torch.randperm(len(indices), generator=generator)[:count].sort().values
    return indices[chosen.to(indices.device)]
