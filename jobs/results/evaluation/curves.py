"""Precision over recall, and the score at which a run is best used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from htc_model.training.coco_engines import CocoTable
from jobs.results.evaluation.matching import Matching
from jobs.results.evaluation.overlaps import Overlaps

# COCOeval's IoU thresholds, 0.5 to 0.95: the curves that are drawn, by their index; None is the mean of all ten.
CURVES: Mapping[str, int | None] = {"0.50": 0, "0.75": 5, "0.50:0.95": None}
RECALLS = tuple(number / 100 for number in range(101))


@dataclass(frozen=True)
class BestScore:
    """The score above which detections are best kept: where F1 of all categories together is largest, at IoU 0.5.

    score: keep detections that score at least this. precision, recall, f1: of those, in [0, 1].
    """

    score: float
    precision: float
    recall: float
    f1: float

    def to_dict(self) -> dict[str, float]:
        """Return JSON-able values."""
        return {"score": self.score, "precision": self.precision, "recall": self.recall, "F1": self.f1}


@dataclass(frozen=True)
class Curves:
    """Precision at the recalls 0, 0.01 … 1.

    mean: by IoU threshold, [101] the mean over the categories that have objects. by_category: [C, 101] at an IoU of
    0.5; -1 for a category without objects. best: None without a right detection.
    """

    mean: Mapping[str, NDArray[np.float64]]
    by_category: NDArray[np.float64]
    best: BestScore | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values: the means, rounded to six digits."""
        return {
            "recall": list(RECALLS),
            "precision": {name: [round(float(value), 6) for value in values] for name, values in self.mean.items()},
            "best": None if self.best is None else self.best.to_dict(),
        }


def read_curves(table: CocoTable, best: BestScore | None) -> Curves:
    """Take the curves of all sizes and at most 100 detections from what the engine computed."""
    precision = table.precision[:, :, :, 0, -1]
    is_scored = precision[0, 0] > -1
    scored = precision[:, :, is_scored]
    mean = {}
    for name, index in CURVES.items():
        values = scored.mean(axis=0) if index is None else scored[index]
        mean[name] = values.mean(axis=1) if values.shape[1] else np.zeros(len(RECALLS))
    return Curves(mean, precision[0].T, best)


def find_best_score(overlaps: Overlaps, matching: Matching) -> BestScore | None:
    """Find the score with the largest F1; of several the highest."""
    order = overlaps.by_score
    order = order[(matching.object_of[order] >= 0) | matching.is_false[order]]
    scores = overlaps.det_score[order]
    right = np.cumsum(matching.object_of[order] >= 0)
    objects = len(overlaps.obj_label)
    if not len(order) or not right[-1]:
        return None
    # Detections of one score are kept or left out together.
    is_last = np.append(scores[1:] != scores[:-1], True)
    f1 = np.where(is_last, 2 * right / (np.arange(1, len(order) + 1) + objects), -1.0)
    place = int(np.argmax(f1))
    return BestScore(
        float(scores[place]), float(right[place] / (place + 1)), float(right[place] / objects), float(f1[place])
    )
