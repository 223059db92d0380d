"""Finds images of a run and their rows in the tables."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from jobs.results.query import read_instances
from pipeline.errors import InputError
from pipeline.output.views import query_views
from pipeline.storage.uris import home_path

if TYPE_CHECKING:
    import duckdb

    from pipeline.output.results import Results

# Enough names to find a misspelt one, few enough to compare at once.
MAX_NAMES_COMPARED = 50_000

_COLUMNS = "image_id, uri, run, shard, status, error, etag, bytes, width, height"
_BY_URI = f"""
    SELECT {_COLUMNS} FROM images WHERE run = $run AND (uri = $uri OR ends_with(uri, $ending))
    ORDER BY uri = $uri DESC, uri LIMIT 3
"""  # noqa: S608 - our own column names
_NAMES = f"SELECT uri FROM images WHERE run = $run LIMIT {MAX_NAMES_COMPARED}"  # noqa: S608 - a number
_CATEGORIES = """
    SELECT category, count(*) AS n FROM instances WHERE run = $run GROUP BY category ORDER BY n DESC, category
"""
# The images with the smallest hashes of their ids: spread over the input, and always the same.
_SPREAD = "md5(image_id::VARCHAR), uri"


@dataclass(frozen=True)
class ImageRecord:
    """One row of `images`, as `ImageReader` takes it; width and height in pixels, None if it was never decoded."""

    image_id: int
    uri: str
    run: str
    shard: int
    status: str
    error: str | None
    etag: str | None
    bytes: int | None
    width: int | None
    height: int | None

    def row(self) -> dict[str, Any]:
        """Return the row as a mapping."""
        return asdict(self)


@dataclass(frozen=True)
class Wanted:
    """Which images and instances are wanted.

    statuses: of the images; empty for any. categories: images with an instance of one of them, and these instances
    only; empty for all. min_score: those instances score at least this. image_ids: these images only; None for all.
    """

    statuses: tuple[str, ...] = ("ok",)
    categories: tuple[str, ...] = ()
    min_score: float | None = None
    image_ids: tuple[int, ...] | None = None

    def instances_sql(self) -> str:
        """Return the condition on instances."""
        category = " AND list_contains($categories, category)" if self.categories else ""
        return f"run = $run AND score >= $min_score{category}"

    def images_sql(self) -> str:
        """Return the condition on images."""
        sql = "run = $run"
        if self.statuses:
            sql += " AND list_contains($statuses, status)"
        if self.image_ids is not None:
            sql += " AND image_id IN (SELECT unnest($image_ids))"
        if self.categories:
            inner = f"SELECT image_id, uri FROM instances WHERE {self.instances_sql()}"  # noqa: S608 - our own words
            sql += f" AND (image_id, uri) IN ({inner})"
        return sql

    def values(self, sql: str, run: str) -> dict[str, Any]:
        """Return the parameters that a statement names."""
        known = {
            "run": run,
            "statuses": list(self.statuses),
            "categories": list(self.categories),
            "min_score": self.min_score or 0.0,
            "image_ids": list(self.image_ids or ()),
        }
        return {name: value for name, value in known.items() if f"${name}" in sql}


class ImageLookup:
    """The images of one run: samples or finds some, and reads their instances.

    Raises:
        InputError: there is no run of this name.
    """

    def __init__(self, results: "Results", run: str | None = None) -> None:
        self.run = results.newest_run() if run is None else run
        # Raises InputError for an unknown name.
        results.image_parts(self.run)
        self._results = results
        record = next(record for record in results.records if record.run == self.run)
        self._fingerprint = record.fingerprint

    @property
    def is_trained(self) -> bool:
        """Whether the run's model had trained weights."""
        return bool(self._fingerprint.get("trained", True))

    @property
    def is_empty(self) -> bool:
        """Whether no shard of the run is committed yet."""
        return self._results.committed_shards(self.run) == 0

    def choose(self, wanted: Wanted, count: int, *, is_spread: bool) -> list[ImageRecord]:
        """Return at most `count` of the wanted images, in the order of their URIs.

        Args:
            is_spread: take them from all over the input, always the same; else the first ones.
        """
        condition = wanted.images_sql()
        order = _SPREAD if is_spread else "uri"
        sql = (
            f"SELECT * FROM (SELECT {_COLUMNS} FROM images WHERE {condition} ORDER BY {order} LIMIT $count) "  # noqa: S608
            "ORDER BY uri"
        )
        values = {**wanted.values(sql, self.run), "count": count}
        return query_views(self._results, lambda database: [ImageRecord(*row) for row in _rows(database, sql, values)])

    def categories(self) -> list[str]:
        """Return the categories of the run's instances, most frequent first."""
        values = {"run": self.run}
        return query_views(
            self._results, lambda database: [str(row[0]) for row in _rows(database, _CATEGORIES, values)]
        )

    def best_score(self, images: Sequence[ImageRecord], categories: Sequence[str] = ()) -> float | None:
        """Return the highest score of these images' instances, of these categories if there are any; None without."""
        wanted = Wanted(categories=tuple(categories), image_ids=tuple(image.image_id for image in images))
        condition = f"{wanted.instances_sql()} AND image_id IN (SELECT unnest($image_ids))"
        sql = f"SELECT max(score) FROM instances WHERE {condition}"  # noqa: S608 - our own words
        values = wanted.values(sql, self.run)
        found: list[float | None] = query_views(
            self._results, lambda database: [row[0] for row in _rows(database, sql, values)]
        )
        return found[0]

    def find(self, uris: Sequence[str]) -> list[ImageRecord]:
        """Find the image of each URI, or of the end (after a slash) of exactly one image's URI; none twice.

        Raises:
            InputError: there is no such image, or several.
        """
        images = query_views(self._results, lambda database: [self._find_one(database, uri) for uri in uris])
        return list({image.uri: image for image in images}.values())

    def instances(self, image: ImageRecord) -> list[dict[str, Any]]:
        """Read the image's rows of `instances`, highest score first."""
        return read_instances(self._results, self.run, image.shard, image.image_id, image.uri)

    def _find_one(self, database: "duckdb.DuckDBPyConnection", uri: str) -> ImageRecord:
        whole = str(home_path(uri).absolute()) if home_path(uri).exists() else uri
        values = {"run": self.run, "uri": whole, "ending": "/" + uri.lstrip("/")}
        found = [ImageRecord(*row) for row in _rows(database, _BY_URI, values)]
        if not found:
            raise InputError(f"Run {self.run} has no image {uri}{self._suggestion(database, uri)}")
        if len(found) > 1 and found[0].uri != whole:
            raise several_uris(uri, [image.uri for image in found])
        return found[0]

    def _suggestion(self, database: "duckdb.DuckDBPyConnection", uri: str) -> str:
        known = [str(row[0]) for row in _rows(database, _NAMES, {"run": self.run})]
        by_name = {name.rsplit("/", 1)[-1]: name for name in known}
        close = difflib.get_close_matches(uri.rsplit("/", 1)[-1], by_name, n=1)
        if close:
            return f"; did you mean {by_name[close[0]]}?"
        return "; give its whole URI (`htc query` lists them), or name another run with --run."


def several_uris(end: str, uris: Sequence[str]) -> InputError:
    """Return the error for the end of a uri that two or more uris have."""
    others = " and others" if len(uris) > 2 else ""
    return InputError(f"{end} is the end of several uris ({uris[0]}, {uris[1]}{others}); give more of it.")


def _rows(database: "duckdb.DuckDBPyConnection", sql: str, values: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    answer = database.execute(sql, values)
    while rows := answer.fetchmany(1024):
        yield from rows
