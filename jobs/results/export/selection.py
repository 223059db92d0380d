"""Which images and instances are exported, read in batches from the views of `htc query`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from htc_model.masks.rle import decode_rle
from jobs.results.export.names import FileNames, relative_name
from pipeline.errors import InputError, SpecError
from pipeline.output.mask_functions import decode_masks
from pipeline.output.schema import MASK_TYPE
from pipeline.output.views import translated_sql_errors

if TYPE_CHECKING:
    import duckdb

    from htc_model.masks.many_runs import ForegroundRuns
    from pipeline.output.results import Results

CURRENT = "current"
BATCH_ROWS = 2048
_IMAGE_COLUMNS = "image_id, uri, run, width, height"
# Where the bytes are, and their version: for those who put the images beside.
_VERSIONS = "image_id, uri, run, shard, etag"


@dataclass(frozen=True)
class Category:
    """A category of the exported instances; `index` counts from 0 in the order of the ids."""

    index: int
    category_id: int
    name: str


@dataclass(frozen=True)
class ExportedInstance:
    """One instance; bbox_xywh in pixels; mask: the struct of the tables, None for a network without masks."""

    instance: int
    category: Category
    score: float
    bbox_xywh: tuple[float, float, float, float]
    area: int | None
    mask: dict[str, Any] | None


@dataclass(frozen=True)
class ExportedImage:
    """One image with its chosen instances, most confident first.

    number: from 1. name: relative to the input. file: safe and unique path below a folder; width, height in pixels.
    """

    number: int
    uri: str
    run: str
    name: str
    file: str
    width: int
    height: int
    instances: tuple[ExportedInstance, ...]

    @property
    def stem(self) -> str:
        """The file without its suffix; unique, too."""
        head, dot, _ = self.file.rpartition(".")
        return head if dot and "/" not in self.file[len(head) :] else self.file


class Selection:
    """The exported images and instances.

    Attributes:
        images, instances: how many.
        left_out: images without a result, which are not exported.
        categories: by name, those of the chosen instances.
    """

    def __init__(
        self,
        database: "duckdb.DuckDBPyConnection",
        results: "Results",
        *,
        run: str | None,
        where: str | None,
        min_score: float | None,
    ) -> None:
        """Choose.

        Args:
            run: a run's name; "current" takes each image's newest rows of all runs, None the newest run.
            where: a condition on the columns of `instances`, as in SQL.

        Raises:
            InputError: there is no run of this name, or it has no image with a result.
            SpecError: the condition is not one.
        """
        self._database = database
        self.run = results.newest_run() if run is None else run
        is_current = self.run == CURRENT and CURRENT not in results.runs()
        if not is_current:
            results.check_run(self.run)
        chosen = "true" if is_current else "run = $run"
        values = {} if is_current else {"run": self.run}
        images, instances = ("current", "current_instances") if is_current else ("images", "instances")
        roots = {record.run: str(record.spec.get("input", {}).get("uri", "")) for record in results.records}
        ok = f"SELECT {_IMAGE_COLUMNS} FROM {images} WHERE {chosen} AND status = 'ok' ORDER BY uri"  # noqa: S608
        table = self._named(ok, values, roots)
        self.images = len(table)
        if not self.images:
            raise InputError(f"Run {self.run} has no image with the status ok; `htc query` shows the errors.")
        counted = f"SELECT count(*) FROM {images} WHERE {chosen} AND status <> 'ok'"  # noqa: S608
        self.left_out = int(self._one(counted, values))
        database.register("exported_images", table)
        condition = f"({where}\n)" if where else "true"
        limit = "true" if min_score is None else f"score >= {min_score!r}"
        # Created once, so that the condition is checked here and holds the same rows for every format.
        with translated_sql_errors():
            self._check_condition(where, instances)
            chosen_run = "true" if is_current else _is_run(self.run)
            # The condition is the user's own, in a database that is closed to everything but these tables.
            rows = f"SELECT * FROM {instances} WHERE {chosen_run} AND {limit} AND {condition}"  # noqa: S608  # nosec B608
            database.execute(f"CREATE TEMP VIEW exported AS {rows}")
            versions = f"SELECT {_VERSIONS} FROM {images} WHERE {chosen_run}"  # noqa: S608  # nosec B608
            database.execute(f"CREATE TEMP VIEW exported_versions AS {versions}")
            self.instances = int(self._one("SELECT count(*) FROM exported", {}))
            found = database.execute(
                "SELECT category_id, any_value(category) FROM exported GROUP BY category_id ORDER BY category_id"
            ).fetchall()
        self.categories = [Category(index, int(number), str(name)) for index, (number, name) in enumerate(found)]

    def batches(self, sql: str, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Run a query over `exported` and `exported_images`, and yield its answer in batches."""
        with translated_sql_errors():
            yield from self._database.sql(sql).to_arrow_reader(rows)

    def image_rows(self) -> Iterator[dict[str, Any]]:
        """Yield number, name, file, uri, run, width and height of each image."""
        for batch in self.batches("SELECT number, name, file, uri, run, width, height FROM exported_images"):
            yield from batch.to_pylist()

    def by_image(self, *, is_sparse: bool = False) -> Iterator[ExportedImage]:
        """Yield the images in the order of their numbers, each with its instances.

        Args:
            is_sparse: leave out images without instances.
        """
        by_id = {category.category_id: category for category in self.categories}
        kind = "JOIN" if is_sparse else "LEFT JOIN"
        sql = (
            "SELECT number, uri, run, name, file, width, height, instance, category_id, score, bbox, area, mask "  # noqa: S608
            f"FROM exported_images {kind} exported USING (image_id, uri, run) ORDER BY number, instance"
        )
        head: dict[str, Any] | None = None
        instances: list[ExportedInstance] = []
        for batch in self.batches(sql):
            for row in batch.to_pylist():
                if head is not None and row["number"] != head["number"]:
                    yield _image(head, instances)
                    instances = []
                head = row
                if row["instance"] is not None:
                    instances.append(_instance(row, by_id[row["category_id"]]))
        if head is not None:
            yield _image(head, instances)

    def _named(self, sql: str, values: dict[str, str], roots: dict[str, str]) -> pa.Table:
        """Return the images with their numbers and names."""
        table = self._database.sql(sql, params=values).to_arrow_table()
        names = FileNames()
        relative = [
            relative_name(uri, roots.get(run, ""))
            for uri, run in zip(table["uri"].to_pylist(), table["run"].to_pylist(), strict=True)
        ]
        columns = {
            "number": pa.array(range(1, len(table) + 1), pa.int64()),
            "name": pa.array(relative, pa.string()),
            "file": pa.array([names.add(name) for name in relative], pa.string()),
        }
        for name, column in columns.items():
            table = table.append_column(name, column)
        return table

    def _check_condition(self, where: str | None, instances: str) -> None:
        if where is None:
            return
        asked = f"SELECT ({where}\n) FROM {instances}"  # noqa: S608  # nosec B608
        described = self._database.execute(f"DESCRIBE {asked}").fetchall()
        if [row[1] for row in described] != ["BOOLEAN"]:
            raise SpecError(
                f"--where {where}: this is no condition (its type is {described[0][1]}); give one such as "
                "\"category = 'person' AND area > 1000\"."
            )

    def _one(self, sql: str, values: dict[str, str]) -> Any:
        return self._database.execute(sql, values).fetchall()[0][0]


