"""The tables of an output for many requests at once: read only, with limits, and renewed as a run goes on.

One database is shared; each question gets a cursor of its own, in a transaction that cannot write, so that neither its
temporary tables nor its interruption concern another one.
"""

import contextlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from jobs.results.browse.work import Job, TimeLimitError
from jobs.results.drawing import ImageReader
from jobs.results.map_tables import has_table, read_rows
from jobs.results.query import read_instances
from pipeline.errors import HtcError, NotFoundError, SpecError, StorageError
from pipeline.output.dataset import open_files
from pipeline.output.part_files import check_columns, parquet_errors
from pipeline.output.parts import part_uri
from pipeline.output.query_files import SCHEME, VIEW_SCHEMAS
from pipeline.output.results import Results, open_results
from pipeline.output.schema import IMAGES_SCHEMA
from pipeline.output.views import VIEWS, open_database, translated_sql_errors
from pipeline.storage.storage import Storage
from pipeline.text import message_of

CURRENT = "current"
"""Stands for each image's newest rows of all runs."""
# How old the list of committed parts may be before it is read again, in the background.
REFRESH_S = 30.0
# Facts about images that pages have shown, for the pictures that the browser asks for next.
KEPT_IMAGES = 20_000
# Longer than any name of an image: links are made of cells.
MAX_CELL_CHARS = 4_096
# Elements of a list whose text is shown; pages show 200 characters, which so many elements exceed.
MAX_CELL_ELEMENTS = 200
# All cells of an answer together.
MAX_ANSWER_CHARS = 8_000_000
MAX_ANSWER_CELLS = 200_000
MAX_SENTENCE_CHARS = 2_000
IMAGE_COLUMNS = ("image_id", "uri", "etag", "bytes", "width", "height", "shard", "status", "error", "instances", "run")
_EXCERPT = re.compile(r"\n(LINE \d+: .*)", re.DOTALL)
_READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
# Types whose values are small; everything else is shown as text.
_SMALL_TYPES = frozenset(
    {
        *("boolean", "tinyint", "smallint", "integer", "bigint", "hugeint"),
        *("utinyint", "usmallint", "uinteger", "ubigint", "uhugeint", "float", "double", "decimal"),
        *("date", "time", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone"),
    }
)


class SqlError(SpecError):
    """DuckDB refused SQL.

    excerpt: the place in the SQL, as DuckDB shows it; "" where it shows none.
    """

    def __init__(self, sentence: str, excerpt: str = "") -> None:
        super().__init__(sentence)
        self.excerpt = excerpt


@dataclass(frozen=True)
class ImageFacts:
    """One row of `images`, as `ImageRow` has it; `width` and `height` in pixels, None if it was never decoded."""

    image_id: int
    uri: str
    etag: str | None
    bytes: int | None
    width: int | None
    height: int | None
    shard: int
    status: str
    error: str | None
    instances: int
    run: str


@dataclass(frozen=True)
class Answer:
    """The answer to SQL.

    columns: names with their types. rows: at most as many as asked for. is_cut: whether there are more.
    """

    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Any]]
    is_cut: bool = False


class _Listed:
    """An output as it was listed at one moment."""

    def __init__(self, output_uri: str, storage: Storage, image_storage: Storage) -> None:
        self.results = open_results(output_uri, storage)
        self.database = open_database(self.results)
        # What is registered is seen by one connection only, and a cursor is another one.
        kept = "SELECT view_name FROM duckdb_views() WHERE NOT temporary"
        views = {str(row[0]) for row in self.database.execute(kept).fetchall()}
        for name in (*VIEW_SCHEMAS, "runs"):
            if name not in views:
                self.database.execute(f"CREATE TABLE main.{name} AS SELECT * FROM {name}")  # noqa: S608  # nosec B608 - our names
        self.signature = {run: tuple(self.results.committed(run)) for run in self.results.runs()}
        self.records = {record.run: record for record in self.results.records}
        self.reader = ImageReader(Results(output_uri, image_storage) if image_storage is not storage else self.results)


