"""Files on this machine's own file systems: list in order, read a range, write atomically.

Local paths do not go through fsspec: plain calls are several times faster, and no character of a name is
special.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import AccessDeniedError, IncompleteReadError, ObjectTooLargeError
from pipeline.stored import Fetched
from pipeline.uris import name_order

TEMP_SUFFIX = ".htc-tmp"
"""Our unfinished files are `.NAME.<pid>-<random>.htc-tmp`; the leading dot keeps them out of every
listing."""


def walk_files(folder: str, after: str = "") -> Iterator[tuple[str, os.stat_result | None]]:
    """List the files below a folder as (path, stat), in the order of their whole paths (`uris.name_order`).

    Hidden files and folders are left out. A link that leads nowhere is listed with None: it is a missing
    image, not an absent one. A folder is entered once per way that leads to it, never inside itself.

    Args:
        after: only paths behind this one; folders that end before it are not entered.

    Raises:
        OSError: a folder cannot be listed.
    """
    yield from _walk(folder.rstrip("/") or "/", name_order(after), ancestors=frozenset())


def _walk(
    folder: str, after: bytes, ancestors: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, os.stat_result | None]]:
    found: list[tuple[str, str, os.stat_result | None]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if after and _ends_before(entry, after):
                continue
            if entry.is_dir():
                found.append((entry.name + "/", entry.path, None))
            elif entry.is_file() or entry.is_symlink():
                found.append((entry.name, entry.path, _stat(entry)))
    # A folder sorts as "name/", so that the walk as a whole comes out in the order of the full paths.
    found.sort(key=lambda each: name_order(each[0]))
    for name, path, status in found:
        if not name.endswith("/"):
            yield path, status
            continue
        identity = _identity(path)
        if identity not in ancestors:
            yield from _walk(path, after, ancestors | {identity})


def _ends_before(entry: os.DirEntry[str], after: bytes) -> bool:
    path = name_order(entry.path)
    if not entry.is_dir():
        return path <= after
    return path + b"/" < after and not after.startswith(path + b"/")


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:
        return None


def _identity(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def etag_of(status: os.stat_result) -> str:
    """Return a local file's version: modification time in ns and size, both hexadecimal."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def read_file(path: str, offset: int | None, length: int | None, max_bytes: int | None = None) -> Fetched:
    """Read a whole file, or a range of it; a range beyond the end comes back short.

    Raises:
        OSError: it cannot be read.
        ObjectTooLargeError: it is larger than `max_bytes`, and all of it is wanted.
        IncompleteReadError: it was written to meanwhile, so that the bytes may be of two versions.
    """
    with Path(path).open("rb", buffering=0 if length is None else -1) as file:
        before = os.fstat(file.fileno())
        if max_bytes is not None and length is None and before.st_size > max_bytes:
            raise ObjectTooLargeError(path, before.st_size)
        if offset:
            file.seek(offset)
        payload = file.read() if length is None else file.read(length)
        etag = etag_of(before)
        if etag_of(os.fstat(file.fileno())) != etag:
            raise IncompleteReadError(f"{path} was written to while it was read.")
    return Fetched(payload, etag)


def write_file(path: str, payload: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    The temporary file lies in the same folder, because a rename is atomic within one file system only.

    Raises:
        OSError: it cannot be written; the temporary file is gone.
    """
    target = Path(path)
    _make_folder(target.parent)
    temp = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMP_SUFFIX}")
    try:
        with temp.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise
    _sync_folder(target.parent)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file stands where a folder is needed", str(folder)) from error


def _sync_folder(folder: Path) -> None:
    # Without this the new name itself may be lost in a power cut. Some network file systems refuse it; the
    # payload is safe there too, so that is no reason to fail.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_listable(folder: str) -> None:
    """Refuse a folder that cannot be entered, by name.

    Raises:
        AccessDeniedError: no permission to list it.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise AccessDeniedError(f"No permission to list {folder}; check the permissions.")
