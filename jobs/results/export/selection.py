"""Which images and instances are exported, read in batches from the views of `htc query`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from duckdb.func import PythonUDFType
from numpy.typing import NDArray

from htc_model.masks.rle import decode_rle
from jobs.results.condition import check_condition
from jobs.results.export.names import relative_name, split_name
from jobs.results.map_tables import check_table
from pipeline.errors import InputError
from pipeline.job_spec.map_tables import MapTable
from pipeline.output.mask_functions import decode_masks
from pipeline.output.query_files import SCHEME
from pipeline.output.schema import MASK_TYPE
from pipeline.output.views import rows_of_parts, translated_sql_errors

if TYPE_CHECKING:
    import duckdb

    from htc_model.masks.many_runs import ForegroundRuns
    from pipeline.output.parts import Part
    from pipeline.output.results import Results

CURRENT = "current"
BATCH_ROWS = 2048
# As many rows are sorted and joined at once, and those of one image more.
PIECE_INSTANCES = 65_536
_IMAGE_COLUMNS = "image_id, uri, run, width, height, shard, etag, instances, crs, transform"
# The number, the name and the kind of a row's category.
_CATEGORY = {
    "instances": "category_id, any_value(category), true",
    "panoptic": "category_id, any_value(category), bool_or(is_thing)",
    "semantic": "class_id, any_value(class), false",
}
# Those of `exported_images` that an ExportedImage has.
_OF_IMAGE = ("number", "uri", "run", "name", "stem", "suffix", "width", "height", "etag")
# Those of images that say where they lie.
_OF_PLACE = ("crs", "transform")
_IS_PLACED = "crs IS NOT NULL AND transform IS NOT NULL"


@dataclass(frozen=True)
class Category:
    """A category of the exported rows; `index` counts from 0 in the order of the ids. is_thing: not so of stuff."""

    index: int
    category_id: int
    name: str
    is_thing: bool = True


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

    number: from 1. name: relative to the input. stem: a safe path below a folder, unique without its suffix, in any
        case. width, height: in pixels. etag: of the version that the run read.
    crs, transform: where it lies on the ground, see `inputs.georeference`; None where that was not asked for.
    """

    number: int
    uri: str
    run: str
    name: str
    stem: str
    suffix: str
    width: int
    height: int
    etag: str | None
    instances: tuple[ExportedInstance, ...]
    crs: str | None = None
    transform: tuple[float, ...] | None = None

    @property
    def file(self) -> str:
        """A safe and unique path below a folder."""
        return self.stem + self.suffix


