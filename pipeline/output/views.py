"""DuckDB views of an output's tables, over committed parts only.

DuckDB reads the Parquet files itself, through a file system that holds the committed parts and cannot write
(`pipeline.output.query_files`). So uncommitted shards are not in a view, no file name is taken as a pattern, remote
storage needs no DuckDB extension, and filters and column choices reach the Parquet reader.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

import duckdb
import pyarrow as pa

import pipeline.errors
from pipeline.errors import DamagedFileError, HtcError, NotFoundError, SpecError, StorageError
from pipeline.job_spec.map_tables import MAP_TABLES
from pipeline.machine_limits import usable_cpus, usable_memory
from pipeline.output.deletions import deletion_parts
from pipeline.output.layout import TableName
from pipeline.output.mask_functions import register_mask_functions
from pipeline.output.part_files import read_part
from pipeline.output.query_files import SCHEME, VIEW_SCHEMAS, CommittedFiles
from pipeline.output.results import ATTEMPTS, READ_THREADS, Results, open_results
from pipeline.output.run_record import began
from pipeline.storage.damage import missing
from pipeline.storage.read_only_files import ReadOnlyFileSystem
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local
from pipeline.text import message_of

VIEWS = (
    *("images", "instances", "runs", "current", "current_instances", "deletions"),
    *("semantic", "panoptic", "current_semantic", "current_panoptic"),
)
"""What people query; `newest` is a step on the way to `current`."""
# A query can read the views only. The lock comes last, because it forbids further settings.
_CLOSED_SETTINGS = (
    "SET python_enable_replacements = false",
    f"SET allowed_directories = ['{SCHEME}://']",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
# DuckDB's own default, of all the memory that it sees (duckdb.org/docs/configuration, memory_limit).
DUCKDB_MEMORY_SHARE = 0.8
# Before the message of an error in one of our functions.
_FUNCTION_ERROR = "Python exception occurred while executing the UDF: ValueError: "
T = TypeVar("T")
_SQL_TYPES = {
    pa.bool_(): "BOOLEAN",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
}
# What DuckDB's Parquet reader reports of a broken footer or page index, which Arrow may not read.
_SIGNS_OF_BROKEN_BYTES = ("TProtocolException", "don't know what type", "Python file")
# Words in the errors of DuckDB's Parquet reader; errors in the SQL itself do not have them.
_SIGNS_OF_DAMAGE = (
    *(SCHEME, "Parquet", "parquet", "Thrift", "ZSTD", "page", "ompress", "buffer", "orrupt"),
    *_SIGNS_OF_BROKEN_BYTES,
)
_RUNS_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("created", pa.timestamp("us", tz="UTC")),
        ("input", pa.string()),
        ("model", pa.string()),
        ("weights_sha256", pa.string()),
        ("is_trained", pa.bool_()),
        ("images", pa.int64()),
        ("shards", pa.int64()),
        ("shards_committed", pa.int64()),
        ("mode", pa.string()),
        # 0 is the oldest run.
        ("position", pa.int64()),
    ]
)
# Of each image the run with its newest ok row, unless a later run has a deletion record of it. The id would do as a
# key; with the uri beside it, a condition on either reaches the Parquet reader, which then skips row groups.
_NEWEST = """
CREATE VIEW newest AS
WITH ok AS (
    SELECT image_id, uri, max(position) AS position FROM images JOIN runs USING (run)
    WHERE status = 'ok' GROUP BY image_id, uri
), gone AS (
    SELECT image_id, uri, max(position) AS position FROM deletions JOIN runs USING (run) GROUP BY image_id, uri
)
SELECT ok.image_id, ok.uri, runs.run
FROM ok JOIN runs ON runs.position = ok.position
LEFT JOIN gone ON gone.image_id = ok.image_id AND gone.uri = ok.uri
WHERE gone.position IS NULL OR gone.position <= ok.position
"""
_CURRENT = (
    "CREATE VIEW current AS SELECT images.* FROM images JOIN newest USING (image_id, uri, run) WHERE status = 'ok'"
)
_CURRENT_ROWS = tuple(
    f"CREATE VIEW current_{table} AS SELECT {table}.* FROM {table} JOIN newest USING (image_id, uri, run)"  # noqa: S608  # nosec B608 - our names
    for table in ("instances", *MAP_TABLES)
)
# The same where one run has all rows, and no image was deleted: nothing to look up in other runs.
_ONLY_RUN = (
    "CREATE VIEW current AS SELECT * FROM images WHERE status = 'ok'",
    *(f"CREATE VIEW current_{table} AS FROM {table}" for table in ("instances", *MAP_TABLES)),
)


def open_database(
    results: Results, *, is_external_allowed: bool = False, most_memory_bytes: int | None = None
) -> duckdb.DuckDBPyConnection:
    """Open an in-memory database with the views of `htc query`.

    Args:
        results: the output; the views hold what is committed now.
        is_external_allowed: whether SQL may read and write files, attach databases and load extensions.
        most_memory_bytes: what a query may keep in memory; the rest spills to the temporary folder. None for most of
            the memory that this process may use.
    """
    # By default DuckDB spills into `.tmp` in the current folder.
    spill = Path(tempfile.gettempdir()) / f"htc-query-{os.getpid()}"
    limits = _limits(is_stored=not is_local(results.output_uri), most_memory_bytes=most_memory_bytes)
    connection = duckdb.connect(":memory:", config=limits | {"temp_directory": str(spill)})
    try:
        files = CommittedFiles(results)
        connection.register_filesystem(ReadOnlyFileSystem(SCHEME, files))
        if is_local(results.output_uri):
            # The operating system caches local files.
            connection.execute("SET enable_external_file_cache = false")
            # Local reads do not wait, and further threads would only contend for Python's lock.
            connection.execute("SET async_threads = 0")
        for table, schema in VIEW_SCHEMAS.items():
            if files.has_any(table):
                connection.execute(f"CREATE VIEW {table} AS {rows_of_parts(table, [f'{SCHEME}://{table}/*'])}")
            else:
                connection.register(table, schema.append(pa.field("run", pa.string())).empty_table())
        connection.register("runs", _runs_table(results))
        # Times are the same on every machine; the wheel includes the extension for time zones.
        connection.execute("SET TimeZone = 'UTC'")
        is_one_run = files.runs_of("images") <= 1 and not files.has_any("deletions")
        for view in _ONLY_RUN if is_one_run else (_NEWEST, _CURRENT, *_CURRENT_ROWS):
            connection.execute(view)
        register_mask_functions(connection)
        for setting in () if is_external_allowed else _CLOSED_SETTINGS:
            connection.execute(setting)
    except BaseException:
        connection.close()
        raise
    return connection


def connect(output_uri: str, storage: Storage | None = None) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB connection of your own with the views and the functions for masks.

    Args:
        output_uri: the output folder, a local path or a URL.
        storage: how it is read; None for the default options.

    Returns:
        A connection in memory, which may read and write other files and attach other databases. Its views hold what is
        committed now; connect again after a compaction.

    Raises:
        InputError: the folder holds no run.
        DamagedFileError: no run.json can be read.
    """
    return open_database(open_results(output_uri, storage), is_external_allowed=True)


