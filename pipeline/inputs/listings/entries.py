"""Entry: a name in a listing, or why there is none; and the key of the names in JSON values."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from pipeline.inputs.listings.delimited import looks_like_name
from pipeline.inputs.listings.headings import URI_COLUMNS

__all__ = ["URI_COLUMNS", "Entry", "entry_of", "key_of_names", "name_in"]

# The key of the name inside a nested object, as Hugging Face writes it: {"image": {"path": "a.jpg"}}.
_INNER = ("path", "uri", "url", "file_name", "filename", "src")


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a listing.

    place: its place in the listing, such as `line=3`. text: the name as written; None if there is none.
    problem: why there is none. is_comment: whether it is a comment and names nothing.
    """

    place: str
    text: str | None = None
    problem: str | None = None
    is_comment: bool = False


def name_in(value: dict[str, Any], key: str | None) -> str | None:
    """Return the name in an object: under the dotted `key`, else under the first of URI_COLUMNS with a name."""
    if key is not None:
        found: Any = value
        for part in [key] if key in value else key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return _as_name(found)
    folded = {str(name).strip().lower(): inner for name, inner in reversed(value.items())}
    return next((name for each in URI_COLUMNS if (name := _as_name(folded.get(each)))), None)


def _as_name(value: Any) -> str | None:
    if isinstance(value, dict):
        value = next((value[name] for name in _INNER if isinstance(value.get(name), str)), None)
    return value if isinstance(value, str) and value else None


def entry_of(value: Any, key: str | None) -> Entry:
    """Return the entry of a JSON value; the caller sets its place."""
    name = value if isinstance(value, str) else name_in(value, key) if isinstance(value, dict) else None
    if not name and isinstance(value, dict):
        # Some entries have their name under another key.
        name = name_in(value, None)
    if not name:
        keys = f"; its keys are {', '.join(map(str, list(value)[:8]))}" if isinstance(value, dict) else ""
        return Entry("", problem=f"it names no image{keys}")
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return Entry("", problem="it holds half a Unicode character; no file has such a name")
    return Entry("", name)


def key_of_names(values: Iterable[Any], uri: str, wanted: str | None) -> str | None:
    """Choose the key of the names by the first values of a JSON listing; None stands for URI_COLUMNS.

    Raises:
        InputError: no value has a name under a known key, or names could be under several keys.
    """
    values = list(values)
    objects = [each for each in values if isinstance(each, dict)]
    if wanted is not None:
        if objects and not any(name_in(each, wanted) for each in objects):
            raise InputError(f"No entry of {uri} has the key {wanted}; its keys are {_keys(objects)}.")
        return wanted
    if not objects or any(isinstance(each, str) or entry_of(each, None).text for each in values):
        return None
    likely = [
        name
        for name in dict.fromkeys(name for each in objects for name in each)
        if all(looks_like_name(found) for each in objects if (found := _as_name(each.get(name))) is not None)
        and any(_as_name(each.get(name)) for each in objects)
    ]
    if len(likely) == 1:
        return str(likely[0])
    reason = f"{' and '.join(likely)} are both possible" if likely else "none of its keys is a known one"
    raise InputError(
        f"The key of {uri} that names the images is not clear: {reason} (its keys are {_keys(objects)}). Name it with "
        "input.uri_column (--uri-column)."
    )


def _keys(objects: list[dict[str, Any]]) -> str:
    return ", ".join(map(str, dict.fromkeys(name for each in objects for name in each))) or "none"
