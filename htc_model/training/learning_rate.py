"""Learning rate schedules with warm-up."""

import math
from collections.abc import Sequence
from typing import Literal

ScheduleKind = Literal["step", "cosine", "flat"]

# Warm-up starts at a thousandth of the base rate (Detectron; MMDetection, LinearLR start_factor=0.001).
WARMUP_START = 0.001
# The share of the epochs over which the flat schedule falls; 10 to 20 % are enough (Hägele et al., Scaling Laws and
# Compute-Optimal Training Beyond Fixed Training Durations, arXiv:2405.18392, section 4).
COOLDOWN_SHARE = 0.2


def cooldown_start(epochs: int, per_epoch: int) -> int:
    """Return the step at which the flat schedule begins to fall: 0 with a single epoch, else the start of an epoch."""
    return (epochs - max(1, round(COOLDOWN_SHARE * epochs))) * per_epoch


def learning_rate_factor(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    kind: ScheduleKind,
    milestones: Sequence[float] = (2 / 3, 11 / 12),
    floor: float = 0.01,
    falls_from: int = 0,
) -> float:
    """Compute the factor of the base learning rate at one step.

    Args:
        step: in [0, steps).
        steps: number of steps of the run.
        warmup_steps: the factor rises linearly from `WARMUP_START` over this many steps.
        kind: "step" divides by ten at each milestone; "cosine" falls to `floor`; "flat" is constant and falls at the
            end, by the square root of the steps (arXiv:2405.18392, eq. 1). Until it falls, it does not depend on the
            number of steps: a run can be given more epochs later, and equals one that had them from the start.
        milestones: fractions of the run; 8 and 11 of 12 epochs in the published 1x schedule.
        floor: the last value of "cosine" and "flat".
        falls_from: the step from which "flat" falls, see `cooldown_start`.
    """
    if step < warmup_steps:
        return WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
    if kind == "step":
        return float(0.1 ** sum(step >= milestone * steps for milestone in milestones))
    if kind == "flat":
        share = max(step - falls_from, 0) / max(steps - falls_from, 1)
        return floor + (1 - floor) * (1 - math.sqrt(share))
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
