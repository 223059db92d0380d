"""What changed between two runs: the images that did, page by page, and the comparison of `htc diff` for these."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.results.browse.search import Search
from jobs.results.browse.tables import Tables
from jobs.results.browse.work import Job
from jobs.results.diff import ChangedImage, Diff, DiffRules, Kind, diff_runs
from jobs.results.diff.rules import ImageFate
from pipeline.errors import HtcError

PAGE_IMAGES = 24
# Images whose rows differ at all, of which the instances are compared at once.
SCANNED_IMAGES = 96
# A page ends after this, even when few images differ by more than the limits.
SCAN_S = 5.0
WINDOW_IMAGES = 20_000
MIN_SCORE = DiffRules().min_score
_NOT_COMPARED = {
    ImageFate.CONTENT_CHANGED: "Another picture: not compared. The file was replaced between the two runs.",
    ImageFate.SIZE_CHANGED: "The picture has another size in each run: not compared.",
    ImageFate.CARRIED_OVER: "The same row of the same run: nothing was done again.",
    ImageFate.OUTCOME_CHANGED: "One of the runs has no result of this image: not compared.",
    ImageFate.NOT_OK: "Neither run has a result of this image: not compared.",
}
CHANGES = tuple(kind for kind in Kind if kind is not Kind.SAME)


@dataclass(frozen=True)
class Changes:
    """A page of images that differ between two runs.

    images: rows with `uri`, `status_a`, `status_b`, `instances_a`, `instances_b`, `shard_a`, `shard_b` (None where a
        run has no such image), `version_changed` (whether it is another picture, whose instances are not compared),
        and `counts`: instances by kind of change.
    next: where the next page begins, "" where there is none. note: why `counts` are missing, "" when they are not.
    """

    images: Sequence[dict[str, Any]]
    next: str
    note: str = ""


def find_changes(run_a: str, search: Search, tables: Tables, *, job: Job, is_all: bool = False) -> Changes:
    """Find the images of a page that differ, and compare their instances.

    Args:
        run_a: the run before; the search's run is the one after.
        is_all: also images whose changes are within the limits of `htc diff`, or among instances with low scores.
    """
    shown: list[dict[str, Any]] = []
    began, place = time.monotonic(), search
    while True:
        rows = _differing(run_a, place, tables, job)
        has_more = len(rows) > SCANNED_IMAGES
        rows = rows[:SCANNED_IMAGES]
        note = _compare(run_a, search.run, rows, tables)
        shown += [row for row in rows if is_all or note or _is_shown(row)]
        if len(shown) > PAGE_IMAGES:
            return Changes(shown[:PAGE_IMAGES], shown[PAGE_IMAGES - 1]["uri"], note)
        if not has_more:
            return Changes(shown, "", note)
        place = replace(search, after=rows[-1]["uri"])
        if note or time.monotonic() - began > SCAN_S:
            # So many do not differ by much: the next page goes on from here.
            return Changes(shown, place.after, note)


def _is_shown(row: dict[str, Any]) -> bool:
    return row["status_a"] != row["status_b"] or row["version_changed"] or bool(row["counts"])


def _compare(run_a: str, run_b: str, rows: Sequence[dict[str, Any]], tables: Tables) -> str:
    """Add `counts` to rows, instances by kind of change; return why that could not be done, or ""."""
    uris = [row["uri"] for row in rows if row["status_a"] == row["status_b"] == "ok" and not row["version_changed"]]
    note, counts = "", {}
    if uris:
        try:
            diff = diff_runs(
                tables.output_uri, run_a, None, run_b, uris=uris, largest=len(uris), storage=tables.storage
            )
            counts = {image.uri_b: count_changes(image) for image in diff.largest}
        except HtcError as error:
            note = str(error)
    for row in rows:
        row["counts"] = counts.get(row["uri"], {})
    return note


def image_changes(run_a: str, run_b: str, uri: str, tables: Tables) -> dict[str, Any]:
    """Return what changed in one image, instance by instance, as JSON-able values: `changes`, and `note`, why there
    are none.

    Raises:
        InputError: no such run or image.
    """
    diff = diff_runs(tables.output_uri, run_a, None, run_b, uris=[uri], largest=1, storage=tables.storage)
    changes = [change.to_dict() for image in diff.largest for change in image.changes]
    return {"changes": changes, "note": "" if changes else _why_nothing(diff)}


def _why_nothing(diff: Diff) -> str:
    for fate, words in _NOT_COMPARED.items():
        if diff.images.get(fate):
            return words
    return "Within the limits of htc diff, nothing changed among the confident instances."


def run_changes(run_a: str, run_b: str, tables: Tables, job: Job) -> Diff:
    """Compare two runs as wholes, as `htc diff` does."""
    del job
    return diff_runs(tables.output_uri, run_a, None, run_b, storage=tables.storage)


def count_changes(image: ChangedImage) -> Mapping[str, int]:
    """Count an image's changed instances by the label of their kind."""
    kinds = [change.kind for change in image.changes]
    return {kind.label: kinds.count(kind) for kind in CHANGES if kind in kinds}


