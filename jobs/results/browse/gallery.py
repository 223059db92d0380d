"""The images of a search, page by page, and what there is to choose from.

A page begins after the last image of the one before it (its key), so that the last page of a million images costs what
the first costs: files and row groups that lie before the key are not read. The name is the order of the files; the
other orders look at all instances of the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.results.browse.search import Search
from jobs.results.browse.tables import IMAGE_COLUMNS, Tables
from jobs.results.browse.work import Job
from jobs.results.condition import check_condition
from pipeline.errors import SpecError

PAGE_IMAGES = 48
# Images that are looked at first for instances that match, before all of them are: most conditions match somewhere in
# so many.
WINDOW_IMAGES = 20_000
SCORE_BINS = 10
MOST_CATEGORIES = 2_000
_SEPARATOR = "~"


@dataclass(frozen=True)
class Page:
    """The images of one page.

    images: rows with `IMAGE_COLUMNS`, `matches` (instances that fulfil the conditions) and `best` (their highest
        score). next, previous: the keys of the neighbouring pages, "" where there is none.
    """

    images: Sequence[dict[str, Any]]
    next: str
    previous: str


@dataclass(frozen=True)
class Facets:
    """What there is to choose from, each counted under all other conditions.

    images: in the search. categories: instances by category, the most frequent first. scores: instances by tenths of
    the score. statuses: images by status.
    """

    images: int
    categories: Sequence[tuple[str, int]]
    scores: Sequence[int]
    statuses: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class _Sources:
    """Where a search's rows come from, as SQL: two tables with conditions, and the values of these."""

    images: str
    instances: str
    of_images: str
    of_instances: str
    values: dict[str, Any]


def find_page(search: Search, tables: Tables, *, job: Job, images: int = PAGE_IMAGES) -> Page:
    """Find the images of a search's page.

    Args:
        images: the most on a page.

    Raises:
        SpecError: the condition in SQL is wrong, or the place is none of this order.
        StorageError: a part cannot be read.
    """
    if search.where:
        check_condition(search.where, "instances", lambda asked: tables.ask(asked, job=job, rows=2).rows)
    if (
        search.statuses
        and "ok" not in search.statuses
        and (search.is_about_instances or search.order in {"score", "least"})
    ):
        # Only images that are ok have instances.
        return Page((), "", "")
    is_back = bool(search.before)
    rows = _find_rows(search, tables, is_back=is_back, job=job, limit=images + 1)
    has_more = len(rows) > images
    rows = rows[:images]
    if is_back:
        rows.reverse()
    if not rows:
        return Page((), "", "")
    has_next = has_more if not is_back else True
    has_previous = has_more if is_back else bool(search.after)
    return Page(rows, place_of(search, rows[-1]) if has_next else "", place_of(search, rows[0]) if has_previous else "")


def find_facets(search: Search, tables: Tables, *, job: Job) -> Facets:
    """Count what there is to choose from; errors as `find_page`."""
    if search.where:
        check_condition(search.where, "instances", lambda asked: tables.ask(asked, job=job, rows=2).rows)
    categories, scores = _count_instances(search, tables, job)
    return Facets(_count_images(search, tables, job), categories, scores, _count_statuses(search, tables, job))


