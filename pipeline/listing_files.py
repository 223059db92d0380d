"""Listings: text files that name the images, one by one, in the order the user wants them."""

import csv
import io
import json
from collections.abc import Iterator
from typing import IO

from pipeline.errors import InputError
from pipeline.storage import Storage
from pipeline.uris import suffix_of

LISTING_SUFFIXES = frozenset({".txt", ".csv", ".jsonl", ".ndjson"})
URI_COLUMNS = (
    "uri",
    "url",
    "path",
    "file_name",
    "filename",
    "image_uri",
    "image_url",
    "image_path",
    "image",
    "file",
)
"""The column or key that holds the names, the first of these that is there."""


def read_listing(uri: str, storage: Storage) -> Iterator[str]:
    """Read the names in a .txt (one a line), .csv (a column of URI_COLUMNS or the first) or .jsonl listing.

    Names are taken literally: neither trimmed (a name may end in a space) nor decoded. Empty lines are
    skipped.

    Raises:
        InputError: a line that cannot be understood, by its number.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl}
    read = readers.get(suffix_of(uri), _read_lines)
    # Old file systems hold names that are no UTF-8; surrogateescape carries their bytes through unchanged.
    with (
        storage.reading(uri) as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        yield from read(text, uri)


def _read_lines(text: IO[str], _uri: str) -> Iterator[str]:
    for line in text:
        name = line.rstrip("\r\n")
        if name:
            yield name


def _read_csv(text: IO[str], uri: str) -> Iterator[str]:
    rows = csv.reader(text, strict=True)
    column: int | None = None
    try:
        for row in rows:
            if not row:
                continue
            if column is None:
                column, is_header = _csv_column(row)
                if is_header:
                    continue
            if len(row) <= column:
                raise InputError(f"Line {rows.line_num} of {uri} has {len(row)} columns, too few for a name.")
            if row[column]:
                yield row[column]
    except csv.Error as error:
        raise InputError(f"Line {rows.line_num} of {uri} is not valid CSV: {error}.") from None


def _csv_column(first_row: list[str]) -> tuple[int, bool]:
    """Find the column of the names, and tell whether the first row is a header."""
    heads = [cell.strip().lower() for cell in first_row]
    for name in URI_COLUMNS:
        if name in heads:
            return heads.index(name), True
    # A name of an image has a slash or an extension; a heading of a column has neither.
    return 0, not any(char in first_row[0] for char in "/.")


def _read_jsonl(text: IO[str], uri: str) -> Iterator[str]:
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"Line {number} of {uri} is not valid JSON.") from None
        if isinstance(entry, dict):
            entry = next((entry[name] for name in URI_COLUMNS if isinstance(entry.get(name), str)), None)
        if not isinstance(entry, str) or not entry:
            raise InputError(
                f"Line {number} of {uri} names no image; give it one of the keys {', '.join(URI_COLUMNS)}."
            )
        try:
            entry.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise InputError(
                f"Line {number} of {uri} holds half a Unicode character; no file has such a name."
            ) from None
        yield entry