def _differing(run_a: str, search: Search, tables: Tables, job: Job) -> list[dict[str, Any]]:
    values = {"a": run_a, "b": search.run, "name": search.name, "after": search.after, "limit": SCANNED_IMAGES + 1}
    place = ["contains(lower(uri), lower($name))"] if search.name else []
    place += ["uri > $after"] if search.after else []
    rows: list[dict[str, Any]] = []
    for window, end in _windows(run_a, search, tables, job, values):
        condition = " AND ".join([*place, *window]) or "true"
        answer = tables.ask(
            _sql(run_a, search.run, condition, tables), {**values, **end}, job=job, rows=SCANNED_IMAGES + 1
        )
        names = [name for name, _ in answer.columns]
        rows = [dict(zip(names, row, strict=True)) for row in answer.rows]
        if len(rows) > SCANNED_IMAGES:
            break
    return rows


def _windows(
    run_a: str, search: Search, tables: Tables, job: Job, values: dict[str, Any]
) -> list[tuple[list[str], dict[str, Any]]]:
    """Return conditions on `uri`, one after the other, the last of which looks at everything."""
    if tables.is_current(run_a) or tables.is_current(search.run):
        return [([], {})]
    after = "AND uri > $after" if search.after else ""
    sql = f"""
        SELECT max(uri), count(*) FROM (
            SELECT uri FROM images WHERE run IN ($a, $b) {after} ORDER BY uri LIMIT {WINDOW_IMAGES}
        )
    """  # noqa: S608 - our own conditions
    end, images = tables.ask(sql, values, job=job, rows=1).rows[0]
    return [([], {})] if images < WINDOW_IMAGES else [(["uri <= $end"], {"end": end}), ([], {})]


def _sql(run_a: str, run_b: str, condition: str, tables: Tables) -> str:
    # What an incremental run leaves out has not changed.
    record = tables.results.records
    modes = {each.run: each.spec.get("select", {}).get("mode", "full") for each in record}
    join = "RIGHT JOIN" if modes.get(run_b) == "incremental" else "FULL JOIN"

    def side(name: str, run: str) -> str:
        is_current = tables.is_current(run)
        images, instances = ("current", "current_instances") if is_current else ("images", "instances")
        of_run = "true" if is_current else f"run = ${name}"
        return f"""
            images_{name} AS (
                SELECT uri, shard, status, etag, bytes, instances FROM {images} WHERE {of_run} AND {condition}
            ), sums_{name} AS (
                SELECT uri, bit_xor(hash(category_id, score, bbox)) AS content FROM {instances}
                WHERE {of_run} AND {condition} GROUP BY uri
            ), {name} AS (SELECT * FROM images_{name} LEFT JOIN sums_{name} USING (uri))
        """  # noqa: S608 - our own names

    return f"""
        WITH {side("a", run_a)}, {side("b", run_b)}
        SELECT uri, a.status AS status_a, b.status AS status_b, a.instances AS instances_a,
            b.instances AS instances_b, a.shard AS shard_a, b.shard AS shard_b,
            coalesce(a.etag <> b.etag, a.bytes <> b.bytes, false) AS version_changed
        FROM a {join} b USING (uri)
        WHERE a.status IS DISTINCT FROM b.status OR a.content IS DISTINCT FROM b.content
        ORDER BY uri LIMIT $limit
    """  # noqa: S608 - our own names
