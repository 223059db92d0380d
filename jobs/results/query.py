"""`htc query`: SQL over an output's tables, through the views of `pipeline.output.views`; needs no torch."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from htc_model.masks.rle import decode_rle
from jobs.results.formats import QueryResult, write_answer
from jobs.terminal.console import say
from jobs.terminal.interrupt import run_interruptibly
from jobs.terminal.output_file import atomic_output, check_local
from pipeline.errors import SpecError, StorageError
from pipeline.output.dataset import open_files
from pipeline.output.part_files import check_columns, parquet_errors
from pipeline.output.results import open_results
from pipeline.output.schema import INSTANCES_SCHEMA
from pipeline.output.views import check_parts, open_database, translated_sql_errors
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    from pipeline.output.results import Results
    from pipeline.storage.config import StorageSection

FETCH_ROWS = 2048
# The format of an answer by the suffix of its file.
SUFFIXES = {
    "csv": "csv",
    "tsv": "tsv",
    "json": "json",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "txt": "table",
}
# Files that a query reads may be compacted meanwhile.
ATTEMPTS = 3
# A line that begins like a command of the prompt, in SQL that cannot be parsed.
_COMMAND = re.compile(r"^\s*(\.[a-z]+)\b", re.MULTILINE)


def query_output(
    output_uri: str,
    sql: str,
    *,
    output_format: str | None = None,
    output_file: Path | None = None,
    is_external_allowed: bool = False,
    storage_section: StorageSection | None = None,
) -> None:
    """Run SQL over an output folder and write the answers; into a file, the last statement's.

    Args:
        sql: one or more statements; "-" stands for the text on stdin.
        output_format: table, csv, tsv, json (an array of objects), jsonl (an object per line) or parquet; None takes
            the format of the file's suffix.
        output_file: None is stdout.

    Raises:
        SpecError: the SQL is wrong or not permitted, the file's suffix is not a known format (before the query runs),
            or the answer cannot be written.
        InputError: the folder holds no run.
        DamagedFileError: a part is damaged or missing.
        StorageError: the output was compacted or pruned in every attempt, or after a part of the answer was written.
    """
    chosen = _choose_format(output_format, output_file)
    text = _read_sql(sql)
    for attempt in range(ATTEMPTS):
        results = open_results(output_uri, Storage(storage_section))
        database = open_database(results, is_external_allowed=is_external_allowed)
        has_output = Event()
        try:
            run_interruptibly(partial(_execute, database, text, chosen, output_file, has_output), database.interrupt)
        except (SpecError, StorageError) as error:
            if not results.has_moved():
                check_parts(results, error)
                raise
            # The same rows are in other files now; but output on stdout cannot be withdrawn.
            if has_output.is_set() or attempt + 1 == ATTEMPTS:
                raise StorageError(
                    f"{output_uri} was compacted or pruned while it was read, so this answer is incomplete; run the "
                    "query again."
                ) from error
        else:
            return


def _execute(
    database: duckdb.DuckDBPyConnection, sql: str, output_format: str, output_file: Path | None, has_output: Event
) -> None:
    """Run the SQL, write its answers, close the database.

    Args:
        has_output: is set before anything is written to stdout.
    """
    with contextlib.closing(database):
        answer_sql(database, sql, output_format, output_file, has_output)


def answer_sql(
    database: duckdb.DuckDBPyConnection, sql: str, output_format: str, output_file: Path | None, has_output: Event
) -> None:
    """Run the SQL statement by statement and write the answers; the database stays open.

    As in DuckDB's shell, each statement that has an answer shows it. A file takes one answer, the last statement's.

    Args:
        has_output: is set before anything is written to stdout.

    Raises:
        SpecError: the SQL is wrong or not permitted, or an answer cannot be written.
    """
    *earlier, last = _statements(sql)
    unwritten = 0
    with translated_sql_errors():
        for statement in earlier:
            answer = database.execute(statement)
            if not _is_answer(statement, answer):
                _finish(answer)
            elif output_file is None:
                has_output.set()
                _write_answer(answer, output_format, None)
            else:
                _finish(answer)
                unwritten += 1
        if output_format == "parquet" and output_file is not None:
            _write_parquet(database, last, output_file)
        else:
            answer = database.execute(last)
            if output_file is None:
                has_output.set()
            _write_answer(answer, output_format, output_file)
    if unwritten:
        say(f"{output_file} holds the last answer only; not written: {count_of(unwritten, 'answer')} before it.")


def _statements(sql: str) -> Sequence[duckdb.Statement]:
    """Cut the SQL into its statements.

    Raises:
        SpecError: it cannot be parsed, or holds none.
    """
    try:
        with translated_sql_errors():
            statements: Sequence[duckdb.Statement] = duckdb.extract_statements(sql)
    except SpecError:
        if command := _COMMAND.search(sql):
            raise SpecError(
                f"{command[1]} is a command of the prompt (`htc query OUTPUT` in a terminal), not SQL; here, SHOW "
                "TABLES lists the views, and DESCRIBE images the columns of one."
            ) from None
        raise
    if not statements:
        raise SpecError("The SQL holds no statement.")
    return statements


def _is_answer(statement: duckdb.Statement, answer: duckdb.DuckDBPyConnection) -> bool:
    """Return whether a statement has rows to show: SELECT and INSERT ... RETURNING have, CREATE and INSERT have not."""
    if list(statement.expected_result_type) == [duckdb.ExpectedResultType.QUERY_RESULT]:
        return True
    return [column[0] for column in answer.description or []] not in ([], ["Count"], ["Success"])


def _write_answer(answer: duckdb.DuckDBPyConnection, output_format: str, output_file: Path | None) -> None:
    columns = [(str(column[0]), str(column[1])) for column in answer.description or []]
    write_answer(QueryResult(columns, _rows(answer)), output_format, output_file)


def _finish(answer: duckdb.DuckDBPyConnection) -> None:
    """Run a statement to its end, as the connection wants it before the next one."""
    for _ in _rows(answer):
        pass


def read_instances(results: Results, run: str, shard: int, image_id: int, uri: str) -> list[dict[str, Any]]:
    """Read one image's rows of `instances` from its shard's part, highest score first.

    Raises:
        DamagedFileError: the part is damaged or missing.
        InputError: the shard is not committed.
    """
    files = open_files(results.output_uri, results.storage)
    # The id is a hash: the URI decides between two images with the same id.
    wanted = (pads.field("image_id") == image_id) & (pads.field("uri") == uri)

    def read() -> pa.Table:
        # Looked up each time: the part may be compacted with others meanwhile.
        part = results.instances_part(run, shard)
        fragment = pads.ParquetFileFormat().make_fragment(part, files)
        with parquet_errors(part):
            check_columns(part, fragment.physical_schema, INSTANCES_SCHEMA)
            return fragment.to_table(schema=INSTANCES_SCHEMA, filter=wanted)

    rows: list[dict[str, Any]] = results.retry_moved(read).to_pylist()
    return sorted(rows, key=lambda row: row["instance"])


def decode_mask(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Decode the mask of one row of `instances`.

    Args:
        row: the row as a mapping with the key "mask", or the mask itself: size [height, width] and counts.

    Returns:
        [H, W] bool, of the original image's size.

    Raises:
        ValueError: the row has no mask, as with a box-only model.
    """
    mask = row.get("mask", row if "counts" in row else None)
    if mask is None:
        raise ValueError("this row has no mask; box-only models write none")
    decoded: NDArray[np.bool_] = np.asarray(decode_rle(mask), dtype=bool)
    return decoded


