"""Reads tables of text (CSV): detects the separator and the column with the names, and yields each line's name.

`csv.Sniffer` is not used: it chooses letters as separators, and does not know what a name looks like, which is needed
to distinguish a list of names such as `c,d.jpg` from a table. The csv module splits the lines.

An example: of the table `id;file;caption`, `1;a.jpg;A "red" car`, `2;b.jpg;"Two` / `lines"`, the semicolon gives all
rows three columns, and `file` is a known heading: `Table(";", 1, "file", 3)`. The quotes in the second line do not
belong to the CSV, but the name is not within them, so it counts. The third row continues on the next line until its
quote is closed and it has three columns. A row without the column of names, or with a quote that is never closed,
is a problem of its own line and of no other.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.inputs.listings.headings import URI_COLUMNS

_SEPARATORS = (",", ";", "\t", "|")
# How many rows of the sample decide.
_SAMPLE_ROWS = 100
# A quoted cell may hold line breaks, as in captions; a quote that is never closed must not consume the rest.
_MOST_LINES = 1000
_MOST_CHARACTERS = 2**20
# The first line of a file from Excel may name its separator.
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])", re.IGNORECASE)
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,5}$")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


@dataclass(frozen=True)
class Table:
    """How a table's lines are read.

    separator: "" for a table of one column. column: the index of the names, from 0. heading: the heading of that
    column; None if the table has no line of headings. width: the number of columns. is_spaced: whether a space precedes
    each name, as in `1, a.jpg`.
    """

    separator: str
    column: int
    heading: str | None
    width: int
    is_spaced: bool = False


def looks_like_name(cell: str) -> bool:
    """Return whether a text looks like a file name or an address, not like a word, a number or a sentence."""
    bare = re.split(r"[?#]", cell.strip(), maxsplit=1)[0] if "://" in cell else cell.strip()
    return bool(_SCHEME.match(bare) or _EXTENSION.search(bare))


def read_table(sample: str, uri: str, wanted: str | None, *, preferred: str) -> Table:
    """Detect how to read a table from its first lines.

    Args:
        wanted: the user's heading, or number of the column.
        preferred: the separator that the file's extension stands for.

    Raises:
        InputError: it is not clear which column holds the names.
    """
    lines = [line for line in sample.splitlines(keepends=True) if line.strip()][: 4 * _SAMPLE_ROWS]
    if lines and (named_separator := _SEPARATOR_LINE.fullmatch(lines[0].strip())):
        preferred, lines = named_separator[1], lines[1:]
    order = [preferred, *(each for each in _SEPARATORS if each != preferred)]
    tables = {each: _sample_rows(lines, each) for each in order}
    separator = _choose_separator(tables, wanted)
    rows = tables[separator] if separator else [[line.rstrip("\r\n")] for line in lines[:_SAMPLE_ROWS]]
    if not rows:
        return Table(separator, 0, None, 1)
    column, heading = _choose_column(rows, uri, wanted)
    names = [row[column] for row in rows[heading is not None :] if len(row) > column and row[column]]
    is_spaced = column > 0 and bool(names) and all(name.startswith(" ") for name in names)
    return Table(separator, column, heading, len(rows[0]), is_spaced)


def _sample_rows(lines: list[str], separator: str) -> list[list[str]]:
    rows: list[list[str]] = []
    try:
        for row in csv.reader(lines, delimiter=separator):
            if row:
                rows.append(row)
            if len(rows) == _SAMPLE_ROWS:
                break
    except csv.Error:
        # A cell is longer than the csv module accepts; the rows before it are enough, if there are any.
        return rows or [_split(line, separator) for line in lines[:_SAMPLE_ROWS]]
    return rows


def _split(line: str, separator: str) -> list[str]:
    return line.rstrip("\r\n").split(separator)


def _choose_separator(tables: dict[str, list[list[str]]], wanted: str | None) -> str:
    """Choose the separator that gives a known heading, else one that gives the rows the same number of columns."""
    known = {*URI_COLUMNS, *([wanted.strip().lower()] if wanted else [])}
    wide = {each: rows for each, rows in tables.items() if rows and len(rows[0]) > 1}
    headed = [each for each, rows in wide.items() if known & {cell.strip().lower() for cell in rows[0]}]
    is_single = any(rows and len(rows[0]) == 1 and rows[0][0].strip().lower() in known for rows in tables.values())
    if headed:
        return max(headed, key=lambda each: _evenness(wide[each]))
    if is_single or not wide:
        return ""
    even = [each for each, rows in wide.items() if _evenness(rows) >= 0.8]
    # Names that contain commas are no table, unless one column still looks like names after splitting.
    named = [each for each in even if _columns_of_names(wide[each])]
    return next(iter(named or even), "")


def _evenness(rows: list[list[str]]) -> float:
    return sum(len(row) == len(rows[0]) for row in rows) / len(rows)


def _columns_of_names(rows: list[list[str]], start: int = 0) -> list[int]:
    """Return the indices of the columns in which at least half of the cells look like names."""
    found = []
    for column in range(len(rows[0])):
        cells = [row[column] for row in rows[start:] if len(row) > column and row[column].strip()]
        if cells and 2 * sum(map(looks_like_name, cells)) >= len(cells):
            found.append(column)
    return found


def _choose_column(rows: list[list[str]], uri: str, wanted: str | None) -> tuple[int, str | None]:
    heads = [cell.strip().removeprefix("\ufeff") for cell in rows[0]]
    folded = [head.lower() for head in heads]
    if wanted is not None:
        return _wanted_column(heads, folded, uri, wanted)
    known = [folded.index(name) for name in URI_COLUMNS if name in folded]
    if known:
        named = _columns_of_names(rows, start=1)
        if any(column in named for column in known) or not named:
            column = next((each for each in known if each in named), known[0])
            return column, heads[column]
        _refuse([*known[:1], *named], heads, uri, f"{heads[known[0]]} holds no names")
    named = _columns_of_names(rows, start=1) if len(rows) > 1 else _columns_of_names(rows)
    if not named:
        named = [at for at in range(len(heads)) if all(len(row) > at and "/" in row[at] for row in rows[1:] or rows)]
    if len(named) != 1:
        _refuse(named, heads, uri, "several columns look like names" if named else "no column looks like names")
    column = named[0]
    is_heading = not (looks_like_name(rows[0][column]) or "/" in rows[0][column])
    return column, heads[column] if is_heading else None


def _wanted_column(heads: list[str], folded: list[str], uri: str, wanted: str) -> tuple[int, str | None]:
    if wanted in heads:
        return heads.index(wanted), wanted
    if wanted.lower() in folded:
        at = folded.index(wanted.lower())
        return at, heads[at]
    if wanted.isascii() and wanted.isdecimal() and 1 <= int(wanted) <= len(heads):
        return int(wanted) - 1, None
    raise InputError(f"{uri} has no column {wanted}; its first line is {', '.join(heads)}.")


def _refuse(columns: list[int], heads: list[str], uri: str, reason: str) -> None:
    names = ", ".join(heads[each] for each in dict.fromkeys(columns)) if columns else ", ".join(heads)
    raise InputError(
        f"It is not clear which column of {uri} names the images ({reason}: {names}). Name it with input.uri_column "
        "(--uri-column HEADING, or its number, from 1, where there is no line of headings)."
    )


def parse_rows(lines: Iterator[tuple[int, str | None]], table: Table) -> Iterator[tuple[int, str | None, str | None]]:
    """Yield a table's names as (number of the line, name, problem), where either the name or the problem is None.

    A quote that is never closed, or a row with too few columns, affects no other line.
    """
    reader = _Lines(lines)
    is_first = True
    while (numbered := reader.next()) is not None:
        number, line = numbered
        if line is None:
            yield number, None, "a line of more than 16 million characters"
            continue
        if number == 1:
            line = line.removeprefix("\ufeff")
            if _SEPARATOR_LINE.fullmatch(line.strip(" \r\n")):
                continue
        cells, problem = _cells(line, reader, table)
        if cells is not None and not any(cell.strip() for cell in cells):
            continue
        if is_first and table.heading is not None:
            is_first = False
            continue
        is_first = False
        name, problem = _name_of(cells, table) if cells is not None else (None, problem)
        yield number, name, problem


class _Lines:
    """Numbered lines that can be put back."""

    def __init__(self, lines: Iterator[tuple[int, str | None]]) -> None:
        self._lines = lines
        self._back: deque[tuple[int, str | None]] = deque()

    def next(self) -> tuple[int, str | None] | None:
        return self._back.popleft() if self._back else next(self._lines, None)

    def put_back(self, lines: list[tuple[int, str | None]]) -> None:
        self._back.extendleft(reversed(lines))


def _cells(line: str, more: _Lines, table: Table) -> tuple[list[str] | None, str | None]:
    """Split a line into cells, together with the following lines if a quoted cell continues there."""
    if '"' not in line:
        return ([line.rstrip("\r\n")] if not table.separator else _split(line, table.separator)), None
    text, taken = line, list[tuple[int, str | None]]()
    while True:
        cells = _strict(text, table.separator) if text.count('"') % 2 == 0 else None
        # A row of several lines must have the right number of columns; else the quote does not belong to the CSV.
        if cells is not None and (not taken or len(cells) == table.width):
            return cells, None
        following = more.next() if len(taken) < _MOST_LINES and len(text) < _MOST_CHARACTERS else None
        if following is None or (cells is None and text.count('"') % 2 == 0):
            taken += [following] if following is not None else []
            break
        taken.append(following)
        text += following[1] or ""
    more.put_back(taken)
    return _lenient(line, table)


def _strict(text: str, separator: str) -> list[str] | None:
    limit = csv.field_size_limit(max(len(text) + 1, 131_072))
    try:
        rows = list(csv.reader(text.splitlines(keepends=True), delimiter=separator or ",", strict=True))
    except csv.Error:
        return None
    finally:
        csv.field_size_limit(limit)
    if len(rows) != 1:
        return None
    # In a table of one column, a comma is part of the name.
    return [text.rstrip("\r\n")] if not separator and len(rows[0]) != 1 else rows[0]


def _lenient(line: str, table: Table) -> tuple[list[str] | None, str | None]:
    """Split a line with stray quotes, if none of them is in the name."""
    cells = line.rstrip("\r\n").split(table.separator) if table.separator else [line.rstrip("\r\n")]
    if len(cells) == table.width and '"' not in cells[table.column]:
        return cells, None
    return None, "its quotes do not match"


def _name_of(cells: list[str], table: Table) -> tuple[str | None, str | None]:
    if len(cells) <= table.column:
        return None, f"it has {_columns(len(cells))}, and names are in column {table.column + 1}"
    name = cells[table.column].lstrip(" ") if table.is_spaced else cells[table.column]
    surplus = [cell for cell in cells[table.width :] if cell.strip()]
    if surplus and not looks_like_name(name):
        return None, (
            f"it has {_columns(len(cells))} instead of {table.width}; a name with the separator in it needs quotes"
        )
    return (name, None) if name.strip() else (None, "the column of names is empty")


def _columns(count: int) -> str:
    return f"{count} column{'' if count == 1 else 's'}"
