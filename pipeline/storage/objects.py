"""Values that stores return: what an object is, as a listing names it, and its bytes."""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["file", "folder", "absent"]


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object.

    bytes: its size, None when the store does not report one or the object is a dangling link.
    etag: the store's version of it; for local files modification time and size; None when the store reports none.
    """

    uri: str
    bytes: int | None
    etag: str | None


@dataclass(frozen=True, slots=True)
class ObjectData:
    """Bytes of an object and their version.

    etag: None when the store does not report which version it sent.
    """

    payload: bytes
    etag: str | None


def strip_etag(etag: object) -> str | None:
    """Return an ETag without HTTP's quotes and weakness prefix; None for anything but text."""
    return etag.removeprefix("W/").strip('"') if isinstance(etag, str) else None


def listed_from(uri: str, found: dict[str, Any]) -> ObjectInfo:
    """Convert what an fsspec file system returns for an object."""
    size = found.get("size")
    etag = found.get("ETag") or found.get("etag")
    return ObjectInfo(uri, None if size is None else int(size), strip_etag(etag))
