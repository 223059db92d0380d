"""Counts the rows of runs for `htc drift`: one pass over few columns for all runs at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jobs.results.drift.stability import Histogram, effective_size

if TYPE_CHECKING:
    import duckdb

K = TypeVar("K")
OK = "ok"
# Lower ends of the bins of instances an image; the last one is open.
INSTANCE_BINS = (0, 1, 2, 3, 5, 9, 17, 33)
SCORE_BINS = 10
# Sides in pixels of a square of the same area; 32 and 96 divide COCO's small, medium and large.
AREA_SIDES = (0, 16, 32, 64, 96, 192, 384)

INSTANCE_LABELS = tuple(
    f"{low}" if high == low + 1 else f"{low}-{high - 1}" if high else f"{low}+"
    for low, high in zip(INSTANCE_BINS, (*INSTANCE_BINS[1:], 0), strict=True)
)
SCORE_LABELS = tuple(f"{place / SCORE_BINS:.1f}-{(place + 1) / SCORE_BINS:.1f}" for place in range(SCORE_BINS))
AREA_LABELS = tuple(
    f"{low}^2-{high}^2" if high else f"{low}^2+" for low, high in zip(AREA_SIDES, (*AREA_SIDES[1:], 0), strict=True)
)

_STATUSES = "SELECT run, status, count(*) FROM images WHERE {runs} GROUP BY ALL"
_PER_IMAGE = """
SELECT run, n, count(*), sum(cut), sum(cut::HUGEINT * cut) FROM (
    SELECT run, image_id, count(*) AS cut, count(*) FILTER (score >= $min_score::FLOAT) AS n
    FROM instances WHERE {runs} AND score >= $score_threshold::FLOAT GROUP BY ALL
) GROUP BY ALL
"""
_SCORES = """
SELECT run, least(floor(score * {bins})::INTEGER, {bins} - 1) AS bin, count(*),
    sum(score::DECIMAL(10, 9)) FILTER (score >= $min_score::FLOAT)
