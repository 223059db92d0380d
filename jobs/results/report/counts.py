"""What the tables of a run add up to: outcomes, failures, categories, scores and sizes, by a few queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

SCORE_BINS = 20
# Sides of a square with the instance's area, in pixels; COCO calls objects below 32 small and from 96 on large.
SIDE_EDGES = (0, 8, 16, 32, 64, 96, 128, 256, 512, 1024)
SMALL_SIDE, LARGE_SIDE = 32, 96
CONFIDENT = 0.5
MAX_REASONS = 20
MAX_CATEGORIES = 500
EXAMPLES = 3

_STATUSES = "SELECT status, count(*) FROM images WHERE run = $run GROUP BY status ORDER BY count(*) DESC, status"
# Reasons that differ in numbers only are one; `error` may be null in tables that other programs wrote.
_REASONS = f"""
    SELECT status, regexp_replace(coalesce(error, ''), '[0-9]+', '…', 'g') AS pattern, count(*) AS images,
        count(DISTINCT error) AS wordings, min(error) AS wording, arg_min(uri, md5(uri), {EXAMPLES}) AS examples
    FROM images WHERE run = $run AND status <> 'ok'
    GROUP BY ALL ORDER BY images DESC, pattern LIMIT {MAX_REASONS + 1}
"""  # noqa: S608 - our own numbers
_DIMENSIONS = """
    SELECT min(width), min(height), max(width), max(height), median(width::BIGINT * height) / 1e6
    FROM images WHERE run = $run AND width IS NOT NULL
"""
_CATEGORIES = f"""
    SELECT category, count(*) AS instances, count(DISTINCT image_id) AS images, avg(score) AS mean_score,
        count(*) FILTER (score >= {CONFIDENT}) AS confident
    FROM instances WHERE run = $run GROUP BY category ORDER BY instances DESC, category
"""  # noqa: S608 - our own number
# Box-only models write no area.
_AREA = "coalesce(area, bbox.width::DOUBLE * bbox.height)"
_SCORES = f"""
    SELECT least(floor(score * {SCORE_BINS})::INTEGER, {SCORE_BINS - 1}) AS bin, count(*)
    FROM instances WHERE run = $run AND isfinite(score) AND score BETWEEN 0 AND 1 GROUP BY bin
"""  # noqa: S608 - our own numbers
_SIDE = " + ".join(f"(side >= {edge})::INTEGER" for edge in SIDE_EDGES[1:])
_SIDES = f"""
    SELECT {_SIDE} AS bin, count(*) FROM (
        SELECT sqrt(greatest({_AREA}, 0)) AS side FROM instances WHERE run = $run
    ) WHERE isfinite(side) GROUP BY bin
"""  # noqa: S608 - our own numbers
_SHARDS = "SELECT shard, count(*) FROM images WHERE run = $run GROUP BY shard"


@dataclass(frozen=True)
class Reason:
    """Why images failed: their status, the reason (numbers that differ are "…"), how many, and the URIs of some."""

    status: str
    reason: str
    images: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Category:
    """A category: its instances, the images with one, the mean score in [0, 1], instances that score at least 0.5."""

    name: str
    instances: int
    images: int
    mean_score: float | None
    confident: int


@dataclass(frozen=True)
class RunCounts:
    """What the committed rows of a run add up to.

    statuses: images by status, the most frequent first. reasons: the most frequent; has_more_reasons: whether there are
    others. dimensions: smallest width and height, largest, median of megapixels; None without a decoded image.
    categories: the most frequent first. scores: instances in equal parts of [0, 1], [SCORE_BINS]. sides: instances by
    the side of a square of their area, [SIDE_EDGES]. images_of_shard: by shard.
    """

    statuses: dict[str, int]
    reasons: tuple[Reason, ...]
    has_more_reasons: bool
    dimensions: tuple[int, int, int, int, float] | None
    categories: tuple[Category, ...]
    scores: tuple[int, ...]
    sides: tuple[int, ...]
    images_of_shard: dict[int, int]

    @property
    def images(self) -> int:
        """Images that have their row."""
        return sum(self.statuses.values())

    @property
    def instances(self) -> int:
        """Rows of `instances`."""
        return sum(category.instances for category in self.categories)

    @property
    def confident(self) -> int:
        """Instances that score at least 0.5."""
        return sum(category.confident for category in self.categories)


def count_run(database: "duckdb.DuckDBPyConnection", run: str) -> RunCounts:
    """Count the rows of a run in the views of `htc query`."""

    def ask(sql: str) -> list[tuple[Any, ...]]:
        return database.execute(sql, {"run": run}).fetchall()

    reasons = [_reason(row) for row in ask(_REASONS)]
    dimensions = ask(_DIMENSIONS)[0]
    return RunCounts(
        statuses=dict(ask(_STATUSES)),
        reasons=tuple(reasons[:MAX_REASONS]),
        has_more_reasons=len(reasons) > MAX_REASONS,
        dimensions=None if dimensions[0] is None else dimensions,
        categories=tuple(Category(*row) for row in ask(_CATEGORIES)),
        scores=_filled(ask(_SCORES), SCORE_BINS),
        sides=_filled(ask(_SIDES), len(SIDE_EDGES)),
        images_of_shard=dict(ask(_SHARDS)),
    )


def _reason(row: tuple[Any, ...]) -> Reason:
    status, pattern, images, wordings, wording, examples = row
    reason = (wording if wordings == 1 and wording else pattern) or "no reason given"
    return Reason(status, reason, images, tuple(examples))


def _filled(rows: Sequence[tuple[Any, ...]], length: int) -> tuple[int, ...]:
    counts = dict(rows)
    return tuple(int(counts.get(place, 0)) for place in range(length))