class Tables:
    """Answers questions about an output; safe to use from several threads."""

    def __init__(
        self,
        output_uri: str,
        storage: Storage,
        *,
        image_storage: Storage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the output.

        Args:
            image_storage: reads the images; None takes `storage`.

        Raises:
            InputError: it holds no run.
            DamagedFileError: no run.json can be read.
        """
        self._storage = storage
        self._image_storage = image_storage or storage
        self._clock = clock
        self._lock = threading.Lock()
        self._is_refreshing = threading.Lock()
        self._listed = _Listed(output_uri, storage, self._image_storage)
        self._listed_at = clock()
        self._images: OrderedDict[tuple[str, str], ImageFacts] = OrderedDict()
        self.generation = 0
        self.refresh_problem = ""

    @property
    def output_uri(self) -> str:
        """The output's folder or prefix."""
        return self._listed.results.output_uri

    @property
    def storage(self) -> Storage:
        """How the output is read."""
        return self._storage

    @property
    def results(self) -> Results:
        """The output as it was listed last; do not keep it."""
        return self._listed.results

    def is_old(self) -> bool:
        """Return whether the committed parts should be listed again."""
        return self._clock() - self._listed_at > REFRESH_S

    def refresh(self) -> bool:
        """List the committed parts again; a listing that is under way in another thread is not repeated.

        Returns:
            Whether anything has changed.
        """
        if not self._is_refreshing.acquire(blocking=False):
            return False
        try:
            listed = _Listed(self._listed.results.output_uri, self._storage, self._image_storage)
            self.refresh_problem = ""
            is_changed = listed.signature != self._listed.signature
            with self._lock:
                # Also when no part is new: a run may have been begun or ended.
                self._listed = listed
                if is_changed:
                    self.generation += 1
                    self._images.clear()
            return is_changed
        except HtcError as error:
            self.refresh_problem = str(error)
            return False
        finally:
            self._listed_at = self._clock()
            self._is_refreshing.release()

    def ask(self, sql: str, values: dict[str, Any] | None = None, *, job: Job, rows: int) -> Answer:
        """Ask a question; asks again when parts were compacted or pruned meanwhile.

        Args:
            sql: one statement that only reads. values: of its parameters.
            job: cancels the query. rows: the most to return.

        Raises:
            SqlError: DuckDB refuses it.
            TimeLimitError: the job was cancelled.
            DamagedFileError, StorageError: a part cannot be read.
        """
        return self._ask_again_if_moved(lambda database: _ask(database, sql, values or {}, job, rows), job)

    def _ask_again_if_moved(self, question: Callable[[duckdb.DuckDBPyConnection], Answer], job: Job) -> Answer:
        listed = self._listed
        try:
            return question(listed.database)
        except (SpecError, StorageError) as error:
            if job.is_cancelled:
                raise TimeLimitError("The query was stopped.") from None
            # Whether parts have moved costs a listing, which an error in the SQL itself is not worth.
            if not _is_about_files(error) or not listed.results.has_moved():
                raise
        self.refresh()
        return question(self._listed.database)

    def ask_freely(self, sql: str, *, job: Job, rows: int) -> Answer:
        """Ask a question of the user's own, whose values may be of any size: as `ask`, but long ones come as cut text.

        DuckDB cuts them, outside Python's lock and where it can be interrupted; a list of a million elements as Python
        objects would hold up all other threads.
        """
        return self._ask_again_if_moved(lambda database: _ask(database, sql, {}, job, rows, is_cutting=True), job)

    def schema(self, job: Job) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return the views with the names and types of their columns."""
        found = {view: self.ask(f"DESCRIBE {view}", job=job, rows=100).rows for view in VIEWS}
        return [(view, [(str(row[0]), str(row[1])) for row in rows]) for view, rows in found.items()]

    def images(self, sql: str, values: dict[str, Any], *, job: Job, rows: int) -> list[dict[str, Any]]:
        """Ask for rows that have `IMAGE_COLUMNS` among their columns, and remember these for the pictures."""
        answer = self.ask(sql, values, job=job, rows=rows)
        names = [name for name, _ in answer.columns]
        found = [dict(zip(names, row, strict=True)) for row in answer.rows]
        for row in found:
            self.remember(ImageFacts(**{name: row[name] for name in IMAGE_COLUMNS}))
        return found

    def remember(self, image: ImageFacts) -> None:
        """Keep an image's row."""
        with self._lock:
            self._images[image.run, image.uri] = image
            self._images.move_to_end((image.run, image.uri))
            while len(self._images) > KEPT_IMAGES:
                self._images.popitem(last=False)

    def find_image(self, run: str, uri: str, *, job: Job, shard: int | None = None) -> ImageFacts:
        """Find an image's row: as it was shown last, in its shard's part, or among all of the run.

        Args:
            run: a run's name, or CURRENT. shard: where it is looked for first.

        Raises:
            NotFoundError: the run has no such image.
        """
        with self._lock:
            known = self._images.get((run, uri))
        if known is not None:
            return known
        found = self._find_in_shard(run, uri, shard) if shard is not None and run in self._listed.records else None
        if found is None:
            table, of_run = ("current", "true") if self.is_current(run) else ("images", "run = $run")
            values = {"uri": uri} if table == "current" else {"uri": uri, "run": run}
            sql = f"SELECT {', '.join(IMAGE_COLUMNS)} FROM {table} WHERE {of_run} AND uri = $uri"  # noqa: S608
            rows = self.images(sql, values, job=job, rows=1)
            if not rows:
                raise NotFoundError(f"Run {run} has no image {uri}.")
            found = ImageFacts(**rows[0])
        self.remember(found)
        return found

    def is_current(self, run: str) -> bool:
        """Return whether a run's name stands for the newest rows of all runs."""
        return run == CURRENT and CURRENT not in self._listed.records

    def is_trained(self, run: str) -> bool:
        """Return whether a run's model had trained weights, so that its scores mean something."""
        record = self._listed.records.get(run)
        return record is None or bool(record.fingerprint.get("trained", True))

    def instances(self, image: ImageFacts) -> list[dict[str, Any]]:
        """Return an image's rows of `instances`, highest score first.

        Raises:
            DamagedFileError: their part is damaged or missing.
        """
        return read_instances(self._listed.results, image.run, image.shard, image.image_id, image.uri)

    def has_map(self, run: str) -> bool:
        """Return whether a run has panoptic segments; of "current", whether some run has."""
        results = self._listed.results
        return any(has_table(results, each, "panoptic") for each in (results.runs() if self.is_current(run) else [run]))

    def segments(self, image: ImageFacts) -> list[dict[str, Any]]:
        """Return an image's rows of `panoptic`; errors as `instances`."""
        return read_rows(self._listed.results, "panoptic", image)

    def reader(self) -> ImageReader:
        """Return the reader of the runs' images."""
        return self._listed.reader

    def _find_in_shard(self, run: str, uri: str, shard: int) -> ImageFacts | None:
        results = self._listed.results
        part = next((each for each in results.committed(run) if shard in each.shards), None)
        if part is None:
            return None
        name = part_uri(results.output_uri, "images", run, part)
        fragment = pads.ParquetFileFormat().make_fragment(name, open_files(results.output_uri, self._storage))
        try:
            with parquet_errors(name):
                check_columns(name, fragment.physical_schema, IMAGES_SCHEMA)
                wanted = (pads.field("shard") == shard) & (pads.field("uri") == uri)
                columns = [column for column in IMAGE_COLUMNS if column != "run"]
                rows: pa.Table = fragment.to_table(schema=IMAGES_SCHEMA, filter=wanted, columns=columns)
        except NotFoundError:
            # Compacted since it was listed.
            return None
        return ImageFacts(**rows.to_pylist()[0], run=run) if len(rows) else None


def check_reading(sql: str) -> None:
    """Check that SQL is one statement that reads.

    Raises:
        SqlError: it is none.
    """
    with _duckdb_words():
        statements = duckdb.extract_statements(sql)
    if not statements:
        raise SqlError("The SQL holds no statement.")
    if len(statements) > 1:
        raise SqlError("Ask one statement at a time.")
    if statements[0].type not in _READING:
        raise SqlError(
            f"Only statements that read are answered here, such as SELECT, DESCRIBE or SUMMARIZE; this is "
            f"{statements[0].type.name}."
        )


def _is_about_files(error: HtcError) -> bool:
    return isinstance(error, StorageError) or any(sign in str(error) for sign in (SCHEME, "arquet"))


def _ask(
    database: duckdb.DuckDBPyConnection,
    sql: str,
    values: dict[str, Any],
    job: Job,
    rows: int,
    *,
    is_cutting: bool = False,
) -> Answer:
    check_reading(sql)
    # Conditions are shared by questions that do not all use them, and DuckDB refuses values that are not used.
    values = {name: value for name, value in values.items() if re.search(rf"\${name}\b", sql)}
    cursor = database.cursor()
    job.stoppable_by(cursor.interrupt)
    try:
        with _duckdb_words():
            # A CTE may hold an INSERT; temporary tables go with the cursor.
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            # EXPLAIN cannot stand in parentheses; its answer is short.
            is_cutting &= duckdb.extract_statements(sql)[0].type == duckdb.StatementType.SELECT
            if not is_cutting:
                answer = cursor.execute(sql, values)
                columns = [(str(column[0]), str(column[1])) for column in answer.description or []]
                found, is_cut = _fetch(answer, rows, len(columns), job)
            else:
                asked = _bound(cursor, sql)
                columns = list(zip(asked.columns, map(str, asked.types), strict=True))
                rows = max(1, min(rows, MAX_ANSWER_CELLS // len(columns)))
                shown = [f"{_cut(f'#{place}', kind)} AS c{place}" for place, kind in enumerate(asked.types, start=1)]
                cutting = f"SELECT {', '.join(shown)} FROM (\n{_without_end(sql)}\n) LIMIT {rows + 1}"  # noqa: S608
                found, is_cut = _fetch(cursor.execute(cutting), rows, len(columns), job)
            return Answer(columns, found, is_cut)
    finally:
        job.stoppable_by(None)
        cursor.close()


def _bound(cursor: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """Return a statement's relation, which knows its columns without running it."""
    try:
        return cursor.sql(sql)
    except duckdb.Error:
        # Executed, the statement fails as well, with the place in the SQL that a relation's error lacks.
        cursor.execute("ROLLBACK")
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        cursor.execute(sql)
        raise


def _cut(value: str, kind: "duckdb.sqltypes.DuckDBPyType") -> str:
    """Return SQL for a value as it is shown: small ones as they are, others as text of at most `MAX_CELL_CHARS`."""
    if kind.id in _SMALL_TYPES:
        return value
    return f"left(({_first(value, kind)})::VARCHAR, {MAX_CELL_CHARS})"


def _first(value: str, kind: "duckdb.sqltypes.DuckDBPyType", depth: int = 0) -> str:
    """Return SQL for a value with the first elements of its lists and the first bytes of its blobs only."""
    if kind.id == "varchar":
        return f"left({value}, {MAX_CELL_CHARS})"
    if kind.id == "blob":
        return f"{value}[:{MAX_CELL_CHARS}]"
    if kind.id in {"list", "array"}:
        ((_, child),) = _children(kind)
        first = f"list_slice({value}, 1, {MAX_CELL_ELEMENTS})"
        inner = _first(f"e{depth}", child, depth + 1)
        return first if inner == f"e{depth}" else f"list_transform({first}, lambda e{depth}: {inner})"
    if kind.id == "map":
        return f"map_from_entries(list_slice(map_entries({value}), 1, {MAX_CELL_ELEMENTS}))"
    if kind.id == "struct":
        parts = []
        for name, child in _children(kind):
            quoted = '"' + name.replace('"', '""') + '"'
            parts.append(f"{quoted} := {_first(f'struct_extract({value}, {_text(name)})', child, depth)}")
        return f"CASE WHEN {value} IS NULL THEN NULL ELSE struct_pack({', '.join(parts)}) END"
    return value


def _children(kind: "duckdb.sqltypes.DuckDBPyType") -> list[tuple[str, "duckdb.sqltypes.DuckDBPyType"]]:
    """Return the types inside a type; the size of an array is listed beside them."""
    return [(name, child) for name, child in kind.children if isinstance(child, duckdb.sqltypes.DuckDBPyType)]


def _without_end(sql: str) -> str:
    """Return one statement without the semicolons around it, so that it can stand in parentheses."""
    encoded = bytearray(sql.encode())
    for at, _ in duckdb.tokenize(sql):
        if encoded[at : at + 1] == b";":
            encoded[at : at + 1] = b" "
    return encoded.decode()


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _fetch(answer: duckdb.DuckDBPyConnection, rows: int, columns: int, job: Job) -> tuple[list[Sequence[Any]], bool]:
    found: list[Sequence[Any]] = []
    size = 0
    # Python's lock is held while a batch is fetched, and the answer must not grow far beyond its limit.
    batch_rows = max(1, min(256, MAX_ANSWER_CHARS // (MAX_CELL_CHARS * max(1, columns))))
    while len(found) <= rows and size <= MAX_ANSWER_CHARS:
        if job.is_cancelled:
            raise TimeLimitError("The query was stopped.")
        try:
            batch: Sequence[Sequence[Any]] = answer.fetchmany(min(batch_rows, rows + 1 - len(found)))
        except (OverflowError, ValueError) as error:
            raise SqlError(f"The answer holds a value that Python cannot ({error}); cast it to VARCHAR.") from None
        if not batch:
            return found, False
        found += batch
        size += sum(len(value) for row in batch for value in row if isinstance(value, str | bytes))
    return found[:rows], True


@contextlib.contextmanager
def _duckdb_words() -> Iterator[None]:
    """Turn DuckDB's errors inside the block into `SqlError`, with DuckDB's words and the place in the SQL.

    Raises:
        SqlError: DuckDB refuses the SQL.
        StorageError: a part cannot be read.
    """
    try:
        yield
    except duckdb.PermissionException as error:
        words = f"{_sentence(error)}. The SQL can read this output's tables only."
        raise SqlError(words, _excerpt(error)) from None
    except duckdb.Error as error:
        try:
            with translated_sql_errors():
                raise
        except SpecError as translated:
            raise SqlError(str(translated), _excerpt(error)) from None


def _sentence(error: duckdb.Error) -> str:
    return message_of(str(error).split("\nLINE ")[0][:MAX_SENTENCE_CHARS])


def _excerpt(error: duckdb.Error) -> str:
    found = _EXCERPT.search(str(error).split("Traceback (most recent call last)")[0])
    return found[1].rstrip() if found else ""
