"""Values that stores return: what an object is, as a listing names it, and its bytes."""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["file", "folder", "absent"]


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing.

    bytes: its size, None when the store does not say or the object is a link that leads nowhere.
    etag: the store's version of it; for local files modification time and size.
    """

    uri: str
    bytes: int | None
    etag: str | None


@dataclass(frozen=True, slots=True)
class ObjectData:
    """Bytes of an object, and the version that they are of.

    etag: None when the store does not say which version it sent.
    """

    payload: bytes
    etag: str | None


def strip_etag(etag: object) -> str | None:
    """Return an ETag without the quotes that HTTP puts around it; None for anything but text."""
    return etag.removeprefix("W/").strip('"') if isinstance(etag, str) else None


def listed_from(uri: str, found: dict[str, Any]) -> ObjectInfo:
    """Read the description of an object that fsspec's file systems give."""
    size = found.get("size")
    etag = found.get("ETag") or found.get("etag")
    return ObjectInfo(uri, None if size is None else int(size), strip_etag(etag))