FROM instances WHERE {runs} AND score >= $score_threshold::FLOAT GROUP BY ALL
"""
# Sums are of whole and decimal numbers, whose order does not matter. Without masks there is no area but the box's.
_AREAS = """
SELECT run, list_sum([(area >= side * side)::INTEGER FOR side IN {sides}])::INTEGER - 1 AS bin, count(*), sum(area)
FROM (
    SELECT run, coalesce(area, round(bbox.width::DOUBLE * bbox.height))::BIGINT AS area
    FROM instances WHERE {runs} AND score >= $min_score::FLOAT
) GROUP BY ALL
"""
_CATEGORIES = "SELECT run, category, count(*) FROM instances WHERE {runs} AND score >= $min_score::FLOAT GROUP BY ALL"


@dataclass
class RunCounts:
    """What was counted of one run, or of several together.

    statuses: images by status. per_image: images by the number of instances that count; of those without any see
    `instance_histogram`. scores: instances of the common score threshold by bin; areas: those that count by bin.
    scored, scored_squares: sum, and sum of squares, over images of the instances of the common score threshold.
    sum_score, sum_area: of those that count; the area in pixels.
    """

    statuses: dict[str, int] = field(default_factory=dict)
    per_image: dict[int, int] = field(default_factory=dict)
    scores: dict[int, int] = field(default_factory=dict)
    areas: dict[int, int] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)
    scored: int = 0
    scored_squares: int = 0
    sum_score: float = 0.0
    sum_area: int = 0

    @property
    def images(self) -> int:
        """Rows of `images`."""
        return sum(self.statuses.values())

    @property
    def ok(self) -> int:
        """Images with the status ok."""
        return self.statuses.get(OK, 0)

    @property
    def instances(self) -> int:
        """Instances that count."""
        return sum(self.categories.values())

    def outcome_histogram(self, statuses: Sequence[str]) -> Histogram:
        """Return the images by status."""
        return Histogram(np.array([self.statuses.get(each, 0) for each in statuses], float), self.images)

    def instance_histogram(self) -> Histogram:
        """Return the ok images by the number of their instances that count, in INSTANCE_BINS."""
        counts = np.zeros(len(INSTANCE_BINS))
        for n, images in self.per_image.items():
            counts[np.searchsorted(INSTANCE_BINS, n, side="right") - 1] += images
        counts[0] = self.ok - counts[1:].sum()
        return Histogram(counts, self.ok)

    def score_histogram(self) -> Histogram:
        """Return the instances of the common score threshold by score."""
        counts = np.array([self.scores.get(place, 0) for place in range(SCORE_BINS)], float)
        return Histogram(counts, effective_size(self.scored, self.scored_squares))

    def area_histogram(self) -> Histogram:
        """Return the instances that count by area, in AREA_SIDES."""
        counts = np.array([self.areas.get(place, 0) for place in range(len(AREA_SIDES))], float)
        return Histogram(counts, self._effective)

    def category_histogram(self, categories: Sequence[str]) -> Histogram:
        """Return the instances that count by category."""
        return Histogram(np.array([self.categories.get(each, 0) for each in categories], float), self._effective)

    @property
    def _effective(self) -> float:
        squares = sum(n * n * images for n, images in self.per_image.items())
        return effective_size(self.instances, squares)

    def __add__(self, other: "RunCounts") -> "RunCounts":
        return RunCounts(
            statuses=_merged(self.statuses, other.statuses),
            per_image=_merged(self.per_image, other.per_image),
            scores=_merged(self.scores, other.scores),
            areas=_merged(self.areas, other.areas),
            categories=_merged(self.categories, other.categories),
            scored=self.scored + other.scored,
            scored_squares=self.scored_squares + other.scored_squares,
            sum_score=self.sum_score + other.sum_score,
            sum_area=self.sum_area + other.sum_area,
        )


def _merged(one: dict[K, int], other: dict[K, int]) -> dict[K, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


def count_images(database: "duckdb.DuckDBPyConnection", runs: Sequence[str]) -> dict[str, RunCounts]:
    """Count the committed images of runs by status, from the views of `htc query`."""
    counts = {run: RunCounts() for run in runs}
    for run, status, images in _rows(database, _STATUSES, runs):
        counts[run].statuses[status] = images
    return counts


def count_instances(
    database: "duckdb.DuckDBPyConnection",
    counts: Mapping[str, RunCounts],
    runs: Sequence[str],
    score_threshold: float,
    min_score: float,
) -> None:
    """Add the committed instances of runs to their counts.

    Args:
        score_threshold: instances that score less are left out altogether; the same for all runs, so that one with a
            lower threshold of its own is no other run for it.
        min_score: from this score instances count; at least `score_threshold`.
    """
    cut, least = {"score_threshold": score_threshold}, {"min_score": min_score}
    for run, n, images, scored, squares in _rows(database, _PER_IMAGE, runs, cut | least):
        if n:
            counts[run].per_image[n] = images
        counts[run].scored += int(scored)
        counts[run].scored_squares += int(squares)
    for run, place, number, total in _rows(database, _SCORES, runs, cut | least, bins=SCORE_BINS):
        counts[run].scores[max(place, 0)] = number
        counts[run].sum_score += float(total or 0)
    for run, place, number, total in _rows(database, _AREAS, runs, least, sides=list(AREA_SIDES)):
        counts[run].areas[max(place, 0)] = number
        counts[run].sum_area += int(total)
    for run, category, number in _rows(database, _CATEGORIES, runs, least):
        counts[run].categories[category] = number


def _rows(
    database: "duckdb.DuckDBPyConnection",
    sql: str,
    runs: Sequence[str],
    values: Mapping[str, float] | None = None,
    **parts: object,
) -> list[tuple[Any, ...]]:
    """Return the answer to a question about runs."""
    if not runs:
        return []
    names = {f"run{place}": run for place, run in enumerate(runs)}
    chosen = f"run IN ({', '.join(f'${name}' for name in names)})"
    return database.execute(sql.format(runs=chosen, **parts), {**names, **(values or {})}).fetchall()