def _read_sql(sql: str) -> str:
    """Read the SQL from stdin if it is "-".

    Raises:
        SpecError: it is not Unicode text, for which DuckDB would raise an internal error.
    """
    try:
        text = sys.stdin.read() if sql == "-" else sql
        text.encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise SpecError(f"The SQL is not text in UTF-8: {error.reason}.") from None
    return text


def _rows(answer: duckdb.DuckDBPyConnection) -> Iterator[Sequence[object]]:
    while rows := _fetch(answer):
        yield from rows


def _fetch(answer: duckdb.DuckDBPyConnection) -> Sequence[Sequence[object]]:
    try:
        rows: Sequence[Sequence[object]] = answer.fetchmany(FETCH_ROWS)
    except (OverflowError, ValueError) as error:
        raise SpecError(
            f"The answer holds a value that Python cannot ({error}), such as an interval of a million years; cast it "
            "to VARCHAR."
        ) from None
    return rows


def _choose_format(output_format: str | None, output_file: Path | None) -> str:
    """Return the format of the answer, before the query runs.

    Raises:
        SpecError: the file's suffix is unknown or contradicts `output_format`, or the file cannot be written.
    """
    if output_file is None:
        if output_format == "parquet":
            raise SpecError("Parquet is not text: name a file with --to FILE.")
        return output_format or "table"
    check_local(output_file)
    if output_file.is_dir():
        raise SpecError(f"{output_file} cannot be written: it is a folder.")
    if not output_file.parent.is_dir():
        raise SpecError(f"{output_file} cannot be written: No such file or directory.")
    is_packed = output_file.suffix.lower() == ".gz"
    suffix = Path(output_file.stem if is_packed else output_file.name).suffix.lower().removeprefix(".")
    by_suffix = SUFFIXES.get(suffix)
    if by_suffix is None and output_format is None:
        known = ", ".join(f".{each}" for each in SUFFIXES)
        raise SpecError(
            f"{output_file}: its suffix is not a format that can be written. --to takes {known} (all but "
            ".parquet also followed by .gz); for another name, set --format."
        )
    chosen = output_format or str(by_suffix)
    if by_suffix not in {None, "table", chosen}:
        raise SpecError(
            f"{output_file} has the suffix of {by_suffix}, and --format asks for {chosen}; change one of the two."
        )
    if is_packed and chosen == "parquet":
        raise SpecError(f"{output_file}: Parquet is compressed in itself; leave out .gz.")
    return chosen


def _write_parquet(database: duckdb.DuckDBPyConnection, statement: duckdb.Statement, output_file: Path) -> None:
    relation = database.sql(statement)
    if relation is None:
        raise SpecError("The SQL has no answer to write: its last statement returns no rows.")
    batches = relation.to_arrow_reader(FETCH_ROWS)
    try:
        with (
            atomic_output(output_file) as sink,
            pq.ParquetWriter(sink, batches.schema, compression="zstd") as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise SpecError(f"Parquet cannot hold this answer: {str(error).splitlines()[0]}; cast it to VARCHAR.") from None
