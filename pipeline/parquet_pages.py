"""The headers of a Parquet column's pages: how much memory a page takes is known before it is decompressed.

A page is what a Parquet reader decompresses at once, and no reader of pyarrow says its size beforehand. The footer
tells only a column chunk's sum, which is large for a sound file with thousands of images; so the headers themselves
are read, which are Thrift structs in the compact protocol (parquet-format, README.md, "Data Pages"; parquet.thrift,
`PageHeader`; thrift-compact-protocol.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pipeline.tar_files import DamagedContainerError

# Headers have some thirty bytes; with the smallest and largest value of an odd writer, more. Arrow reads 16 MiB.
_HEADER_BYTES = 1024
_LONGEST_HEADER_BYTES = 2**20
# Values in a struct, and structs in structs: parquet.thrift has five and three.
_MOST_DEPTH = 8

_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 1, 2, 3
_HEADER_OF = {_DATA_PAGE: 5, _DICTIONARY_PAGE: 7, _DATA_PAGE_V2: 8}


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    bytes: of memory once it is decompressed. values: in it, nulls among them. is_dictionary: it holds the distinct
    values that all data pages behind it refer to.
    """

    bytes: int
    values: int
    is_dictionary: bool


def read_pages(file: IO[bytes], start: int, length: int) -> Iterator[Page]:
    """Read the page headers of a column chunk, one by one.

    Args:
        file: unbuffered where a read costs a request.
        start, length: of the chunk, in bytes.

    Raises:
        DamagedContainerError: what stands there is no page header.
        OSError: the file cannot be read; so does what else `file` raises.
    """
    position, end = start, start + length
    while position < end:
        fields, header_bytes = _read_header(file, position, end)
        kind, uncompressed, compressed = fields.get(1), fields.get(2), fields.get(3)
        if not isinstance(uncompressed, int) or not isinstance(compressed, int) or min(uncompressed, compressed) < 0:
            raise DamagedContainerError("a page has no size")
        position += header_bytes + compressed
        if kind == _INDEX_PAGE:
            continue
        inner = fields.get(_HEADER_OF.get(kind, -1)) if isinstance(kind, int) else None
        values = inner.get(1) if isinstance(inner, dict) else None
        if not isinstance(values, int) or values < 0:
            raise DamagedContainerError("a page does not say how many values it has")
        # A page is held as it lies in the file, too.
        yield Page(max(uncompressed, compressed), values, kind == _DICTIONARY_PAGE)


def _read_header(file: IO[bytes], position: int, end: int) -> "tuple[dict[int, object], int]":
    size = _HEADER_BYTES
    while True:
        file.seek(position)
        payload = _read_up_to(file, min(size, end - position))
        try:
            reader = _Compact(payload)
            return reader.read_struct(), reader.position
        except IndexError:
            # The header is longer, or it is cut off.
            if len(payload) < size or size >= _LONGEST_HEADER_BYTES:
                raise DamagedContainerError("a page header is cut off or makes no sense") from None
        size *= 8


def _read_up_to(file: IO[bytes], size: int) -> bytes:
    # Unbuffered files may return less than there is.
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class _Compact:
    """Reads Thrift's compact protocol: integers and structs, and past all else. IndexError when the bytes end."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self.position = 0

    def read_struct(self, depth: int = 0) -> dict[int, object]:
        if depth > _MOST_DEPTH:
            raise DamagedContainerError("a page header is nested too deeply")
        fields: dict[int, object] = {}
        number = 0
        while (head := self._byte()) != 0:
            delta, kind = head >> 4, head & 0x0F
            number = number + delta if delta else self._zigzag()
            fields[number] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> object:
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 12:
            return self.read_struct(depth + 1)
        sizes = {3: 1, 7: 8}
        self._skip(sizes[kind] if kind in sizes else self._varint() if kind == 8 else self._unknown(kind))
        return None

    def _unknown(self, kind: int) -> int:
        # Lists, sets and maps: page headers have none.
        raise DamagedContainerError(f"a page header holds a value of the unknown kind {kind}")

    def _byte(self) -> int:
        value = self._payload[self.position]
        self.position += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise DamagedContainerError("a page header holds a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self._payload):
            raise IndexError