def _is_run(run: str) -> str:
    return "run = '" + run.replace("'", "''") + "'"


def _instance(row: dict[str, Any], category: Category) -> ExportedInstance:
    box = row["bbox"]
    return ExportedInstance(
        row["instance"],
        category,
        row["score"],
        (box["x"], box["y"], box["width"], box["height"]),
        row["area"],
        row["mask"],
    )


def _image(row: dict[str, Any], instances: Sequence[ExportedInstance]) -> ExportedImage:
    names = ("number", "uri", "run", "name", "file", "width", "height")
    return ExportedImage(**{name: row[name] for name in names}, instances=tuple(instances))


def runs_of(owners: Sequence[tuple[ExportedImage, ExportedInstance]]) -> "ForegroundRuns":
    """Decode masks.

    Raises:
        InputError: one of them is damaged.
    """
    decoded = decode_masks(pa.array([each.mask for _, each in owners], MASK_TYPE))
    if not decoded.is_valid.all():
        image, each = owners[int((~decoded.is_valid).argmax())]
        raise damaged_mask(image, each)
    return decoded.runs()


def bitmap_of(image: ExportedImage, instance: ExportedInstance) -> NDArray[np.bool_]:
    """Decode an instance's mask to [H, W] bool.

    Raises:
        InputError: it is damaged.
    """
    try:
        return decode_rle(instance.mask or {"size": [0, 0], "counts": ""})
    except ValueError as error:
        raise damaged_mask(image, instance) from error


def damaged_mask(image: ExportedImage, instance: ExportedInstance) -> InputError:
    """Return the error for a mask whose code cannot be read."""
    return InputError(
        f'{image.uri}: the mask of instance {instance.instance} is damaged; --where "mask_is_valid(mask)" leaves such '
        "instances out."
    )
