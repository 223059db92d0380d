"""File names for exported images: as in the input where that is possible, and safe everywhere."""

import re
from pathlib import PurePosixPath

from pipeline.inputs.formats.detect import IMAGE_SUFFIXES
from pipeline.storage.uris import suffix_of

# Characters that Windows forbids; on other systems only the slash and NUL are.
_FORBIDDEN = re.compile(r'[\x00-\x1f\\:*?"<>|]+')
# Most file systems hold names of 255 bytes; the rest is for suffixes and numbers.
MAX_PART_BYTES = 200


def relative_name(uri: str, root: str) -> str:
    """Return the name of an image relative to the input, with slashes: what COCO calls `file_name`.

    Args:
        uri: the image's. root: the input's URI or folder.

    The member of a container is named after the container's name without suffix; a row of a Parquet file has the
    suffix .jpg, because it has none.
    """
    if "::" in uri:
        member, _, container = uri.removeprefix("tar://").partition("::")
        return f"{_below(container, root).rsplit('.', 1)[0]}/{member.lstrip('/')}"
    path, is_row, row = uri.rpartition("#row=")
    if is_row:
        return f"{_below(path, root).rsplit('.', 1)[0]}/{row}.jpg"
    return _below(uri, root)


def _below(uri: str, root: str) -> str:
    base = root.rstrip("/")
    if base and uri.startswith(base + "/"):
        return uri[len(base) + 1 :]
    return uri.partition("?")[0].rsplit("/", 1)[-1] or "image"


def split_name(name: str) -> tuple[str, str]:
    """Return the stem and the suffix of a safe relative path for a name of `relative_name`; only an image's suffix is
    one."""
    parts = [_safe(part) for part in PurePosixPath(name).parts if part not in ("/", ".", "..")] or ["image"]
    suffix = suffix_of(parts[-1])
    if suffix not in IMAGE_SUFFIXES:
        suffix = ""
    path = "/".join(parts)
    return path[: len(path) - len(suffix)] or "image", suffix


def _safe(part: str) -> str:
    safe = _FORBIDDEN.sub("_", part).strip(" ") or "_"
    if len(safe.encode()) <= MAX_PART_BYTES:
        return safe
    suffix = suffix_of(safe)
    kept = safe.encode()[: MAX_PART_BYTES - len(suffix.encode())].decode(errors="ignore")
    return kept + suffix
