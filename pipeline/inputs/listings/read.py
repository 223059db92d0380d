"""Reads listings: text files that name the images, in the order in which the user wants them.

The format (CSV with its separator, JSON, lines), the encoding and the column with the names are detected from the first
bytes and reported to the user. If they cannot be detected, the listing is refused, and the message says how to name the
column. A later line that cannot be read becomes a row with the reason, and reading continues.

| a listing's beginning | understood as |
|---|---|
| `a.jpg` / `b.jpg` | one name a line |
| `uri,width` / `a.jpg,640` | CSV separated by commas, names from the column uri |
| `1;a.jpg` / `2;b.jpg` | CSV separated by semicolons without a heading, names from column 2 |
| `{"images": [{"file_name": "a.jpg"}]}` | JSON, the array images (`file_name` is a known key) |
| `{"photo": "a.jpg"}` / `{"photo": "b.jpg"}` | JSON lines, names from the key photo |
"""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from pipeline.errors import InputError
from pipeline.inputs.listings.delimited import Table, looks_like_name, parse_rows, read_table
from pipeline.inputs.listings.entries import Entry, entry_of, key_of_names, name_in
from pipeline.inputs.listings.headings import URI_COLUMNS
from pipeline.inputs.listings.json_values import read_json_entries
from pipeline.inputs.listings.text import (
    DAMAGE,
    GUESS,
    SAMPLE_BYTES,
    Encoding,
    detect_encoding,
    guess_encoding,
    lines_of,
    unpacked,
)
from pipeline.storage.storage import Storage
from pipeline.storage.uris import folder_of, has_scheme, is_local, local_path, resolve, suffix_of

__all__ = ["LISTING_SUFFIXES", "URI_COLUMNS", "Entry", "Listing", "is_listing", "open_listing"]

LISTING_SUFFIXES = frozenset(
    {".txt", ".text", ".lst", ".list", ".urls", ".csv", ".tsv", ".tab", ".psv", ".json", ".jsonl", ".ndjson"}
)
_PACKED_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst"})
_TABLES = frozenset({".csv", ".tsv", ".tab", ".psv"})
_LINES_OF_JSON = frozenset({".jsonl", ".ndjson"})
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", "": ""}


@dataclass(frozen=True)
class Listing:
    """A listing whose format is known.

    description: its format, encoding and column, for the user. entries: reads it, each time from the beginning.
    """

    description: str
    entries: Callable[[], Iterator[Entry]]


@dataclass(frozen=True)
class _Reading:
    """How a listing is read: its encoding, and the function that parses its text into entries."""

    uri: str
    storage: Storage
    encoding: Encoding
    read: Callable[[IO[str]], Iterator[Entry]]

    def entries(self) -> Iterator[Entry]:
        """Yield the entries; damage after the first one becomes a last entry with the problem.

        Raises:
            InputError: it is damaged before its first entry.
        """
        last = Entry("line=0")
        with self.storage.open(self.uri) as raw:
            plain, _, _ = unpacked(raw, self.uri)
            text = io.TextIOWrapper(plain, encoding=self.encoding.codec, errors=self.encoding.errors, newline="")
            entries = self.read(text)
            while True:
                try:
                    entry = next(entries, None)
                except (*DAMAGE, OSError) as error:
                    if isinstance(error, OSError) and error.errno is not None:
                        raise
                    yield _damaged(last, str(error), self.uri)
                    return
                if entry is None:
                    return
                last = entry
                yield entry


def _damaged(last: Entry, reason: str, uri: str) -> Entry:
    if last.place == "line=0":
        raise InputError(f"{uri} cannot be read: {reason}.")
    return Entry("end", problem=f"the listing is damaged after {last.place.replace('=', ' ')}: {reason}")


def is_listing(uri: str) -> bool:
    """Return whether a file has the name of a listing; `.csv.gz` is one too."""
    return _format_suffix(uri) in LISTING_SUFFIXES


def _format_suffix(uri: str) -> str:
    suffix = suffix_of(uri)
    return (
        suffix_of(uri[: -len(suffix)])
        if suffix in _PACKED_SUFFIXES and suffix_of(uri) == uri[-len(suffix) :].lower()
        else suffix
    )


def open_listing(uri: str, storage: Storage, column: str | None = None) -> Listing:
    """Detect how to read a listing.

    Args:
        column: the user's heading, key or number of the column with the names.

    Raises:
        InputError: the column with the names is not clear; the message says how to name it.
        StorageError: it cannot be read.
    """
    with storage.open(uri) as raw:
        _, head, compression = unpacked(raw, uri)
    encoding = detect_encoding(head)
    for candidate in [encoding] if encoding else _eight_bit(head, uri):
        reading, description = _detect_format(uri, storage, candidate, head, column)
        if encoding or _names_exist(reading, head) or not is_local(uri):
            break
    else:
        # Old file systems hold names that are not UTF-8; their bytes are kept unchanged.
        candidate = Encoding("utf-8", "bytes that are not UTF-8, kept as they are")
        reading, description = _detect_format(uri, storage, candidate, head, column)
    if encoding is None and is_local(uri) and _names_exist(reading, head):
        reading = replace(reading, encoding=replace(reading.encoding, shown=reading.encoding.shown.removesuffix(GUESS)))
    shown = [f"{compression}, {description}" if compression else description, reading.encoding.shown]
    return Listing(", ".join(shown), reading.entries)


