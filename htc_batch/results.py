"""Results: the tables of an output for Python, with choices of rows, data frames, masks and SQL."""

import atexit
import difflib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError, SpecError, StorageError
from pipeline.job_spec.map_tables import MapTable
from pipeline.output.layout import TableName
from pipeline.output.results import ATTEMPTS
from pipeline.output.results import Results as Tables
from pipeline.output.schema import TABLE_SCHEMAS
from pipeline.output.views import check_parts, open_database, translated_sql_errors
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl

    from htc_batch.image_dataset import ImageDataset
    from htc_batch.label_map import LabelMap
    from htc_batch.masks import Masks
    from jobs.results.diff import Diff
    from jobs.results.evaluation import Evaluation
    from pipeline.storage.config import StorageSection

LATEST, CURRENT = "latest", "current"
"""In the place of a run's name: the newest run with images; of each image the newest rows of all runs."""
BATCH_ROWS = 8192
# Enough names to find a misspelt one, few enough to compare at once.
MAX_NAMES_COMPARED = 50_000

Image = int | str | Mapping[str, Any]
"""How an image is named: by its image_id, its uri (or the end of one), or a row that has one of the two."""
T = TypeVar("T")
_RUN = pa.field("run", pa.string())


class Results(Tables):
    """The tables of one output folder, finished or not; committed rows only.

    `run` is a run's name, "latest" for the newest one with images, "current" for the newest rows of each image of all
    runs, or None for the rows of every run. A run that really has one of the two names is meant by it.

    Runs and parts are listed once, when they are first needed; `refresh` lists them again. Every method that reads
    raises DamagedFileError where a part is damaged or missing.
    """

    def __init__(self, output_uri: str, storage: Storage) -> None:
        """Read the runs' records.

        Raises:
            InputError: there is no run.
            DamagedFileError: no run.json can be read.
        """
        super().__init__(output_uri, storage)
        self._opened: _Database | None = None
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Callable[..., "Results"], tuple[str, Storage]]:
        # The process that unpickles lists the output again, and opens its own database.
        return Results, (self.output_uri, self.storage)

    def images(
        self, run: str | None = None, columns: Sequence[str] | None = None, *, status: str | None = None
    ) -> pa.Table:
        """Read rows of `images` with a `run` column at the end, in the order of run and shard.

        Args:
            columns: names; None for all.
            status: only images that ended so: ok, unreadable, missing, too_large or failed.

        Raises:
            InputError: there is no run of this name, or no such column.
        """
        return self._read_chosen("images", run, columns, _equal("status", status))

    def instances(
        self,
        run: str | None = None,
        columns: Sequence[str] | None = None,
        *,
        category: str | int | Sequence[str | int] | None = None,
        min_score: float | None = None,
        image: Image | None = None,
    ) -> pa.Table:
        """Read rows of `instances` with a `run` column at the end, in the order of run and shard.

        Args:
            columns: names; None for all.
            category: names or ids of categories; one that no instance has gives no rows.
            min_score: only instances that score at least as much.
            image: only those of this image, see `masks`; of a compacted run its rows are read alone.

        Raises:
            InputError: there is no run of this name, no such column, or no such image.
        """
        chosen = _of_instances(category, min_score)
        if image is not None:
            chosen &= _of_image(self.find_image(image, run))
        return self._read_chosen("instances", run, columns, chosen)

    def semantic(
        self, run: str | None = None, columns: Sequence[str] | None = None, *, image: Image | None = None
    ) -> pa.Table:
        """Read rows of `semantic` with a `run` column at the end; none where no run was asked for it.

        Args:
            columns: names; None for all.
            image: only those of this image, see `masks`.

        Raises:
            InputError: there is no run of this name, no such column, or no such image.
        """
        chosen = _Choice() if image is None else _of_image(self.find_image(image, run))
        return self._read_chosen("semantic", run, columns, chosen)

    def panoptic(
        self, run: str | None = None, columns: Sequence[str] | None = None, *, image: Image | None = None
    ) -> pa.Table:
        """Read rows of `panoptic`, as `semantic` does those of that table."""
        chosen = _Choice() if image is None else _of_image(self.find_image(image, run))
        return self._read_chosen("panoptic", run, columns, chosen)

    def semantic_map(self, image: Image, run: str | None = LATEST) -> "LabelMap":
        """Return an image's semantic map; its classes' masks are decoded when they are asked for.

        Args:
            image: see `masks`.
            run: a run's name, "latest" or "current".

        Raises:
            InputError: the run has no such image, or was not asked for semantic maps.
        """
        return self._label_map("semantic", image, run)

    def panoptic_map(self, image: Image, run: str | None = LATEST) -> "LabelMap":
        """Return an image's panoptic map, as `semantic_map` does its semantic map."""
        return self._label_map("panoptic", image, run)

    def batches(
        self,
        run: str | None = None,
        columns: Sequence[str] | None = None,
        *,
        category: str | int | Sequence[str | int] | None = None,
        min_score: float | None = None,
        rows: int = BATCH_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows of `instances` in batches of at most `rows`, so that memory does not grow with their number.

        Raises:
            InputError: there is no run of this name, or no such column.
            SpecError: `rows` or `min_score` is no such number.
            StorageError: the output was compacted or pruned meanwhile; there would be more rows.
        """
        if not isinstance(rows, int) or rows < 1:
            raise SpecError(f"rows is a whole number from 1, not {rows!r}.")
        sql, values = self.instances_sql(run, columns, category=category, min_score=min_score)
        schema = _schema_of("instances", columns)
        # A database of its own, because the caller may ask other things between two batches.
        with closing(open_database(self)) as database, translated_sql_errors():
            for batch in database.sql(sql, params=values).to_arrow_reader(rows):
                yield batch.cast(schema)

    def to_pandas(self, table: TableName = "instances", **choice: Any) -> "pd.DataFrame":
        """Read rows as a pandas data frame.

        Args:
            choice: what the method of the table's name takes.

        Raises:
            SpecError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise SpecError("to_pandas needs pandas: pip install pandas.") from None
        frame: pd.DataFrame = self._table(table, choice).to_pandas()
        return frame

    def to_polars(self, table: TableName = "instances", **choice: Any) -> "pl.DataFrame":
        """Read rows as a polars data frame.

        Args:
            choice: what the method of the table's name takes.

        Raises:
            SpecError: polars is not installed.
        """
        try:
            import polars as pl
        except ImportError:
            raise SpecError("to_polars needs polars: pip install polars.") from None
        return pl.DataFrame(self._table(table, choice))

    def masks(self, image: Image, run: str | None = LATEST, *, min_score: float | None = None) -> "Masks":
        """Return the masks of an image, most confident first; each is decoded when it is asked for.

        Args:
            image: its image_id, its uri or the end of one (after a slash), or a row of `images` or `instances`.
            run: a run's name, "latest" or "current".

        Raises:
            InputError: the run has no such image, or the end of a uri is that of several.
        """
        return self.masks_of(self.find_image(image, run), min_score=min_score)

    def masks_of(
        self,
        row: Mapping[str, Any],
        *,
        category: str | int | Sequence[str | int] | None = None,
        min_score: float | None = None,
    ) -> "Masks":
        """Return the masks of an image by its row of `images`, with at least image_id, uri, run, width and height."""
        from htc_batch.masks import Masks

        chosen = _of_instances(category, min_score) & _of_image(row)
        rows = self._read_chosen("instances", str(row["run"]), None, chosen)
        return Masks(row, rows.sort_by([("instance", "ascending")]))

    def dataset(self, run: str | None = LATEST, **choice: Any) -> "ImageDataset":
        """Return the images with a result as a `torch.utils.data.Dataset` of pixels and instances.

        Args:
            run: a run's name, "latest" or "current".
            choice: what `ImageDataset` takes.

        Raises:
            InputError: there is no run of this name, or it has no image with a result.
        """
        from htc_batch.image_dataset import ImageDataset

        return ImageDataset(self, run, **choice)

    def sql(self, text: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> "duckdb.DuckDBPyRelation":
        """Run SQL over the views of `htc query`, with its functions for masks.

        The SQL may name the caller's data frames and Arrow tables, and read and write files, as with `connect`.

        Args:
            parameters: for `?` and `$name` in the text.

        Returns:
            DuckDB's relation, which is computed when it is read: by `.df()`, `.pl()`, `.to_arrow_table()`,
            `.fetchall()`, or by printing it. Of a statement without an answer it has no rows.

        Raises:
            SpecError: the SQL is wrong; DuckDB's words say why.
        """
        with self._lock:
            database = self._connection()
            with translated_sql_errors():
                relation = database.sql(text, params=parameters)
            return database.sql("SELECT 1 AS done WHERE false") if relation is None else relation

    def find_image(self, image: Image, run: str | None = LATEST) -> dict[str, Any]:
        """Return the row of `images` of one image; the newest one where several runs have it.

        Args:
            image: see `masks`.

        Raises:
            InputError: there is no such image, or the end of a uri is that of several.
        """
        named = image if isinstance(image, int | str) else image.get("uri", image.get("image_id"))
        if not isinstance(named, int | str):
            raise SpecError("An image is named by its image_id, its uri, or a row that has one of the two.")
        if isinstance(named, int):
            found = self._newest_first(run, _equal("image_id", named))
        else:
            # First the whole uri, by which compacted parts are sorted; the end of one is looked for in all of them.
            found = self._newest_first(run, _equal("uri", named))
            ending = _Choice(("ends_with(uri, $ending)",), {"ending": "/" + named.lstrip("/")})
            found = found or self._newest_first(run, ending)
        if not found:
            raise InputError(f"There is no image {named} in {self._run_in_words(run)}{self._suggestion(named, run)}")
        uris = list(dict.fromkeys(str(row["uri"]) for row in found))
        if len(uris) > 1:
            from jobs.results.image_lookup import several_uris

            raise several_uris(str(named), uris)
        return found[0]

    def evaluate(self, truth: "str | Mapping[str, Any]", run: str | None = None, **options: Any) -> "Evaluation":
        """Score a run against COCO annotations; see `htc_batch.evaluate`."""
        from htc_batch.commands import evaluate

        name = None if run is None else self._run_name(run)
        return evaluate(self.output_uri, truth, name, storage=self.storage.section, **options)

    def diff(self, run_a: str | None = None, run_b: str | None = None, **options: Any) -> "Diff":
        """Compare two runs; see `htc_batch.diff`."""
        from htc_batch.commands import diff

        return diff(self.output_uri, run_a, run_b, storage=self.storage.section, **options)

    def refresh(self) -> None:
        """List runs and parts again when they are needed next; relations that `sql` has returned keep their listing."""
        super().refresh()
        self.__dict__.pop("records", None)
        with self._lock:
            self._drop_connection()

    def __repr__(self) -> str:
        """Return the folder, and how many runs and images it has."""
        from htc_batch.summaries import text_of

        return text_of(self)

    def _repr_html_(self) -> str:
        """Return runs, outcomes and categories as tables, for notebooks."""
        from htc_batch.summaries import html_of

        return html_of(self)

    def ask(self, sql: str, values: Mapping[str, Any] | None = None) -> pa.Table:
        """Run SQL over the views and read its whole answer; parts that were compacted meanwhile are looked up again.

        Raises:
            SpecError: the SQL is wrong.
            StorageError: parts were compacted or pruned at each of several attempts.
        """
        for _ in range(ATTEMPTS):
            try:
                with self._lock, translated_sql_errors():
                    return self._connection().sql(sql, params=dict(values or {})).to_arrow_table()
            except (SpecError, StorageError) as error:
                if not self.has_moved():
                    check_parts(self, error)
                    raise
                self.refresh()
        raise self.moved_error()

    def instances_sql(
        self,
        run: str | None,
        columns: Sequence[str] | None,
        *,
        category: str | int | Sequence[str | int] | None = None,
        min_score: float | None = None,
    ) -> tuple[str, dict[str, Any]]:
        """Return the SQL for `ask` that reads rows as `instances` does, and the values of its parameters."""
        return self._select("instances", run, columns, _of_instances(category, min_score))

    def _connection(self) -> "duckdb.DuckDBPyConnection":
        if self._opened is not None and self._opened.process_id != os.getpid():
            self._drop_connection()
        if self._opened is None:
            self._opened = _Database(self)
        return self._opened.connection

    def _drop_connection(self) -> None:
        if self._opened is not None and self._opened.process_id != os.getpid():
            # Of the process that forked this one: to end it would wait for threads that only the other has.
            _OF_PARENTS.append(self._opened)
        self._opened = None

    def _table(self, table: TableName, choice: Mapping[str, Any]) -> pa.Table:
        if table not in TABLE_SCHEMAS:
            raise SpecError(f"There is no table {table}; the tables are {', '.join(TABLE_SCHEMAS)}.")
        read: pa.Table = getattr(self, table)(**choice)
        return read

    def _label_map(self, table: MapTable, image: Image, run: str | None) -> "LabelMap":
        from htc_batch.label_map import LabelMap

        row = self.find_image(image, run)
        name = str(row["run"])
        if table not in self.tables(name):
            raise InputError(f"The run {name} was not asked for the table {table}; a run with --{table} writes it.")
        return LabelMap(row, self._read_chosen(table, name, None, _of_image(row)), table)

    def _read_chosen(
        self, table: TableName, run: str | None, columns: Sequence[str] | None, chosen: "_Choice"
    ) -> pa.Table:
        schema = _schema_of(table, columns)
        is_current = self._is_current(run)
        if not chosen.conditions and not is_current:
            return self._read(table, self._run_name(run), columns)
        sql, values = self._select(table, run, columns, chosen)
        return self.ask(sql, values).cast(schema)

    def _select(
        self, table: TableName, run: str | None, columns: Sequence[str] | None, chosen: "_Choice"
    ) -> tuple[str, dict[str, Any]]:
        view: str = table
        whole = chosen
        if self._is_current(run):
            view = "current" if table == "images" else f"current_{table}"
        else:
            whole = _equal("run", self._run_name(run)) & chosen
        names = ", ".join(_schema_of(table, columns).names)
        where = f" WHERE {' AND '.join(whole.conditions)}" if whole.conditions else ""
        return f"SELECT {names} FROM {view}{where}", dict(whole.values)  # noqa: S608 - our own names

    def _is_current(self, run: str | None) -> bool:
        return run == CURRENT and CURRENT not in self.runs()

    def _run_name(self, run: str | None) -> str | None:
        """Return the name of a run.

        Raises:
            InputError: there is none of this name.
            DamagedFileError: its record is damaged.
        """
        if run == LATEST and LATEST not in self.runs():
            return self.newest_run()
        if run is not None:
            self.check_run(run)
        return run

    def _run_in_words(self, run: str | None) -> str:
        if run is None or self._is_current(run):
            return self.output_uri
        return f"the run {self._run_name(run)} of {self.output_uri}"

    def _newest_first(self, run: str | None, chosen: "_Choice") -> list[dict[str, Any]]:
        sql, values = self._select("images", run, None, chosen)
        rows: list[dict[str, Any]] = self.ask(f"{sql} LIMIT 10000", values).to_pylist()
        age = {name: number for number, name in enumerate(self.runs())}
        return sorted(rows, key=lambda row: -age[row["run"]])

    def _suggestion(self, named: int | str, run: str | None) -> str:
        if isinstance(named, str):
            sql, values = self._select("images", run, ["uri"], _Choice())
            known = self.ask(f"{sql} LIMIT {MAX_NAMES_COMPARED}", values).column("uri").to_pylist()
            by_name = {str(uri).rsplit("/", 1)[-1]: uri for uri in known}
            if close := difflib.get_close_matches(named.rsplit("/", 1)[-1], by_name, n=1):
                return f"; did you mean {by_name[close[0]]}?"
        return "; images() lists them."


class _Database:
    """An open DuckDB connection with the views, of the process that opened it.

    It ends with the last relation that was made with it, so that `open(...).sql(...)` can be read in one line; when the
    process ends at the latest, because its functions are Python's.
    """

    def __init__(self, results: Tables) -> None:
        self.process_id = os.getpid()
        self.connection = open_database(results, is_external_allowed=True)
        # The caller's data frames are in frames above those of this module.
        self.connection.execute("SET python_scan_all_frames = true")
        _OPEN[self.connection] = self.process_id


_OF_PARENTS: list[_Database] = []
_OPEN: "weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, int]" = weakref.WeakKeyDictionary()
"""Connections that something still holds, with the process that opened them."""


@atexit.register
def _close_open_connections() -> None:
    for connection, process_id in list(_OPEN.items()):
        # A copy in a forked process belongs to its parent.
        if process_id == os.getpid():
            connection.close()


def _schema_of(table: TableName, columns: Sequence[str] | None) -> pa.Schema:
    """Return the schema of some columns, in the order of the table, and `run`.

    Raises:
        InputError: there is no such column.
    """
    schema = TABLE_SCHEMAS[table]
    if isinstance(columns, str):
        raise SpecError(f'columns is a list of names, such as ["{columns}"], not the text {columns!r}.')
    for name in columns or ():
        if name not in schema.names and name != _RUN.name:
            close = difflib.get_close_matches(name, schema.names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"its columns are {', '.join(schema.names)}, run."
            raise InputError(f"{table} has no column {name}; {hint}")
    wanted = [field for field in schema if columns is None or field.name in columns]
    return pa.schema([*wanted, _RUN], metadata=schema.metadata)


@dataclass(frozen=True)
class _Choice:
    """Conditions of SQL on the rows of a view, and the values of their parameters."""

    conditions: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def __and__(self, other: "_Choice") -> "_Choice":
        return _Choice(self.conditions + other.conditions, {**self.values, **other.values})


def _equal(column: str, value: Any) -> _Choice:
    return _Choice() if value is None else _Choice((f"{column} = ${column}",), {column: value})


def _of_image(row: Mapping[str, Any]) -> _Choice:
    # The id is a hash: the uri decides between two images with the same id, and parts are sorted by it.
    return _equal("uri", row["uri"]) & _equal("image_id", row["image_id"])


def _of_instances(category: str | int | Sequence[str | int] | None, min_score: float | None) -> _Choice:
    chosen = _Choice()
    if min_score is not None:
        if not isinstance(min_score, int | float | np.number):
            raise SpecError(f"min_score is a number from 0 to 1, not {min_score!r}.")
        chosen &= _Choice(("score >= $min_score",), {"min_score": float(min_score)})
    if category is None:
        return chosen
    wanted = [category] if isinstance(category, str | int) else list(category)
    values = {f"category_{number}": value for number, value in enumerate(wanted)}
    columns = ["category" if isinstance(value, str) else "category_id" for value in wanted]
    either = " OR ".join(f"{column} = ${name}" for column, name in zip(columns, values, strict=True))
    return chosen & _Choice((f"({either})" if either else "false",), values)


def open_results(output_uri: str, storage: "Mapping[str, Any] | StorageSection | None" = None) -> Results:
    """Open an output folder for reading.

    Args:
        storage: how a store is reached, by the keys of the job spec's section `storage`; None for the defaults.

    Raises:
        InputError: it holds no run.
        SpecError: `storage` has an unknown key.
    """
    return Results(output_uri, Storage(section_of(storage)))


def section_of(storage: "Mapping[str, Any] | StorageSection | None") -> "StorageSection":
    """Return the section `storage` of a job spec.

    Raises:
        SpecError: a key is unknown, or its value is not one of its values.
    """
    from pipeline.job_spec.parsing import read_spec
    from pipeline.storage.config import StorageSection

    if isinstance(storage, StorageSection):
        return storage
    return read_spec(StorageSection, None, storage, name="section storage")
