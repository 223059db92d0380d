"""Bytes of one version of a file, read where they are needed: from memory, or by range requests with a small cache."""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import IncompleteReadError
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.range_file import SeekableFile
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# A tile of 256 x 256 x 3 bytes that is compressed by half takes two blocks; headers are read with the first one.
BLOCK_BYTES = 64 * 2**10
# Of one image. GDAL keeps decoded tiles itself, so this one needs to hold little more than what one window reads.
CACHE_BYTES = 16 * 2**20
# Bytes asked for by one request: a store's connection carries some MB/s, and a cut one is repeated as a whole.
REQUEST_BYTES = 8 * 2**20


class ByteRanges(Protocol):
    """Bytes that can be read from any place on."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return the bytes from a place on, fewer only where the file ends before."""
        ...


class PayloadRanges:
    """The bytes of a file that is in memory."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._payload)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return the bytes from a place on."""
        return self._payload[offset : offset + length]


class StoredRanges:
    """The bytes of a stored file, or of a member of a tar, of the version that it has now.

    Blocks that were read are kept while there is room; neighbouring missing ones are one request. Not safe for several
    threads.

    Attributes:
        requests, bytes_read: what was asked of the store.
    """

    def __init__(self, storage: Storage, info: ObjectInfo, *, start: int = 0, size: int | None = None) -> None:
        """Prepare; nothing is read.

        Args:
            info: the file, with its size and version.
            start, size: of the part that is read; by default the whole file.
        """
        if info.bytes is None and size is None:
            raise ValueError(f"{info.uri}: the size is not known")
        self._storage = storage
        self._info = info
        self._start = start
        self._size = (info.bytes or 0) - start if size is None else size
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self.requests = 0
        self.bytes_read = 0

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return the bytes from a place on.

        Raises:
            IncompleteReadError: the file was replaced since it was opened; bytes of two versions are never mixed.
            StorageError: it cannot be read.
        """
        end = min(offset + length, self._size)
        if offset >= end:
            return b""
        wanted = range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)
        found: dict[int, bytes] = {}
        missing: list[int] = []
        for block in wanted:
            if block in self._blocks:
                self._blocks.move_to_end(block)
                found[block] = self._blocks[block]
            else:
                missing.append(block)
        for first, last in _joined(missing):
            found |= self._fetch(first, last)
        joined = b"".join(found[block] for block in wanted)
        begin = offset - wanted.start * BLOCK_BYTES
        return joined[begin : begin + end - offset]

    def _fetch(self, first: int, last: int) -> dict[int, bytes]:
        offset = first * BLOCK_BYTES
        length = min((last + 1) * BLOCK_BYTES, self._size) - offset
        data = self._storage.fetch(self._info.uri, self._start + offset, length, listed=self._info)
        if data.etag != self._info.etag and None not in (data.etag, self._info.etag):
            raise IncompleteReadError(f"{self._info.uri} was replaced while it was read.")
        if len(data.payload) != length:
            raise IncompleteReadError(f"{self._info.uri} became shorter while it was read.")
        self.requests += 1
        self.bytes_read += length
        found = {
            block: data.payload[(block - first) * BLOCK_BYTES : (block - first + 1) * BLOCK_BYTES]
            for block in range(first, last + 1)
        }
        self._blocks.update(found)
        while len(self._blocks) * BLOCK_BYTES > CACHE_BYTES:
            self._blocks.popitem(last=False)
        return found


def _joined(blocks: list[int]) -> list[tuple[int, int]]:
    """Join neighbouring blocks to requests, by first and last block."""
    requests: list[tuple[int, int]] = []
    for block in blocks:
        if requests and requests[-1][1] == block - 1 and (block - requests[-1][0] + 1) * BLOCK_BYTES <= REQUEST_BYTES:
            requests[-1] = (requests[-1][0], block)
        else:
            requests.append((block, block))
    return requests


class RangeFile(SeekableFile):
    """Bytes as a file for reading and seeking, for format libraries."""

    def __init__(self, ranges: ByteRanges, on_error: Callable[[Exception], None] | None = None) -> None:
        """`on_error`: gets what reading raises, and the file seems to end there; by default it is raised."""
        super().__init__(ranges.size)
        self._ranges = ranges
        self._on_error = on_error

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill a buffer; it stays unfilled only behind the end of the file."""
        view = memoryview(buffer).cast("B")
        try:
            found = self._ranges.read_at(self._position, len(view))
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)
            return 0
        view[: len(found)] = found
        self._position += len(found)
        return len(found)
