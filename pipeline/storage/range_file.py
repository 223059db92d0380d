"""A remote object as a file for reading and seeking, of one version from beginning to end.

Each piece goes through the door like any other read, with its retries; format libraries that read through it
need to know of no store. A store's own file objects give up at the first cut connection.
"""

import io
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from pipeline.errors import IncompleteReadError
from pipeline.storage.objects import ObjectData, ObjectInfo

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Read ahead at once. A tar's headers lie between its images: with less, each would cost a request.
BUFFER_BYTES = 2**20

ReadRange = Callable[[int, int], ObjectData]
"""Reads (offset, length)."""


def open_ranges(listed: ObjectInfo, size: int, read: ReadRange) -> IO[bytes]:
    """Open an object for reading.

    Args:
        listed: what it is now. size: its length in bytes.
        read: what it raises, reading the file raises.
    """
    return io.BufferedReader(_Ranges(listed, size, read), BUFFER_BYTES)


class _Ranges(io.RawIOBase):
    """Reads what is asked for, no more."""

    def __init__(self, listed: ObjectInfo, size: int, read: ReadRange) -> None:
        self._listed = listed
        self._size = size
        self._read = read
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError(f"negative seek value {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        found = self._read(self._position, wanted)
        if found.etag != self._listed.etag and None not in (found.etag, self._listed.etag):
            # Two halves of two files would pass for a damaged one.
            raise IncompleteReadError(f"{self._listed.uri} was replaced while it was read.")
        view[: len(found.payload)] = found.payload
        self._position += len(found.payload)
        return len(found.payload)