def _find_rows(search: Search, tables: Tables, *, is_back: bool, job: Job, limit: int) -> list[dict[str, Any]]:
    sources = _sources(search, tables)
    values = {**sources.values, "limit": limit}
    order, place = _order(search, is_back=is_back, values=values)
    columns = ", ".join(f"images.{column}" for column in IMAGE_COLUMNS)
    if not search.is_about_instances and search.order in {"name", "instances"}:
        sql = (
            f"SELECT {columns}, instances AS matches, NULL::FLOAT AS best FROM {sources.images} AS images "  # noqa: S608
            f"WHERE {sources.of_images} AND {place} ORDER BY {order} LIMIT $limit"
        )
        return tables.images(sql, values, job=job, rows=limit)
    for window in _windows(search, tables, sources, is_back=is_back, job=job):
        sql = f"""
            WITH found AS (
                SELECT * FROM (
                    SELECT uri, image_id, run, count(*) AS matches, max(score) AS best, count(*) AS instances
                    FROM {sources.instances} AS instances WHERE {sources.of_instances} AND {window[0]} GROUP BY ALL
                ) WHERE {place} ORDER BY {order} LIMIT $limit
            )
            SELECT {columns}, found.matches, found.best
            FROM found JOIN {sources.images} AS images USING (uri, image_id, run)
            ORDER BY {order.replace("uri", "images.uri").replace("instances ", "matches ")}
        """  # noqa: S608 - our own names
        rows = tables.images(sql, {**values, **window[1]}, job=job, rows=limit)
        if len(rows) >= limit:
            break
    return rows


def _windows(
    search: Search, tables: Tables, sources: _Sources, *, is_back: bool, job: Job
) -> list[tuple[str, dict[str, Any]]]:
    """Return conditions on `uri` under which instances are looked at, one after the other: at last there is none."""
    place = search.before if is_back else search.after
    everything = ("uri < $key" if is_back else "uri > $key") if place and search.order == "name" else "true"
    if search.order != "name" or tables.is_current(search.run):
        return [(everything, {})]
    values = {name: value for name, value in sources.values.items() if name == "run"}
    values |= {"key": place} if place else {}
    edge, direction = ("min", "DESC") if is_back else ("max", "ASC")
    sql = (
        f"SELECT {edge}(uri), count(*) FROM (SELECT uri FROM {sources.images} WHERE run = $run AND {everything} "  # noqa: S608
        f"ORDER BY uri {direction} LIMIT {WINDOW_IMAGES})"
    )
    end, images = tables.ask(sql, values, job=job, rows=1).rows[0]
    if images < WINDOW_IMAGES:
        return [(everything, {})]
    near = f"{everything} AND uri {'>=' if is_back else '<='} $end"
    return [(near, {"end": end}), (everything, {})]


def _sources(search: Search, tables: Tables, *, without: str = "") -> _Sources:
    """Return a search's tables and conditions.

    Args:
        without: a kind of condition to leave out: "instances", "statuses".
    """
    values: dict[str, Any] = {}
    is_current = tables.is_current(search.run)
    both = ["true" if is_current else "run = $run"]
    if not is_current:
        values["run"] = search.run
    if search.name:
        both.append("contains(lower(uri), lower($name))")
        values["name"] = search.name
    of_images, of_instances = [*both], [*both]
    if search.statuses and without != "statuses":
        of_images.append(_one_of("status", search.statuses, values))
    if without != "instances":
        if search.categories:
            of_instances.append(_one_of("category", search.categories, values))
        of_instances += _bounds("score", search.min_score, search.max_score, "FLOAT", values)
    of_instances += _bounds("area", search.min_area, search.max_area, "BIGINT", values)
    if search.where:
        of_instances.append(f"({search.where}\n)")
    names = ("current", "current_instances") if is_current else ("images", "instances")
    return _Sources(*names, " AND ".join(of_images), " AND ".join(of_instances), values)


def _one_of(column: str, wanted: Sequence[str], values: dict[str, Any]) -> str:
    names = [f"{column}_{place}" for place in range(len(wanted))]
    values |= dict(zip(names, wanted, strict=True))
    # Not a list as one value: this form is compared with the statistics of row groups.
    return f"{column} IN ({', '.join(f'${name}' for name in names)})"


def _bounds(column: str, least: float | None, most: float | None, kind: str, values: dict[str, Any]) -> list[str]:
    bounds = {f"min_{column}": (">=", least), f"max_{column}": ("<=", most)}
    chosen = {name: (sign, bound) for name, (sign, bound) in bounds.items() if bound is not None}
    values |= {name: bound for name, (_, bound) in chosen.items()}
    # Scores are 32-bit numbers: 0.3 as a 64-bit one would leave out the score 0.3.
    return [f"{column} {sign} ${name}::{kind}" for name, (sign, _) in chosen.items()]


