"""Reads listings that are one JSON value: an array of names or objects, or an object with such an array, as in COCO.

They are streamed (ijson): the annotations of a large COCO file are gigabytes, and the names a small part of them.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO, Any

import ijson  # type: ignore[import-untyped]

from pipeline.errors import InputError
from pipeline.inputs.listings.entries import Entry, entry_of, key_of_names

_LISTS = ("images", "files", "data", "items", "urls", "uris", "paths")
"""Keys of the array of names in an object; COCO's is the first."""

_DEEPEST = 64
"""The deepest nesting that is read; the polygons of COCO are on the sixth level."""

Read = Callable[[IO[str]], Iterator[Entry]]


class _Encoded:
    """A text file as UTF-8 bytes, which ijson reads."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text

    def read(self, size: int = -1) -> bytes:
        return self._text.read(size if size >= 0 else 2**16).encode("utf-8", "surrogateescape")


def read_json_entries(sample: str, uri: str, column: str | None, *, is_whole: bool) -> tuple[Read, str]:
    """Find the array of names in a JSON value.

    Args:
        sample: its beginning. is_whole: whether the sample is the whole value.

    Returns:
        the function that reads the entries, and a description of the format for the user.

    Raises:
        InputError: it is not JSON, or holds no such array.
    """
    first = sample.lstrip()[:1]
    if first not in ("[", "{"):
        raise InputError(f"{uri} is not valid JSON: it begins with {sample.lstrip()[:20]!r}.")
    prefix = "item" if first == "[" else f"{_list_in(sample, uri, is_whole=is_whole)}.item"
    key = key_of_names(_first_values(sample, prefix), uri, column)
    place = "an array" if prefix == "item" else f"the array {prefix.removesuffix('.item')}"
    description = f"JSON, {place}" + (f", names from the key {key}" if key else "")
    return lambda text: _read(text, prefix, key), description


def _events(source: object) -> Iterator[tuple[str, str, Any]]:
    """Parse JSON into ijson's events; refuses deep nesting, whose cost is quadratic in ijson."""

    def shallow() -> Iterator[tuple[str, Any]]:
        depth = 0
        for event, value in ijson.basic_parse(source):
            depth += event in ("start_map", "start_array")
            depth -= event in ("end_map", "end_array")
            if depth > _DEEPEST:
                raise ijson.JSONError(f"nested deeper than {_DEEPEST} levels")
            yield event, value

    found: Iterator[tuple[str, str, Any]] = ijson.parse(shallow())
    return found


def _list_in(sample: str, uri: str, *, is_whole: bool) -> str:
    found, arrays = list[str](), set[str]()
    try:
        for path, event, value in _events(io.BytesIO(sample.encode("utf-8", "surrogatepass"))):
            if path == "" and event == "map_key":
                found.append(str(value))
            elif event == "start_array":
                arrays.add(path)
    except ijson.JSONError as error:
        if is_whole and not found:
            raise InputError(f"{uri} is not valid JSON: {str(error).splitlines()[0]}.") from None
    known = [name for name in _LISTS if name in arrays]
    # The sample may end within long annotations; a COCO file has its array after them.
    if not known and not is_whole:
        return _LISTS[0]
    if not known:
        raise InputError(
            f"{uri} is a JSON object without an array of names (its keys: {', '.join(found[:8]) or 'none'}); a listing "
            "is an array, an object with an array images or files, or one object a line (.jsonl)."
        )
    return known[0]


def _first_values(sample: str, prefix: str) -> list[Any]:
    values: list[Any] = []
    try:
        for value in ijson.items(_events(io.BytesIO(sample.encode("utf-8", "surrogatepass"))), prefix):
            values.append(value)
            if len(values) == 100:
                break
    except (ijson.JSONError, UnicodeError):
        # The sample ends within a value, or the file is damaged; reading the file will report that.
        return values
    return values


def _read(text: IO[str], prefix: str, key: str | None) -> Iterator[Entry]:
    number = 0
    try:
        for value in ijson.items(_events(_Encoded(text)), prefix):
            number += 1
            yield replace(entry_of(value, key), place=f"item={number}")
    except (ijson.JSONError, UnicodeError) as error:
        # Reported like the end of a truncated compressed file.
        raise EOFError(f"it is not valid JSON ({str(error).splitlines()[0]})") from error
