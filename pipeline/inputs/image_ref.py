"""ImageRef: an image's name, its id, and where its bytes are."""

from dataclasses import dataclass
from hashlib import blake2b

from pipeline.inputs.georeference import Georeference


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One input image, as it was when the input was listed.

    uri: the image's name. A loose file or object: its path or URI. A member of a tar: `tar://MEMBER::CONTAINER`. A row
        of a Parquet file: `CONTAINER#row=N`, counted from 0.
    bytes: encoded size; None if the listing does not report it.
    etag: the version of the file or of its container; None if the listing does not report it.
    container: the tar or Parquet file that holds the image; None for a loose file.
    offset: where a tar member's bytes begin; they are `bytes` long.
    row: the row of a Parquet file.
    column: the dotted path of the Parquet column with the image bytes.
    problem: why the image cannot be read, if the listing found that out (a damaged container); reading it raises an
        ImageError with this reason.
    failed_before: in an incremental run, whether the newest earlier row of this version is not ok; None in a manifest
        of a release that did not record it.
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
    """Return the id of a uri, the same on every machine and in every run: signed 64 bits of BLAKE2b.

    Two of a billion images share an id with a probability of 3 % (birthday bound); the uri remains the name.
    """
    digest = blake2b(uri.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def tar_uri(member: str, container: str) -> str:
    """Return the uri of a tar's member, as fsspec chains urls."""
    return f"tar://{member}::{container}"


def member_name(uri: str, container: str) -> str:
    """Return the member's name from a uri of `tar_uri`."""
    return uri.removeprefix("tar://").removesuffix(f"::{container}")


def row_uri(container: str, row: int) -> str:
    """Return the uri of a row of a Parquet file."""
    return f"{container}#row={row}"


@dataclass(frozen=True, slots=True)
class ReadVersion:
    """The size and version that were read of an image, and whether the version differs from the listed one.

    etag, is_changed: None if the store or the listing does not report versions.
    georeference: where that version lies on the ground; None if it does not say.
    """

    bytes: int
    etag: str | None
    is_changed: bool | None
    georeference: Georeference | None = None
