"""Counts the rows of runs for `htc drift`: one pass over few columns for all runs at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

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
_ALL_INSTANCES = """
SELECT run, sum(instances), sum(instances::HUGEINT * instances) FROM images WHERE {runs} AND status = 'ok' GROUP BY ALL
"""
_PER_IMAGE = """
SELECT run, n, count(*) FROM (
    SELECT run, image_id, count(*) AS n FROM instances WHERE {runs} AND score >= $min_score::FLOAT GROUP BY ALL
) GROUP BY ALL
"""
_SCORES = """
SELECT run, least(floor(score * {bins})::INTEGER, {bins} - 1) AS bin, count(*), sum(score::DECIMAL(10, 9))
FROM instances WHERE {runs} GROUP BY ALL
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
    `instance_histogram`. scores, areas: instances by bin. all_instances, all_squares: sum, and sum of squares, of all
    instances of each ok image. sum_score: of all instances; sum_area: of those that count, in pixels.
    """

    statuses: dict[str, int] = field(default_factory=dict)
    per_image: dict[int, int] = field(default_factory=dict)
    scores: dict[int, int] = field(default_factory=dict)
    areas: dict[int, int] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)
    all_instances: int = 0
    all_squares: int = 0
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
        """Return all instances by score."""
        counts = np.array([self.scores.get(place, 0) for place in range(SCORE_BINS)], float)
        return Histogram(counts, effective_size(self.all_instances, self.all_squares))

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
            all_instances=self.all_instances + other.all_instances,
            all_squares=self.all_squares + other.all_squares,
            sum_score=self.sum_score + other.sum_score,
            sum_area=self.sum_area + other.sum_area,
        )


def _merged(one: dict[K, int], other: dict[K, int]) -> dict[K, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


def count_runs(database: "duckdb.DuckDBPyConnection", runs: Sequence[str], min_score: float) -> dict[str, RunCounts]:
    """Count the committed rows of runs, from the views of `htc query`."""
    counts = {run: RunCounts() for run in runs}
    if not runs:
        return counts
    names = {f"run{place}": run for place, run in enumerate(runs)}
    chosen = f"run IN ({', '.join(f'${name}' for name in names)})"

    def rows(sql: str, **values: object) -> list[tuple]:  # type: ignore[type-arg]
        used = {name: value for name, value in {"min_score": min_score}.items() if f"${name}" in sql}
        return database.execute(sql.format(runs=chosen, **values), names | used).fetchall()

    for run, status, images in rows(_STATUSES):
        counts[run].statuses[status] = images
    for run, total, squares in rows(_ALL_INSTANCES):
        counts[run].all_instances, counts[run].all_squares = int(total or 0), int(squares or 0)
    for run, n, images in rows(_PER_IMAGE):
        counts[run].per_image[n] = images
    for run, place, number, total in rows(_SCORES, bins=SCORE_BINS):
        counts[run].scores[max(place, 0)] = number
        counts[run].sum_score += float(total)
    for run, place, number, total in rows(_AREAS, sides=list(AREA_SIDES)):
        counts[run].areas[max(place, 0)] = number
        counts[run].sum_area += int(total)
    for run, category, number in rows(_CATEGORIES):
        counts[run].categories[category] = number
    return counts
