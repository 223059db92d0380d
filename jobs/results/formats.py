"""A query's result as text: a table, CSV, TSV, JSON or JSON lines."""

import base64
import datetime
import decimal
import gzip
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import numpy as np

from jobs.terminal.console import Alignment, say, write_table
from jobs.terminal.output_file import atomic_output
from pipeline.text import count_of, printable

FORMATS = ("table", "csv", "tsv", "json", "jsonl", "parquet")
# Many JSON readers (JavaScript, jq, pandas with nulls) keep numbers in doubles, which hold integers exactly up to this
# (RFC 8259, section 6); larger ones are written as text.
MAX_JSON_INTEGER = 2**53 - 1
# Always text, also for small values, because a column has one type.
_TEXT_KEYS = frozenset({"image_id"})
# The first rows decide whether a column holds numbers that are written as text.
PEEK_ROWS = 2048
# Enough to read on a terminal; use another format for more rows.
MAX_TABLE_ROWS = 1000
MAX_CELL_CHARS = 100

_NUMBERS = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
)


@dataclass(frozen=True)
class QueryResult:
    """A query's result; the rows can be read once.

    columns: names with their SQL types. rows: values as DuckDB's Python client returns them.
    """

    columns: Sequence[tuple[str, str]]
    rows: Iterator[Sequence[object]]


def write_answer(answer: QueryResult, output_format: str, output_file: Path | None) -> None:
    """Write a result as table, csv, tsv, json or jsonl, atomically to a file, or to stdout.

    Args:
        output_file: compressed if its name ends in .gz; None is stdout.

    Raises:
        SpecError: the file cannot be written.
    """
    writer: Callable[[QueryResult, TextIO], None]
    writer = {
        "table": _write_table,
        "csv": _write_csv,
        "tsv": _write_tsv,
        "json": _write_json,
        "jsonl": _write_json_lines,
    }[output_format]
    if output_file is None:
        writer(answer, sys.stdout)
        return
    with atomic_output(output_file) as file:
        is_packed = output_file.suffix.lower() == ".gz"
        # Without a name and a time, the same result gives the same file.
        packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) if is_packed else None
        text = io.TextIOWrapper(cast("BinaryIO", file if packed is None else packed), encoding="utf-8", newline="")
        writer(answer, text)
        text.flush()
        # The wrapper would otherwise close the file under atomic_output.
        text.detach()
        if packed is not None:
            packed.close()


