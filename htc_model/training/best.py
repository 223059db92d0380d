"""Which evaluation of a training run has the best score."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BestEvaluation:
    """The evaluation with the best score: the first one, where several are equal.

    score: see `selection_score`. evaluations_since: how many came after it.
    """

    score: float
    step: int
    epoch: int
    evaluations_since: int


def selection_score(evaluation: Mapping[str, Mapping[str, float]]) -> float | None:
    """Return the score by which weights are chosen: mask AP, box AP without masks; the mean over several data sets.

    Returns:
        in [0, 1]; None where nothing could be scored.
    """
    scores = [
        found
        for scored in evaluation.values()
        if (found := next((scored[name] for name in ("mask_ap", "box_ap") if name in scored), -1.0)) >= 0
    ]
    return sum(scores) / len(scores) if scores else None


def find_best(lines: Iterable[Mapping[str, Any]]) -> BestEvaluation | None:
    """Find the best evaluation in lines of metrics; None if nothing was scored."""
    best: BestEvaluation | None = None
    since = 0
    for line in lines:
        score = selection_score(line.get("evaluation") or {})
        if score is None:
            continue
        since += 1
        if best is None or score > best.score:
            best, since = BestEvaluation(score, line["step"], line["epoch"], 0), 0
    return None if best is None else BestEvaluation(best.score, best.step, best.epoch, since)