class Selection:
    """The exported images and instances.

    They are read in pieces of neighbouring images, so that no query sorts or joins more than `PIECE_INSTANCES` at once:
    memory does not grow with the number of instances.

    Attributes:
        images, instances: how many.
        left_out: images without a result, which are not exported.
        categories: by name, those of the chosen instances.
        categories_left_out: where no instance was chosen, the names of the categories that there are.
    """

    def __init__(
        self,
        database: "duckdb.DuckDBPyConnection",
        results: "Results",
        *,
        run: str | None,
        where: str | None = None,
        min_score: float | None = None,
        table: Literal["instances"] | MapTable = "instances",
    ) -> None:
        """Choose.

        Args:
            run: a run's name; "current" takes each image's newest rows of all runs, None the newest run.
            where: a condition on the columns of `instances`, as in SQL.
            table: whose rows are exported.

        Raises:
            InputError: there is no run of this name, or it has no image with a result, or no such table.
            SpecError: the condition is not one.
        """
        self._database = database
        self._results = results
        self.run = results.newest_run() if run is None else run
        is_current = self.run == CURRENT and CURRENT not in results.runs()
        if not is_current:
            results.check_run(self.run)
        chosen = "true" if is_current else _is_run(self.run)
        images, instances = ("current", f"current_{table}") if is_current else ("images", table)
        roots = {record.run: str(record.spec.get("input", {}).get("uri", "")) for record in results.records}
        with translated_sql_errors():
            self.images = _name_images(database, images, chosen, roots)
            if not self.images:
                if self._one(f"SELECT count(*) FROM {images} WHERE {chosen}"):  # noqa: S608
                    raise InputError(f"Run {self.run} has no image with the status ok; `htc query` shows the errors.")
                raise InputError(f"Run {self.run} has no row of an image yet; `htc status` says how far it is.")
            if table != "instances":
                runs = database.execute("SELECT DISTINCT run FROM exported_images ORDER BY run").fetchall()
                for (name,) in runs:
                    check_table(results, name, table)
            self.left_out = int(self._one(f"SELECT count(*) FROM {images} WHERE {chosen} AND status <> 'ok'"))  # noqa: S608
            if where is not None:
                check_condition(where, instances, lambda asked: database.execute(asked).fetchall())
            # The condition is the user's own, in a database that is closed to everything but these tables.
            limit = "true" if min_score is None else f"score >= {min_score!r}"
            self._condition = f"{limit} AND {'true' if where is None else f'({where}{chr(10)})'}"
            self._rows = f"SELECT * FROM {instances} WHERE {chosen} AND {self._condition}"  # noqa: S608  # nosec B608
            found = database.execute(
                f"SELECT {_CATEGORY[table]}, count(*) FROM ({self._rows}) GROUP BY 1 ORDER BY 1"  # noqa: S608  # nosec B608
            ).fetchall()
            known = [] if found or table != "instances" else self._categories(instances, chosen)
        self.instances = sum(int(count) for *_, count in found)
        self.categories_left_out = known
        self.categories = [
            Category(index, int(number), str(name), bool(is_thing))
            for index, (number, name, is_thing, _) in enumerate(found)
        ]

    def batches(self, sql: str, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Run a query over `exported_images` and yield its answer in batches."""
        with translated_sql_errors():
            yield from self._database.sql(sql).to_arrow_reader(rows)

    def piece_batches(self, sql: str, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Run a query for each piece of neighbouring images and yield the answers in batches.

        Args:
            sql: over `piece_images`, the images of the piece with the columns of `exported_images`, and `exported`, the
                chosen instances of these and of other images; `{done}` stands for the number of rows before the piece.
        """
        done = 0
        for piece in self._pieces():
            images = f"SELECT * FROM exported_images WHERE {piece.condition}"  # noqa: S608 - our own numbers and names
            instances = f"SELECT * FROM ({rows_of_parts('instances', piece.paths)}) AS instances"  # noqa: S608
            exported = f"{instances} WHERE {piece.uris} AND {self._condition}"
            named = f"WITH piece_images AS ({images}), exported AS ({exported}) {sql.replace('{done}', str(done))}"
            for batch in self.batches(named, rows):
                done += len(batch)
                yield batch

    def images_by_part(self) -> "Iterator[tuple[str, Part, dict[int, ExportedImage]]]":
        """Yield of each committed part its run and its images by their ids, without instances."""
        (runs,) = zip(*self._database.execute("SELECT DISTINCT run FROM exported_images ORDER BY run").fetchall(),
                      strict=True)  # fmt: skip
        for run in runs:
            for part in self._results.committed(run):
                sql = (
                    f"SELECT image_id, {', '.join(_OF_IMAGE)} FROM exported_images "  # noqa: S608
                    f"WHERE {_is_run(run)} AND shard BETWEEN {part.first} AND {part.last} ORDER BY number"
                )
                rows = (row for batch in self.batches(sql) for row in batch.to_pylist())
                yield run, part, {row["image_id"]: _image(row, ()) for row in rows}

    def image_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the columns of `exported_images`, by run and shard."""
        for batch in self.batches("SELECT * FROM exported_images ORDER BY run, shard, number"):
            yield from batch.to_pylist()

    def coordinate_systems(self, *, is_sparse: bool = False) -> list[str]:
        """Return those of the images that say where they lie.

        Args:
            is_sparse: leave out images without chosen instances.
        """
        chosen = f"AND (image_id, run) IN (SELECT (image_id, run) FROM ({self._rows}))" if is_sparse else ""  # noqa: S608
        sql = f"SELECT DISTINCT crs FROM exported_images WHERE {_IS_PLACED} {chosen} ORDER BY 1"  # noqa: S608  # nosec B608
        with translated_sql_errors():
            return [str(crs) for (crs,) in self._database.execute(sql).fetchall()]

    def count_unplaced(self) -> int:
        """Return how many images do not say where they lie."""
        return int(self._one(f"SELECT count(*) FROM exported_images WHERE NOT ({_IS_PLACED})"))  # noqa: S608

    def by_image(self, *, is_sparse: bool = False, is_placed: bool = False) -> Iterator[ExportedImage]:
        """Yield the images by run and shard, each with its instances.

        Args:
            is_sparse: leave out images without instances.
            is_placed: leave out images that do not say where they lie, and read where the others do.
        """
        by_id = {category.category_id: category for category in self.categories}
        kind = "JOIN" if is_sparse else "LEFT JOIN"
        columns = _OF_IMAGE + _OF_PLACE if is_placed else _OF_IMAGE
        sql = (
            f"SELECT {', '.join(columns)}, instance, category_id, score, bbox, area, mask "  # noqa: S608
            f"FROM piece_images {kind} exported USING (image_id, uri, run) "
            f"{f'WHERE {_IS_PLACED} ' if is_placed else ''}ORDER BY number, instance"
        )
        head: dict[str, Any] | None = None
        instances: list[ExportedInstance] = []
        for batch in self.piece_batches(sql):
            for row in batch.to_pylist():
                if head is not None and row["number"] != head["number"]:
                    yield _image(head, instances)
                    instances = []
                head = row
                if row["instance"] is not None:
                    instances.append(_instance(row, by_id[row["category_id"]]))
        if head is not None:
            yield _image(head, instances)

    def _pieces(self) -> Iterator["_Piece"]:
        """Cut the images into pieces of at most `PIECE_INSTANCES` instances, and find the parts that hold these."""
        listed = self._database.execute("SELECT file FROM glob(?)", [f"{SCHEME}://instances/*"]).fetchall()
        by_part = {tuple(str(path).split("/")[4:6]): str(path) for (path,) in listed}
        counted = self._database.execute(
            "SELECT run, shard, sum(instances)::BIGINT FROM exported_images GROUP BY run, shard ORDER BY run, shard"
        )
        shards: dict[str, list[tuple[int, int]]] = {}
        while rows := counted.fetchmany(BATCH_ROWS):
            for run, shard, instances in rows:
                shards.setdefault(run, []).append((shard, instances))
        for run, counts in shards.items():
            parts = iter(self._results.committed(run))
            part = next(parts)
            waiting: list[Part] = []
            waiting_instances = 0
            totals: dict[Part, int] = {}
            for shard, instances in counts:
                while shard > part.last:
                    part = next(parts)
                totals[part] = totals.get(part, 0) + instances
            for part, instances in totals.items():
                if waiting and waiting_instances + instances > PIECE_INSTANCES:
                    yield from self._cut(run, waiting, waiting_instances, by_part)
                    waiting, waiting_instances = [], 0
                waiting.append(part)
                waiting_instances += instances
            yield from self._cut(run, waiting, waiting_instances, by_part)

    def _cut(
        self, run: str, parts: Sequence["Part"], instances: int, by_part: dict[tuple[str, ...], str]
    ) -> Iterator["_Piece"]:
        """Cut the images of neighbouring parts by their uris, by which compacted parts are sorted."""
        paths = [by_part[run, part.name] for part in parts]
        condition = f"{_is_run(run)} AND shard BETWEEN {parts[0].first} AND {parts[-1].last}"
        if instances <= PIECE_INSTANCES:
            yield _Piece(condition, "true", paths)
            return
        ends = self._database.execute(
            "SELECT max(uri) FROM (SELECT uri, (sum(instances) OVER (ORDER BY uri) - 1) // "  # noqa: S608  # nosec B608
            f"{PIECE_INSTANCES} AS piece FROM exported_images WHERE {condition}) GROUP BY piece ORDER BY piece"
        ).fetchall()
        before: str | None = None
        for (end,) in ends:
            uris = f"uri <= {_text(end)}" + (f" AND uri > {_text(before)}" if before is not None else "")
            yield _Piece(f"{condition} AND {uris}", uris, paths)
            before = end

    def _categories(self, instances: str, chosen: str) -> list[str]:
        sql = f"SELECT DISTINCT category FROM {instances} WHERE {chosen} ORDER BY 1"  # noqa: S608  # nosec B608
        return [str(name) for (name,) in self._database.execute(sql).fetchall()]

    def _one(self, sql: str) -> Any:
        return self._database.execute(sql).fetchall()[0][0]


@dataclass(frozen=True)
class _Piece:
    """Neighbouring images: a condition on `exported_images`, one on the uris of instances, and the parts of these."""

    condition: str
    uris: str
    paths: Sequence[str]


def _name_images(database: "duckdb.DuckDBPyConnection", images: str, chosen: str, roots: Mapping[str, str]) -> int:
    """Create the table `exported_images`: the chosen images with a number, a name and a file name; return how many.

    Two files whose paths without suffix are the same in any case would share a label file, so that the later one gets a
    number, and none that another has.
    """

    def names(uris: pa.ChunkedArray, runs: pa.ChunkedArray) -> pa.StructArray:
        rows = zip(uris.to_pylist(), runs.to_pylist(), strict=True)
        found = [relative_name(uri, roots.get(run, "")) for uri, run in rows]
        split = [split_name(name) for name in found]
        columns = [found, [stem for stem, _ in split], [suffix for _, suffix in split]]
        return pa.StructArray.from_arrays([pa.array(each, pa.string()) for each in columns], ["name", "stem", "suffix"])

    kind = "STRUCT(name VARCHAR, stem VARCHAR, suffix VARCHAR)"
    database.create_function("export_names", names, ["VARCHAR", "VARCHAR"], kind, type=PythonUDFType.ARROW)
    database.execute(
        f"""CREATE TEMP TABLE named AS
        SELECT row_number() OVER (ORDER BY uri, run) AS number, *, export_names(uri, run) AS names, false AS is_renamed
        FROM (SELECT {_IMAGE_COLUMNS} FROM {images} WHERE {chosen} AND status = 'ok')"""  # noqa: S608  # nosec B608
    )
    database.execute(
        "CREATE TEMP TABLE exported_images AS SELECT * EXCLUDE (names), names.name AS name, names.stem AS stem, "
        "names.suffix AS suffix FROM named ORDER BY number"
    )
    database.execute("DROP TABLE named")
    while True:
        database.execute(
            """CREATE OR REPLACE TEMP TABLE repeated AS SELECT number, repeat FROM (
                SELECT number, row_number() OVER (PARTITION BY lower(stem) ORDER BY is_renamed, number) AS repeat
                FROM exported_images) WHERE repeat > 1"""
        )
        ((repeated,),) = database.execute("SELECT count(*) FROM repeated").fetchall()
        if not repeated:
            break
        database.execute(
            "UPDATE exported_images SET stem = stem || '-' || repeat, is_renamed = true FROM repeated "
            "WHERE repeated.number = exported_images.number"
        )
    return int(database.execute("SELECT count(*) FROM exported_images").fetchall()[0][0])


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _is_run(run: str) -> str:
    return f"run = {_text(run)}"


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
    place = {name: row[name] for name in _OF_PLACE if name in row}
    return ExportedImage(**{name: row[name] for name in _OF_IMAGE}, **place, instances=tuple(instances))


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
