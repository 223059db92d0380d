"""Drift: the runs of an output one by one, and how far each is from those before it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How far a measure of a run is from its reference.

    ALARM, SHIFT: the index is at least `ALARM_PSI` or `SHIFT_PSI`, and chance does not explain it. UNCLEAR: it is at
    least `SHIFT_PSI`, and with so few images chance may explain it. STABLE: it is less. NONE: there is no reference, or
    there are too few images.
    """

    NONE = "none"
    STABLE = "stable"
    UNCLEAR = "unclear"
    SHIFT = "shift"
    ALARM = "alarm"


SEVERITY = tuple(Level)
"""From the least to the most severe."""


@dataclass(frozen=True)
class MeasureDrift:
    """One measure of a run beside its reference.

    measure: "outcomes", "instances", "scores", "areas" or "categories". psi: the population stability index. chance:
    the index that chance alone exceeds with the probability `ALPHA`; None where nothing is compared, or where there are
    too few for two bins. bins: labels.
    shares, reference: [bins], each sums to 1; reference is empty where there is none.
    """

    measure: str
    level: Level
    psi: float | None
    chance: float | None
    bins: tuple[str, ...]
    shares: tuple[float, ...]
    reference: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "measure": self.measure,
            "level": self.level.value,
            "psi": self.psi,
            "chance": self.chance,
            "bins": [*self.bins],
            "shares": [*self.shares],
            "reference": [*self.reference],
        }


@dataclass(frozen=True)
class MeasuredRun:
    """One run: what it processed itself.

    created: UTC, ISO 8601. images, ok: its rows, and those with the status ok. instances: those that score at least
    `Drift.min_score`. per_image: of them, per image that is ok. mean_score, mean_area: of them; the area in pixels.
    reference: names of the runs that it is compared with. note: why it is not compared, or what its numbers
    mean; may be empty.
    """

    run: str
    created: str
    model: str
    mode: str
    is_complete: bool
    images: int
    ok: int
    instances: int
    per_image: float | None
    mean_score: float | None
    mean_area: float | None
    reference: tuple[str, ...]
    measures: tuple[MeasureDrift, ...]
    note: str = ""

    @property
    def level(self) -> Level:
        """The most severe level of the measures."""
        return max((each.level for each in self.measures), key=SEVERITY.index, default=Level.NONE)

    def exceeding(self, psi: float) -> list[MeasureDrift]:
        """Return the measures whose index is above `psi`, and not explained by chance."""
        return [
            each
            for each in self.measures
            if each.psi is not None and each.chance is not None and each.psi > max(psi, each.chance)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        names = ("run", "created", "model", "mode", "is_complete", "images", "ok", "instances")
        means = ("per_image", "mean_score", "mean_area")
        return {
            **{name: getattr(self, name) for name in names + means},
            "level": self.level.value,
            "reference": [*self.reference],
            "measures": [each.to_dict() for each in self.measures],
            "note": self.note,
        }


@dataclass(frozen=True)
class Drift:
    """The runs, oldest first.

    min_score: instances that score less do not count. score_threshold: the highest of the runs and their references;
    of all of them, the scores from here are compared. baseline: the run that all are compared with; None when each is
    compared with the runs before it. notes: sentences on what the numbers mean.
    """

    output: str
    min_score: float
    score_threshold: float
    baseline: str | None
    runs: tuple[MeasuredRun, ...]
    notes: tuple[str, ...] = ()

    @property
    def newest(self) -> MeasuredRun | None:
        """The newest measured run."""
        return self.runs[-1] if self.runs else None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "output": self.output,
            "min_score": self.min_score,
            "score_threshold": self.score_threshold,
            "baseline": self.baseline,
            "runs": [each.to_dict() for each in self.runs],
            "notes": [*self.notes],
        }
