"""Finds images of a run and their rows in the tables."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from jobs.results.map_tables import check_table
from jobs.results.query import read_instances
from pipeline.errors import InputError
from pipeline.job_spec.map_tables import MapTable
from pipeline.output.views import query_views
from pipeline.storage.uris import home_path

if TYPE_CHECKING:
    import duckdb

    from pipeline.output.results import Results

# Enough names to find a misspelt one, few enough to compare at once.
MAX_NAMES_COMPARED = 50_000

# Rows of other tables with the columns by which instances are chosen: what has no score counts as certain.
_AS_INSTANCES = {
    "instances": "*",
    "panoptic": "* REPLACE (coalesce(score, 1.0) AS score)",
    "semantic": "*, class AS category, 1.0 AS score",
}

CURRENT = "current"
"""Stands for each image's newest rows of all runs, where no run has this name; see `htc export`."""
_COLUMNS = "image_id, uri, run, shard, status, error, etag, bytes, width, height"
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
        return f"score >= $min_score{category}"

    def images_sql(self, instances: str) -> str:
        """Return the condition on images; `instances` is where the run's instances are."""
        sql = "true"
        if self.statuses:
            sql += " AND list_contains($statuses, status)"
        if self.image_ids is not None:
            sql += " AND image_id IN (SELECT unnest($image_ids))"
        if self.categories:
            inner = f"SELECT image_id, uri FROM {instances} WHERE {self.instances_sql()}"  # noqa: S608 - our own words
            sql += f" AND (image_id, uri) IN ({inner})"
        return sql

    def values(self) -> dict[str, Any]:
        """Return the parameters of the conditions."""
        return {
            "statuses": list(self.statuses),
            "categories": list(self.categories),
            "min_score": self.min_score or 0.0,
            "image_ids": list(self.image_ids or ()),
        }


class ImageLookup:
    """The images of one run, or the newest ones of all runs: samples or finds some, and reads their instances.

    Attributes:
        run: the run's name, or "current".

    Raises:
        InputError: there is no run of this name, or it has no such table.
    """

    def __init__(
        self, results: "Results", run: str | None = None, table: Literal["instances"] | MapTable = "instances"
    ) -> None:
        """Choose; `table`: by whose rows images are chosen and whose categories are known."""
        self.run = results.newest_run() if run is None else run
        self._results = results
        if self.run == CURRENT and CURRENT not in results.runs():
            self._images = "current"
            self._instances = f"(SELECT {_AS_INSTANCES[table]} FROM current_{table})"  # noqa: S608 - our own words
            self._runs = results.runs()
        else:
            results.check_run(self.run)
            if table != "instances":
                check_table(results, self.run, table)
            self._images = "(SELECT * FROM images WHERE run = $run)"
            self._instances = f"(SELECT {_AS_INSTANCES[table]} FROM {table} WHERE run = $run)"  # noqa: S608
            self._runs = [self.run]

    @property
    def is_trained(self) -> bool:
        """Whether the run's model had trained weights; of several runs, whether one had."""
        records = [record for record in self._results.records if record.run in self._runs]
        return any(record.fingerprint.get("trained", True) for record in records)

    @property
    def is_empty(self) -> bool:
        """Whether no shard of the run is committed yet."""
        return not any(self._results.committed_shards(run) for run in self._runs)

    def choose(self, wanted: Wanted, count: int, *, is_spread: bool) -> list[ImageRecord]:
        """Return at most `count` of the wanted images, in the order of their URIs.

        Args:
            is_spread: take them from all over the input, always the same; else the first ones.
        """
        condition = wanted.images_sql(self._instances)
        order = _SPREAD if is_spread else "uri"
        sql = (
            f"SELECT * FROM (SELECT {_COLUMNS} FROM {self._images} WHERE {condition} ORDER BY {order} LIMIT $count) "  # noqa: S608
            "ORDER BY uri"
        )
        values = {**wanted.values(), "count": count}
        return query_views(self._results, lambda found: [ImageRecord(*row) for row in self._rows(found, sql, values)])

    def rows(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return these columns of `images`, of all of the run's images."""
        sql = f"SELECT {', '.join(columns)} FROM {self._images}"  # noqa: S608 - our own column names
        return query_views(
            self._results, lambda found: [dict(zip(columns, row, strict=True)) for row in self._rows(found, sql, {})]
        )

    def categories(self) -> list[str]:
        """Return the categories of the run's instances, most frequent first."""
        sql = f"""
            SELECT category, count(*) AS n FROM {self._instances} GROUP BY category ORDER BY n DESC, category
        """  # noqa: S608 - our own table
        return query_views(self._results, lambda database: [str(row[0]) for row in self._rows(database, sql, {})])

    def best_score(self, images: Sequence[ImageRecord], categories: Sequence[str] = ()) -> float | None:
        """Return the highest score of these images' instances, of these categories if there are any; None without."""
        wanted = Wanted(categories=tuple(categories), image_ids=tuple(image.image_id for image in images))
        condition = f"{wanted.instances_sql()} AND image_id IN (SELECT unnest($image_ids))"
        sql = f"SELECT max(score) FROM {self._instances} WHERE {condition}"  # noqa: S608 - our own words
        found: list[float | None] = query_views(
            self._results, lambda database: [row[0] for row in self._rows(database, sql, wanted.values())]
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
        return read_instances(self._results, image.run, image.shard, image.image_id, image.uri)

    def _find_one(self, database: "duckdb.DuckDBPyConnection", uri: str) -> ImageRecord:
        whole = str(home_path(uri).absolute()) if home_path(uri).exists() else uri
        values = {"uri": whole, "ending": "/" + uri.lstrip("/")}
        sql = f"""
            SELECT {_COLUMNS} FROM {self._images} WHERE uri = $uri OR ends_with(uri, $ending)
            ORDER BY uri = $uri DESC, uri LIMIT 3
        """  # noqa: S608 - our own names
        found = [ImageRecord(*row) for row in self._rows(database, sql, values)]
        if not found:
            raise InputError(f"Run {self.run} has no image {uri}{self._suggestion(database, uri)}")
        if len(found) > 1 and found[0].uri != whole:
            raise several_uris(uri, [image.uri for image in found])
        return found[0]

    def _suggestion(self, database: "duckdb.DuckDBPyConnection", uri: str) -> str:
        sql = f"SELECT uri FROM {self._images} LIMIT {MAX_NAMES_COMPARED}"  # noqa: S608 - our own names
        known = [str(row[0]) for row in self._rows(database, sql, {})]
        by_name = {name.rsplit("/", 1)[-1]: name for name in known}
        close = difflib.get_close_matches(uri.rsplit("/", 1)[-1], by_name, n=1)
        if close:
            return f"; did you mean {by_name[close[0]]}?"
        return "; give its whole URI (`htc query` lists them), or name another run with --run."

    def _rows(
        self, database: "duckdb.DuckDBPyConnection", sql: str, values: dict[str, Any]
    ) -> Iterator[tuple[Any, ...]]:
        # DuckDB refuses values that are not used.
        named = {name: value for name, value in {**values, "run": self.run}.items() if f"${name}" in sql}
        answer = database.execute(sql, named)
        while rows := answer.fetchmany(1024):
            yield from rows


def several_uris(end: str, uris: Sequence[str]) -> InputError:
    """Return the error for the end of a uri that two or more uris have."""
    others = " and others" if len(uris) > 2 else ""
    return InputError(f"{end} is the end of several uris ({uris[0]}, {uris[1]}{others}); give more of it.")
