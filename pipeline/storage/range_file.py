"""A stored object as a file for reading and seeking, of one version from beginning to end.

Each piece of a remote object is read by a request of its own, with its retries, so that format libraries that read
through the file need to know of no store. A store's own file objects give up at the first cut connection.
"""

import io
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.errors import IncompleteReadError
from pipeline.storage.objects import ObjectData, ObjectInfo
from pipeline.storage.translate import storage_error
from pipeline.storage.uris import is_local

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Read ahead at once. A tar's headers lie between its images: with less, each would cost a request.
BUFFER_BYTES = 2**20

ReadRange = Callable[[int, int], ObjectData]
"""Reads (offset, length)."""


class StoredFile(io.BufferedReader):
    """An open file of a store.

    Used as a context manager it also translates what the operating system raises inside the block; nothing there is
    retried.

    info: the file's size, and the version that is read.
    """

    def __init__(self, raw: Any, info: ObjectInfo, buffer_bytes: int = BUFFER_BYTES) -> None:
        """`raw`: an io.RawIOBase."""
        super().__init__(raw, buffer_bytes)
        self.info = info

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        except OSError as closing:
            error = closing
        # Format libraries raise an OSError without errno for a damaged file; that is for the caller to judge.
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            translated = storage_error(error, self.info.uri, "read", is_local=is_local(self.info.uri))
            if translated is not None:
                raise translated from error


def open_ranges(listed: ObjectInfo, size: int, read: ReadRange) -> StoredFile:
    """Open an object for reading.

    Args:
        listed: what it is now. size: its length in bytes.
        read: reads a part of the object; reading the file raises what it raises.
    """
    return StoredFile(_Ranges(listed, size, read), listed)


class SeekableFile(io.RawIOBase):
    """A file for reading whose bytes come by place; subclasses fill buffers from `_position` on and move it.

    Args:
        size: in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place from which the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the place from which the next read begins."""
        place = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        if place < 0:
            raise ValueError(f"negative seek value {place}")
        self._position = place
        return place


class _Ranges(SeekableFile):
    """Unbuffered: each read is one request for exactly these bytes."""

    def __init__(self, listed: ObjectInfo, size: int, read: ReadRange) -> None:
        super().__init__(size)
        self._listed = listed
        self._read = read

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        found = self._read(self._position, wanted)
        if found.etag != self._listed.etag and None not in (found.etag, self._listed.etag):
            # Parts of two versions together would look like a damaged file.
            raise IncompleteReadError(f"{self._listed.uri} was replaced while it was read.")
        view[: len(found.payload)] = found.payload
        self._position += len(found.payload)
        return len(found.payload)