def _limits(*, is_stored: bool, most_memory_bytes: int | None) -> dict[str, str | bool | int | float | list[str]]:
    """Return DuckDB's limits of threads and memory by the container's quotas; DuckDB sees the whole machine only.

    Args:
        is_stored: whether the parts are in a store; most threads wait for it then.
        most_memory_bytes: a lower limit of memory, if any.
    """
    usable = usable_memory()
    memory = min((each for each in (usable, most_memory_bytes) if each is not None), default=None)
    threads = max(usable_cpus(), READ_THREADS if is_stored else 1)
    bounds: dict[str, str | bool | int | float | list[str]] = {"threads": threads}
    return bounds if memory is None else bounds | {"memory_limit": f"{int(memory * DUCKDB_MEMORY_SHARE) >> 20}MiB"}


def rows_of_parts(table: str, paths: Sequence[str]) -> str:
    """Return the SQL that reads some parts of a table as its view does.

    Args:
        paths: of files, as `glob('htc-parts://TABLE/*')` lists them; or one pattern.
    """
    schema = VIEW_SCHEMAS[table]
    # Matched by name: parts of an older release lack the columns that were added later; they are null there.
    columns = ", ".join(
        f"'{field.name}': {{name: '{field.name}', type: '{_sql_type(field.type)}', default_value: NULL}}"
        for field in schema
    )
    files = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    return (
        f"SELECT {', '.join(schema.names)}, split_part(filename, '/', 5) AS run "  # noqa: S608
        f"FROM read_parquet([{files}], schema = MAP {{{columns}}}, filename = true, hive_partitioning = false)"
    )


