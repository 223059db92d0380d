"""The images that have no result: how many for which reason, and which."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.results.browse.search import Search
from jobs.results.browse.tables import IMAGE_COLUMNS, Tables
from jobs.results.browse.work import Job

PAGE_IMAGES = 100
MOST_REASONS = 50


@dataclass(frozen=True)
class Failures:
    """A page of failed images.

    reasons: status, reason and number of images, the most frequent first, at most 50. images: rows with
    `IMAGE_COLUMNS`. next: where the next page begins, "" where there is none.
    """

    reasons: Sequence[tuple[str, str, int]]
    images: Sequence[dict[str, Any]]
    next: str


def find_failures(search: Search, reason: str, tables: Tables, *, job: Job) -> Failures:
    """Find the images of a run that are not ok.

    Args:
        search: its run, statuses, name and place count. reason: only images with this reason; "" for all.
    """
    # The view `current` has rows with the status ok only.
    run = tables.results.newest_run() if tables.is_current(search.run) else search.run
    values = {"run": run, "name": search.name, "after": search.after, "reason": reason, "limit": PAGE_IMAGES + 1}
    values |= {f"status_{place}": status for place, status in enumerate(search.statuses)}
    chosen = ", ".join(f"$status_{place}" for place in range(len(search.statuses)))
    conditions = ["run = $run", "status <> 'ok'"]
    conditions += [f"status IN ({chosen})"] if chosen else []
    conditions += ["contains(lower(uri), lower($name))"] if search.name else []
    every = " AND ".join(conditions)
    counts = f"""
        SELECT status, coalesce(error, ''), count(*) FROM images WHERE {every}
        GROUP BY ALL ORDER BY 3 DESC, 1, 2 LIMIT {MOST_REASONS}
    """  # noqa: S608 - our own conditions
    reasons = [(str(row[0]), str(row[1]), int(row[2])) for row in tables.ask(counts, values, job=job, rows=100).rows]
    conditions += ["coalesce(error, '') = $reason"] if reason else []
    conditions += ["uri > $after"] if search.after else []
    sql = f"""
        SELECT {", ".join(IMAGE_COLUMNS)} FROM images WHERE {" AND ".join(conditions)} ORDER BY uri LIMIT $limit
    """  # noqa: S608 - our own conditions
    rows = tables.images(sql, values, job=job, rows=PAGE_IMAGES + 1)
    has_more = len(rows) > PAGE_IMAGES
    return Failures(reasons, rows[:PAGE_IMAGES], str(rows[PAGE_IMAGES - 1]["uri"]) if has_more else "")