def json_value(value: object, *, is_float32: bool = False, is_text: bool = False) -> object:
    """Convert a SQL value to a JSON value.

    NaN and infinities become null, dates ISO 8601, bytes their ASCII text or "base64:...". Integers beyond 2^53, the
    values of keys called image_id, and decimals that a double cannot hold become text.

    Args:
        is_float32: floats have 24 significant bits: write 0.3, not 0.30000001192092896.
        is_text: write integers as text, whatever their size.
    """
    if isinstance(value, float):
        return _json_float(value, is_float32)
    if isinstance(value, Mapping):
        return {
            str(key): json_value(inner, is_float32=is_float32, is_text=is_text or key in _TEXT_KEYS)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [json_value(inner, is_float32=is_float32, is_text=is_text) for inner in value]
    return _json_scalar(value, is_text)


def _json_float(value: float, is_float32: bool) -> float | None:
    if not math.isfinite(value):
        return None
    return float(str(np.float32(value))) if is_float32 else value


def _json_scalar(value: object, is_text: bool) -> object:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return str(value) if is_text or _is_too_large(value) else value
    if isinstance(value, decimal.Decimal):
        return _json_decimal(value, is_text)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return _bytes_text(value) if isinstance(value, bytes) else str(value)


def _json_decimal(value: decimal.Decimal, is_text: bool) -> object:
    if not value.is_finite():
        return None
    if value == value.to_integral_value():
        return _json_scalar(int(value), is_text)
    return float(value) if decimal.Decimal(str(float(value))) == value else f"{value:f}"


def _is_too_large(value: object) -> bool:
    return isinstance(value, int) and abs(value) > MAX_JSON_INTEGER


def _bytes_text(value: bytes) -> str:
    if value.isascii() and value.decode("ascii").isprintable():
        return value.decode("ascii")
    return "base64:" + base64.b64encode(value).decode("ascii")


def _plain_rows(answer: QueryResult) -> Iterator[tuple[Sequence[object], list[object]]]:
    """Yield each row and its JSON values; a column with a number beyond 2^53 is text in all rows."""
    floats = ["FLOAT" in kind and "DOUBLE" not in kind for _, kind in answer.columns]
    first = list(islice(answer.rows, PEEK_ROWS))
    texts = [
        name in _TEXT_KEYS or any(_is_too_large(row[index]) for row in first)
        for index, (name, _) in enumerate(answer.columns)
    ]
    for row in chain(first, answer.rows):
        yield (
            row,
            [
                json_value(value, is_float32=short, is_text=text)
                for value, short, text in zip(row, floats, texts, strict=True)
            ],
        )


def _text_rows(answer: QueryResult) -> Iterator[list[str | None]]:
    """Yield the rows as text, nested values as JSON; None for NULL."""
    for row, plain in _plain_rows(answer):
        yield [_cell_text(value, cell) for value, cell in zip(row, plain, strict=True)]


def _cell_text(value: object, plain: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        # Text can hold NaN and infinities, JSON cannot.
        return str(value)
    return None if plain is None else _text(plain)


def _text(value: object) -> str:
    """Format one JSON value as text; nested ones as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _write_csv(answer: QueryResult, stream: TextIO) -> None:
    _write_separated(answer, stream, ",")


def _write_tsv(answer: QueryResult, stream: TextIO) -> None:
    # A value with a tab or a line break is quoted as in CSV, which pandas, polars and DuckDB read.
    _write_separated(answer, stream, "\t")


def _write_separated(answer: QueryResult, stream: TextIO, separator: str) -> None:
    rows: Iterator[list[str | None]] = chain([[name for name, _ in answer.columns]], _text_rows(answer))
    stream.writelines(f"{separator.join(_quoted(cell, separator, len(row)) for cell in row)}\n" for row in rows)


def _quoted(cell: str | None, separator: str, cells: int) -> str:
    """Quote a cell where RFC 4180 requires it; NULL is empty, empty text is "".

    Python's csv module does not quote a carriage return up to 3.12, and readers then end the row.
    """
    if cell is None:
        # A row of one empty cell would be a blank line, which readers skip.
        return '""' if cells == 1 else ""
    is_plain = cell and not any(special in cell for special in (separator, '"', "\n", "\r"))
    return cell if is_plain else '"' + cell.replace('"', '""') + '"'


def _write_json(answer: QueryResult, stream: TextIO) -> None:
    stream.write("[")
    for index, line in enumerate(_json_rows(answer)):
        stream.write(",\n " if index else "\n ")
        stream.write(line)
    stream.write("\n]\n")


def _write_json_lines(answer: QueryResult, stream: TextIO) -> None:
    stream.writelines(f"{line}\n" for line in _json_rows(answer))


def _json_rows(answer: QueryResult) -> Iterator[str]:
    names = _distinct([name for name, _ in answer.columns])
    for _, row in _plain_rows(answer):
        yield json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False)


def _distinct(names: Sequence[str]) -> list[str]:
    """Number repeated column names, because a JSON object cannot hold two keys of the same name."""
    distinct: list[str] = []
    for name in names:
        candidate, repeat = name, 1
        while candidate in distinct:
            candidate, repeat = f"{name}_{repeat}", repeat + 1
        distinct.append(candidate)
    return distinct


def _write_table(answer: QueryResult, stream: TextIO) -> None:
    rows = iter(answer.rows)
    first = QueryResult(answer.columns, islice(rows, MAX_TABLE_ROWS))
    shown = [[_cell(value) for value in row] for row in _text_rows(first)]
    alignments: list[Alignment] = ["right" if kind.split("(")[0] in _NUMBERS else "left" for _, kind in answer.columns]
    write_table([name for name, _ in answer.columns], shown, alignments=alignments, stream=stream)
    left = sum(1 for _ in rows)
    if left:
        say(f"{count_of(left, 'more row')} not shown; add a LIMIT, or write --format csv, json or parquet.")


def _cell(value: str | None) -> str:
    """Return a cell on one line, shortened to `MAX_CELL_CHARS`."""
    text = "NULL" if value is None else value
    shown = printable(text[: MAX_CELL_CHARS + 1])
    return shown if len(text) <= MAX_CELL_CHARS else shown[: MAX_CELL_CHARS - 1] + "…"