def query_views(
    results: Results, query: Callable[[duckdb.DuckDBPyConnection], T], *, most_memory_bytes: int | None = None
) -> T:
    """Run a query over the views of `htc query`; runs it again when parts were compacted or pruned meanwhile.

    Args:
        query: takes the open database, and returns its complete result.
        most_memory_bytes: see `open_database`.

    Returns:
        What `query` returns.

    Raises:
        SpecError: the SQL is wrong, or not permitted.
        DamagedFileError: a part is damaged or missing.
        StorageError: parts were compacted or pruned at each of ATTEMPTS attempts.
    """
    for _ in range(ATTEMPTS):
        try:
            opened = open_database(results, most_memory_bytes=most_memory_bytes)
            with contextlib.closing(opened) as database, translated_sql_errors():
                return query(database)
        except (SpecError, StorageError) as error:
            if not results.has_moved():
                check_parts(results, error)
                raise
            results.refresh()
    raise results.moved_error()


def check_parts(results: Results, error: HtcError) -> None:
    """Find out whether a damaged part is the cause of an error in a query; reads all parts when it may be.

    Raises:
        DamagedFileError: a part is damaged or missing.
        StorageError: DuckDB cannot read a part, and Arrow can read all of them.
    """
    is_sign = isinstance(error, NotFoundError) or any(sign in str(error) for sign in _SIGNS_OF_DAMAGE)
    if isinstance(error, DamagedFileError) or not is_sign:
        return
    for table, schema in VIEW_SCHEMAS.items():
        for run in results.runs():
            for uri in _parts(results, table, run):
                try:
                    read_part(results.storage, uri, schema)
                except NotFoundError as absence:
                    raise missing(uri, "its shard is committed") from absence
    if any(sign in str(error) for sign in _SIGNS_OF_BROKEN_BYTES):
        raise StorageError(
            f"DuckDB cannot read a part of {results.output_uri} ({str(error).rstrip('.')}): a bit of its footer or its "
            "page index has changed; read the table without htc (docs/reading.md), or restore it from a copy."
        ) from error


def _sql_type(kind: pa.DataType) -> str:
    """Return DuckDB's name of a type of the tables."""
    if pa.types.is_struct(kind):
        return f"STRUCT({', '.join(f'{field.name} {_sql_type(field.type)}' for field in kind)})"
    if pa.types.is_list(kind):
        return f"{_sql_type(kind.value_type)}[]"
    return _SQL_TYPES[kind]


@contextlib.contextmanager
def translated_sql_errors() -> Iterator[None]:
    """Translate DuckDB's errors inside the block into one sentence each.

    Raises:
        SpecError: the SQL is wrong, or not permitted.
    """
    try:
        yield
    except duckdb.PermissionException as error:
        raise SpecError(f"{_one_sentence(error)} (--allow-external permits it).") from None
    except duckdb.Error as error:
        sentence = _one_sentence(error)
        if _FUNCTION_ERROR in sentence:
            raise SpecError(f"{sentence.partition(_FUNCTION_ERROR)[2].rstrip('.')}.") from None
        _raise_own(sentence)
        raise SpecError(sentence if sentence.endswith("?") else f"{sentence}.") from None


def _parts(results: Results, table: str, run: str) -> list[str]:
    if table == "deletions":
        return deletion_parts(results, run)
    return results.parts_of(cast("TableName", table), run)


def _runs_table(results: Results) -> pa.Table:
    rows = [
        {
            "run": record.run,
            "created": began(record),
            "input": record.spec.get("input", {}).get("uri"),
            "model": record.model_name or None,
            "weights_sha256": record.fingerprint.get("weights_sha256"),
            "is_trained": record.fingerprint.get("trained"),
            "images": record.image_count,
            "shards": record.shard_count,
            "shards_committed": results.committed_shards(record.run),
            "mode": record.spec.get("select", {}).get("mode", "full"),
            "position": position,
        }
        for position, record in enumerate(results.records)
    ]
    return pa.Table.from_pylist(rows, schema=_RUNS_SCHEMA)


def _raise_own(sentence: str) -> None:
    """Raise again what reading a part raised, of which DuckDB passes on the text, such as "pipeline.errors.X: why"."""
    name, _, reason = sentence.removeprefix(f"{pipeline.errors.__name__}.").partition(": ")
    kind = getattr(pipeline.errors, name, None)
    if isinstance(kind, type) and issubclass(kind, StorageError):
        raise kind(reason) from None


def _one_sentence(error: duckdb.Error) -> str:
    """Return DuckDB's message and suggestion, without the SQL excerpt and without Python's traceback."""
    message = str(error).split("\nLINE ")[0]
    head, traceback, lines = message.partition("Traceback (most recent call last)")
    if traceback:
        message = head + lines.strip().splitlines()[-1]
    return message_of(message)