def _eight_bit(head: bytes, uri: str) -> list[Encoding]:
    """Return the possible encodings of 8-bit text, the most likely first; names on a disk need not be UTF-8."""
    raw = Encoding("utf-8", "bytes that are not UTF-8, kept as they are")
    guesses = [guess_encoding(head), Encoding("cp1252", f"cp1252{GUESS}", "replace")]
    return [raw, *guesses] if is_local(uri) else guesses


def _names_exist(reading: _Reading, head: bytes) -> bool:
    """Return whether one of the first names that are not ASCII is the name of a file."""
    if not is_local(reading.uri):
        return False
    text = io.StringIO(head.decode(reading.encoding.codec, reading.encoding.errors), newline="")
    folder = folder_of(local_path(reading.uri))
    odd = (each.text for each in reading.read(text) if each.text and not each.text.isascii())
    for name in (each for each, _ in zip(odd, range(20), strict=False)):
        path = resolve(name, folder)
        try:
            if not has_scheme(path) and Path(path).exists():
                return True
        except (ValueError, OSError):
            continue
    return False


def _detect_format(
    uri: str, storage: Storage, encoding: Encoding, head: bytes, column: str | None
) -> tuple[_Reading, str]:
    sample = head.decode(encoding.codec, "replace" if encoding.errors == "replace" else encoding.errors)
    is_whole = len(head) < SAMPLE_BYTES
    if not is_whole:
        # The last line may be incomplete.
        sample = sample[: max(sample.rfind("\n"), sample.rfind("\r")) + 1] or sample
    sample = sample.removeprefix("\ufeff")
    suffix = _format_suffix(uri)
    first = sample.lstrip()[:1]
    if suffix in _LINES_OF_JSON or (suffix == ".json" and first and _is_lines_of_json(sample)):
        key = key_of_names(_json_lines(sample), uri, column)
        description = "JSON lines" + (f", names from the key {key}" if key else "")
        return _Reading(uri, storage, encoding, lambda text: _read_jsonl(text, key)), description
    if suffix == ".json":
        read, description = read_json_entries(sample, uri, column, is_whole=is_whole)
        return _Reading(uri, storage, encoding, read), description
    if suffix in _TABLES:
        table = read_table(sample, uri, column, preferred="\t" if suffix in {".tsv", ".tab"} else ",")
        return _Reading(uri, storage, encoding, lambda text: _read_csv(text, table)), _describe_table(table)
    return _Reading(uri, storage, encoding, _read_lines), "one name a line"


def _describe_table(table: Table) -> str:
    separated = f"CSV separated by {_SEPARATORS[table.separator]}" if table.separator else "CSV of one column"
    if table.heading is None:
        return f"{separated} without a heading, names from column {table.column + 1}"
    return f"{separated}, names from the column {table.heading}"


def _read_lines(text: IO[str]) -> Iterator[Entry]:
    """Yield each line as a name, not trimmed, as a name may end in a space."""
    for number, line in lines_of(text):
        place = f"line={number}"
        if line is None:
            yield Entry(place, problem="a line of more than 16 million characters")
            continue
        name = line.rstrip("\r\n").removeprefix("\ufeff") if number == 1 else line.rstrip("\r\n")
        if name.strip():
            yield Entry(place, name, is_comment=_is_comment(name))


def _is_comment(line: str) -> bool:
    # `#1.jpg` is a name, `# my list` is a comment.
    return line.startswith("#") and (line[1:2] in ("", " ", "\t", "#", "!") or not looks_like_name(line[1:]))


def _read_csv(text: IO[str], table: Table) -> Iterator[Entry]:
    for number, cells, problem in parse_rows(lines_of(text), table):
        place = f"line={number}"
        if problem is not None:
            yield Entry(place, problem=problem)
        elif cells is not None:
            yield Entry(place, cells)


def _json_lines(sample: str) -> list[Any]:
    found = []
    for line in sample.splitlines()[:100]:
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return found


def _is_lines_of_json(sample: str) -> bool:
    """Return whether the first two lines are JSON values of their own, or the only one names an image."""
    lines = [line for line in sample.splitlines() if line.strip()][:2]
    try:
        values = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        return False
    if len(values) > 1:
        return True
    return isinstance(values[0], str) or (isinstance(values[0], dict) and name_in(values[0], None) is not None)


def _read_jsonl(text: IO[str], key: str | None) -> Iterator[Entry]:
    for number, line in lines_of(text):
        place = f"line={number}"
        if line is None:
            yield Entry(place, problem="a line of more than 16 million characters")
            continue
        bare = line.strip().removeprefix("\ufeff")
        if not bare:
            continue
        try:
            value = json.loads(bare)
        except (ValueError, RecursionError):
            yield Entry(place, problem="it is not valid JSON")
            continue
        yield replace(entry_of(value, key), place=place)