def _order(search: Search, *, is_back: bool, values: dict[str, Any]) -> tuple[str, str]:
    """Return the order and the place as SQL, and add the place's values."""
    key = search.before if is_back else search.after
    up, down = ("DESC", "ASC") if is_back else ("ASC", "DESC")
    more, less = ("<", ">") if is_back else (">", "<")
    if search.order == "name":
        if key:
            values["key"] = key
        return f"uri {up}", f"uri {more} $key" if key else "true"
    column = {"instances": "instances", "score": "best", "least": "best"}[search.order]
    direction, beyond = (up, more) if search.order == "least" else (down, less)
    place = "true"
    if key:
        number, separator, uri = key.partition(_SEPARATOR)
        try:
            values["number"] = float(number)
        except ValueError:
            separator = ""
        if not separator:
            raise SpecError("This place belongs to another order; go back to the first page.")
        values["key"] = uri
        kind = "BIGINT" if search.order == "instances" else "FLOAT"
        place = f"({column} {beyond} $number::{kind} OR ({column} = $number::{kind} AND uri {more} $key))"
    return f"{column} {direction}, uri {up}", place


def place_of(search: Search, row: dict[str, Any]) -> str:
    """Return the place of an image, a row of a page, in a search's order."""
    if search.order == "name":
        return str(row["uri"])
    return f"{row['matches'] if search.order == 'instances' else row['best']!r}{_SEPARATOR}{row['uri']}"


def _count_instances(search: Search, tables: Tables, job: Job) -> tuple[list[tuple[str, int]], list[int]]:
    sources = _sources(search, tables, without="instances")
    values = dict(sources.values)
    within = " AND ".join(_bounds("score", search.min_score, search.max_score, "FLOAT", values)) or "true"
    sql = f"""
        SELECT category, least(floor(score * {SCORE_BINS}), {SCORE_BINS - 1})::INTEGER AS bin,
            count(*) FILTER ({within}), count(*)
        FROM {sources.instances} AS instances WHERE {sources.of_instances} GROUP BY ALL
    """  # noqa: S608 - our own names
    by_category: dict[str, int] = {}
    scores = [0] * SCORE_BINS
    for category, place, within_range, count in tables.ask(
        sql, values, job=job, rows=MOST_CATEGORIES * SCORE_BINS
    ).rows:
        by_category[category] = by_category.get(category, 0) + within_range
        if not search.categories or category in search.categories:
            scores[max(0, place)] += count
    chosen = {category: by_category.get(category, 0) for category in search.categories}
    ordered = sorted(by_category.items(), key=lambda pair: (-pair[1], pair[0]))
    return [pair for pair in {**dict(ordered), **chosen}.items() if pair[1] or pair[0] in chosen], scores


def _count_images(search: Search, tables: Tables, job: Job) -> int:
    sources = _sources(search, tables)
    values = dict(sources.values)
    if not search.is_about_instances:
        sql = f"SELECT count(*) FROM {sources.images} AS images WHERE {sources.of_images}"  # noqa: S608
    elif search.statuses and "ok" not in search.statuses:
        return 0
    else:
        sql = f"SELECT count(DISTINCT image_id) FROM {sources.instances} AS instances WHERE {sources.of_instances}"  # noqa: S608
    return int(tables.ask(sql, values, job=job, rows=1).rows[0][0])


def _count_statuses(search: Search, tables: Tables, job: Job) -> list[tuple[str, int]]:
    sources = _sources(search, tables, without="statuses")
    values = {name: value for name, value in sources.values.items() if name in {"run", "name"}}
    sql = f"""
        SELECT status, count(*) FROM {sources.images} AS images WHERE {sources.of_images}
        GROUP BY 1 ORDER BY 2 DESC, 1
    """  # noqa: S608 - our own names
    return [(str(status), int(count)) for status, count in tables.ask(sql, values, job=job, rows=100).rows]
