"""Which image: its name, its number, and where its bytes lie."""

from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One input image, as it was when the input was listed.

    uri: the image's name. A loose file or object: its path or URI. A member of a tar:
        `tar://MEMBER::CONTAINER`. A row of a Parquet file: `CONTAINER#row=N`, counted from 0.
    bytes: encoded size, None when listing did not tell.
    etag: the version of the file or of its container, None when listing did not tell.
    container: the tar or Parquet file that holds the image, None for a loose one.
    offset: where a tar member's bytes begin; they are `bytes` long.
    row: the row of a Parquet file.
    column: the dotted path of that file's column with the image bytes.
    problem: why it cannot be read, when listing found that out (a damaged container); reading it says so
        again.
    failed_before: of an incremental run, whether the newest earlier row of this very version is not ok; None in a
        manifest of a release that did not write it down.
    """

    uri: str
    bytes: int | None = None
    etag: str | None = None
    container: str | None = None
    offset: int | None = None
    row: int | None = None
    column: str | None = None
    problem: str | None = None
    failed_before: bool | None = False


def image_id(uri: str) -> int:
    """Return the uri's number, the same on every machine and in every run: signed 64 bits of BLAKE2b.

    Two of a billion images share a number with a probability of 3 % (birthday bound); uri stays the name.
    """
    digest = blake2b(uri.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def tar_uri(member: str, container: str) -> str:
    """Name a tar's member the way fsspec chains it."""
    return f"tar://{member}::{container}"


def member_name(uri: str, container: str) -> str:
    """Return the member that `tar_uri` named."""
    return uri.removeprefix("tar://").removesuffix(f"::{container}")


def row_uri(container: str, row: int) -> str:
    """Name a row of a Parquet file."""
    return f"{container}#row={row}"


@dataclass(frozen=True, slots=True)
class ReadVersion:
    """What was read of an image: its size, its version, and whether that differs from the one listed.

    etag, is_changed: None when the store does not tell the version, or the listing did not.
    """

    bytes: int
    etag: str | None
    is_changed: bool | None
