"""Named files as an fsspec file system that can only read them, for libraries that take no other.

The one module that imports fsspec at once; import it inside functions, or from modules that are imported so.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from fsspec import AbstractFileSystem

# Readers that cache what they have read ask for it; a file does not change while it has its name.
_MODIFIED = datetime(1970, 1, 1, tzinfo=UTC)


class ReadableFile(Protocol):
    """An open file; closed when it is no longer referenced."""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position, and return it."""

    def tell(self) -> int:
        """Return the position."""

    def read(self, length: int) -> bytes:
        """Read from the position; fewer bytes at the end of the file only."""


class NamedFiles(Protocol):
    """The files: paths with the scheme of the file system. Called in several threads."""

    def find(self, pattern: str) -> Sequence[str]:
        """Return the paths that a pattern, or a path, stands for; none for an unknown one."""

    def open(self, path: str) -> ReadableFile:
        """Open a file.

        Raises:
            NotFoundError: there is no such file.
        """

    def size(self, path: str) -> int:
        """Return a file's size in bytes; errors as for `open`."""


class ReadOnlyFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Nothing but the given files exists, and nothing can be written; fsspec refuses what is not defined here."""

    cachable = False

    def __init__(self, scheme: str, files: NamedFiles) -> None:
        """`scheme`: what the paths begin with, without "://"."""
        super().__init__()
        self.protocol = scheme
        self._files = files

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the paths that a pattern stands for."""
        return list(self._files.find(path))

    def open(self, path: str, mode: str = "rb", **_: Any) -> ReadableFile:
        """Open a file for reading.

        Raises:
            PermissionError: `mode` is another one.
        """
        if mode != "rb":
            raise PermissionError(f"{path} can be read only")
        return self._files.open(path)

    def size(self, path: str) -> int:
        """Return a file's size in bytes."""
        return self._files.size(path)

    def modified(self, path: str) -> datetime:
        """Return the same time for every file."""
        return _MODIFIED

    def isfile(self, path: str) -> bool:
        """Return whether there is such a file."""
        return path in self._files.find(path)

    def isdir(self, path: str) -> bool:
        """Return False: there are no folders."""
        return False

    def exists(self, path: str, **_: Any) -> bool:
        """Return whether there is such a file."""
        return self.isfile(path)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Raise PermissionError."""
        raise PermissionError(f"{path} can be read only")

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Raise PermissionError."""
        raise PermissionError(f"{path} can be read only")
