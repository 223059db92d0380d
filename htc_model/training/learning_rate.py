"""Learning rate schedules with warm-up."""

import math
from collections.abc import Sequence
from typing import Literal

ScheduleKind = Literal["step", "cosine"]

# Warm-up starts at a thousandth of the base rate (Detectron; MMDetection, LinearLR start_factor=0.001).
WARMUP_START = 0.001


def learning_rate_factor(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    kind: ScheduleKind,
    milestones: Sequence[float] = (2 / 3, 11 / 12),
    floor: float = 0.01,
) -> float:
    """Compute the factor of the base learning rate at one step.

    Args:
        step: in [0, steps).
        steps: number of steps of the run.
        warmup_steps: the factor rises linearly from `WARMUP_START` over this many steps.
        kind: "step" divides by ten at each milestone; "cosine" falls to `floor`.
        milestones: fractions of the run; 8 and 11 of 12 epochs in the published 1x schedule.
        floor: the cosine's last value.
    """
    if step < warmup_steps:
        return WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
    if kind == "step":
        return float(0.1 ** sum(step >= milestone * steps for milestone in milestones))
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
