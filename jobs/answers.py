"""A query's answer as text: a table for people, CSV and JSON for programs."""

import base64
import csv
import datetime
import decimal
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import numpy as np

from jobs.console import Alignment, say, write_table
from jobs.files import replaced_file
from pipeline.progress import count_of
from pipeline.visible import visible

FORMATS = ("table", "csv", "json", "parquet")
# A screenful of screenfuls; whoever wants more reads it with a program.
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
class Answer:
    """A query's answer, read once.

    columns: names with their SQL types. rows: values as DuckDB's Python client gives them.
    """

    columns: Sequence[tuple[str, str]]
    rows: Iterator[Sequence[object]]


def write_answer(answer: Answer, output_format: str, output_file: Path | None) -> None:
    """Write an answer as table, csv or json, to a file that appears only when it is whole, or to stdout.

    Raises:
        SpecError: the file cannot be written.
    """
    writer: Callable[[Answer, TextIO], None]
    writer = {"table": _write_table, "csv": _write_csv, "json": _write_json}[output_format]
    if output_file is None:
        writer(answer, sys.stdout)
        return
    with replaced_file(output_file) as sink:
        text = io.TextIOWrapper(cast("BinaryIO", sink), encoding="utf-8", newline="")
        writer(answer, text)
        text.flush()
        # The wrapper would otherwise close the file under replaced_file.
        text.detach()


def json_value(value: object, *, is_float32: bool = False) -> object:
    """Turn a SQL value into what JSON can hold.

    NaN and infinities become null, dates ISO 8601, bytes their ASCII text or, when they are no text,
    "base64:...".

    Args:
        is_float32: floats have 24 significant bits: write 0.3, not 0.30000001192092896.
    """
    if isinstance(value, float):
        return _json_float(value, is_float32)
    if isinstance(value, Mapping):
        return {str(key): json_value(inner, is_float32=is_float32) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner, is_float32=is_float32) for inner in value]
    return _json_scalar(value)


def _json_float(value: float, is_float32: bool) -> float | None:
    if not math.isfinite(value):
        return None
    return float(str(np.float32(value))) if is_float32 else value


def _json_scalar(value: object) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return _bytes_text(value) if isinstance(value, bytes) else str(value)


def _bytes_text(value: bytes) -> str:
    if value.isascii() and value.decode("ascii").isprintable():
        return value.decode("ascii")
    return "base64:" + base64.b64encode(value).decode("ascii")


def _plain_rows(answer: Answer) -> Iterator[list[object]]:
    floats = ["FLOAT" in kind and "DOUBLE" not in kind for _, kind in answer.columns]
    for row in answer.rows:
        yield [json_value(value, is_float32=short) for value, short in zip(row, floats, strict=True)]


def _text(value: object) -> str:
    """Write one JSON-able value as bare text; nested ones as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _write_csv(answer: Answer, stream: TextIO) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([name for name, _ in answer.columns])
    writer.writerows(["" if value is None else _text(value) for value in row] for row in _plain_rows(answer))


def _write_json(answer: Answer, stream: TextIO) -> None:
    names = _distinct([name for name, _ in answer.columns])
    stream.write("[")
    for index, row in enumerate(_plain_rows(answer)):
        stream.write(",\n " if index else "\n ")
        stream.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False))
    stream.write("\n]\n")


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the repeats of a column name, as one JSON object cannot hold two keys of the same name."""
    distinct: list[str] = []
    for name in names:
        candidate, repeat = name, 1
        while candidate in distinct:
            candidate, repeat = f"{name}_{repeat}", repeat + 1
        distinct.append(candidate)
    return distinct


def _write_table(answer: Answer, stream: TextIO) -> None:
    rows = _plain_rows(answer)
    shown = [[_cell(value) for value in row] for row in islice(rows, MAX_TABLE_ROWS)]
    alignments: list[Alignment] = ["right" if kind.split("(")[0] in _NUMBERS else "left" for _, kind in answer.columns]
    write_table([name for name, _ in answer.columns], shown, alignments=alignments, stream=stream)
    left = sum(1 for _ in rows)
    if left:
        say(f"{count_of(left, 'more row')} not shown; add a LIMIT, or write --format csv, json or parquet.")


def _cell(value: object) -> str:
    """Keep a cell on one line and at a length that leaves room for its neighbours."""
    text = "NULL" if value is None else _text(value)
    shown = visible(text[: MAX_CELL_CHARS + 1])
    return shown if len(text) <= MAX_CELL_CHARS else shown[: MAX_CELL_CHARS - 1] + "…"
