"""Files on this machine's own file systems: list in order, read a range, write atomically.

Local paths do not go through fsspec: plain calls are several times faster, and no character of a name is special.
"""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import AccessDeniedError, IncompleteReadError, ObjectTooLargeError
from pipeline.storage.objects import ObjectData
from pipeline.storage.uris import name_order

TEMP_SUFFIX = ".htc-tmp"
"""Unfinished files are `.NAME.<pid>-<random>.htc-tmp`; the leading dot keeps them out of every listing."""


OnLink = Callable[[str, str], None]
"""Called for a link to a folder that is not entered, with the link's path and the real folder's."""

Identity = tuple[int, int]

# The end of the name of a link to a folder, where a folder's is one slash.
_LINK = "//"
_ODD_BYTE = re.compile("[\udc80-\udcff]")
"""Bytes of a name that are not UTF-8, as Python represents them (PEP 383)."""


def walk_files(
    folder: str, after: str = "", on_link: OnLink | None = None
) -> Iterator[tuple[str, os.stat_result | None]]:
    """List the files below a folder as (path, stat), in the order of their whole paths (`uris.name_order`).

    Hidden files and folders are left out. A link to a file is listed as a file, and a dangling link with None instead
    of its stat: the image is missing. Each real folder is entered once: a folder below `folder` by its own path and
    never by a link, a folder elsewhere by the first link to it, in the order of paths.

    Args:
        after: only paths behind this one; folders that end before it are not entered.
        on_link: called for each link to a folder that is not entered, because its files come under another name.

    Raises:
        OSError: a folder cannot be listed.
    """
    yield from _Walk(folder.rstrip("/") or "/", name_order(after), on_link).files()


class _Walk:
    """One walk through a folder, and the folders outside it that links lead to."""

    def __init__(self, root: str, after: bytes, on_link: OnLink | None) -> None:
        self._root = root
        self._real_root = os.path.realpath(root)
        self._after = after
        self._on_link = on_link
        # The path by which each folder outside the root was entered first.
        self._elsewhere: dict[Identity, str] = {}
        self._is_whole = not after

    def files(self) -> Iterator[tuple[str, os.stat_result | None]]:
        yield from self._below(self._root, is_elsewhere=False)

    def _below(self, folder: str, *, is_elsewhere: bool) -> Iterator[tuple[str, os.stat_result | None]]:
        for name in self._sorted_names(folder):
            path = _path_in(folder, name.rstrip("/"))
            if not name.endswith("/"):
                yield path, _stat(path)
            elif not (is_elsewhere or name.endswith(_LINK)):
                yield from self._below(path, is_elsewhere=False)
            elif self._may_enter(path, is_link=name.endswith(_LINK)):
                yield from self._below(path, is_elsewhere=True)

    def _sorted_names(self, folder: str) -> list[str]:
        """Return the names in a folder, in order; those of folders with a slash at the end, of links to folders two.

        Names only, because a folder may hold many millions: an entry of `os.scandir` is several times as large.
        """
        names: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if self._after and _ends_before(entry, self._after):
                    continue
                if _leads_to(entry, os.DirEntry.is_dir):
                    names.append(f"{name}{_LINK if entry.is_symlink() else '/'}")
                elif entry.is_symlink() or _leads_to(entry, os.DirEntry.is_file):
                    names.append(name)
        # A folder sorts as "name/", so that the walk as a whole comes out in the order of the full paths. Code points
        # are in the order of their UTF-8, except those that stand for bytes that are not UTF-8.
        names.sort(key=name_order if any(map(_ODD_BYTE.search, names)) else None)
        return names

    def _may_enter(self, path: str, *, is_link: bool) -> bool:
        """Return whether to enter a folder that a link leads to: only if its files are listed under no other name."""
        real = os.path.realpath(path)
        below = real.removeprefix(self._real_root.rstrip("/") + "/")
        is_root = real == self._real_root
        # A hidden folder is not entered by its own path.
        is_own = is_root or (below != real and not any(part.startswith(".") for part in below.split("/")))
        if not is_own and self._first_path(path) == path:
            return True
        if is_link and self._on_link is not None:
            self._on_link(path, real)
        return False

    def _first_path(self, entered: str) -> str:
        if not self._is_whole:
            # Names before `after` were skipped, and links among them may lead to the same folder.
            self._is_whole = True
            whole = _Walk(self._root, b"", None)
            for path, _ in whole.files():
                if name_order(path) > self._after:
                    break
            self._elsewhere = whole._elsewhere
        return self._elsewhere.setdefault(_identity(entered), entered)


def file_names(folder: str, prefix: str) -> Iterator[str]:
    """List the names of the files right in a folder that begin with a prefix, in any order, without hidden ones.

    Raises:
        OSError: the folder cannot be listed.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if not name.startswith(prefix) or name.startswith("."):
                continue
            # As in a walk, a link that leads nowhere is a file, which is missing.
            if _leads_to(entry, os.DirEntry.is_file) or (
                entry.is_symlink() and not _leads_to(entry, os.DirEntry.is_dir)
            ):
                yield name


def _ends_before(entry: os.DirEntry[str], after: bytes) -> bool:
    path = name_order(entry.path)
    if not _leads_to(entry, os.DirEntry.is_dir):
        return path <= after
    return path + b"/" < after and not after.startswith(path + b"/")


def _leads_to(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    try:
        return kind(entry)
    except OSError:
        if entry.is_symlink():
            # A link to itself, or to a place without permission: it becomes a failed row, and the walk continues.
            return False
        raise


def _path_in(folder: str, name: str) -> str:
    return f"{folder}{name}" if folder == "/" else f"{folder}/{name}"


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - a Path for each of many millions would cost more than the call
    except FileNotFoundError:
        return None
    except OSError:
        if os.path.islink(path):  # noqa: PTH114 - as above
            return None
        raise


def _identity(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def etag_of(status: os.stat_result) -> str:
    """Return a local file's version: modification time in ns and size, both hexadecimal."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def read_file(path: str, offset: int | None, length: int | None, max_bytes: int | None = None) -> ObjectData:
    """Read a whole file, or a range of it; a range beyond the end comes back short.

    Raises:
        OSError: it cannot be read.
        ObjectTooLargeError: it is larger than `max_bytes`, and read to its end.
        IncompleteReadError: it was written to during the read, so that the bytes may be of two versions.
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
    return ObjectData(payload, etag)


def write_file(path: str, payload: bytes) -> None:
    """Write a file atomically, also with respect to a power cut.

    The temporary file is in the same folder, because a rename is atomic within one file system only.

    Raises:
        OSError: it cannot be written; the temporary file is removed.
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
    sync_folder(target.parent)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the place of a folder", str(folder)) from error


def sync_folder(folder: Path) -> None:
    """Write a new name in a folder to the disk, if the file system supports it."""
    # Without this the new name itself may be lost in a power cut. Some network file systems refuse it; the payload is
    # safe there too, so the write has not failed.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_listable(folder: str) -> None:
    """Check that a folder can be listed.

    Raises:
        AccessDeniedError: there is no permission to list it.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise AccessDeniedError(f"No permission to list {folder}; check the permissions.")
