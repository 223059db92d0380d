"""Reads Parquet page headers, which hold the size of a page before it is decompressed.

A Parquet reader decompresses a page at once, and pyarrow does not report a page's size before. The footer has only the
sum of a column chunk, which is large for a valid file with thousands of images. So this module reads the page headers
themselves: Thrift structs in the compact protocol (parquet-format, README.md, "Data Pages"; parquet.thrift,
`PageHeader`; thrift-compact-protocol.md).

An example: the bytes `15 00 15 C8 01 15 96 01 2C 15 28 ... 00 00` are the header of a data page.

| bytes | meaning |
|---|---|
| `15` | field 0 + 1 = 1 (`type`), kind 5 (an i32) |
| `00` | zigzag 0: a data page |
| `15`, `C8 01` | field 2 (`uncompressed_page_size`): varint 200, zigzag 100 bytes |
| `15`, `96 01` | field 3 (`compressed_page_size`): varint 150, zigzag 75 bytes |
| `2C` | field 3 + 2 = 5 (`data_page_header`), kind 12 (a struct) |
| `15`, `28` | its field 1 (`num_values`): varint 40, zigzag 20 values |
| ... `00` `00` | its other fields, the end of the struct, and the end of the header |
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pipeline.errors import DamagedContainerError

# A header has about thirty bytes, or more if a writer puts the smallest and largest value into it. Arrow reads 16 MiB.
_HEADER_BYTES = 1024
_LONGEST_HEADER_BYTES = 2**20
# Levels of nested structs and lists: parquet.thrift has eight (the levels' histograms of a column's pages).
_MOST_DEPTH = 12

_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 1, 2, 3
_HEADER_OF = {_DATA_PAGE: 5, _DICTIONARY_PAGE: 7, _DATA_PAGE_V2: 8}


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    bytes: of memory once it is decompressed. values: their number, with nulls. is_dictionary: whether it holds the
    distinct values that all data pages after it refer to.
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
        DamagedContainerError: the bytes are not page headers.
        OSError: the file cannot be read; other exceptions of `file` are not translated either.
    """
    position, end, file_bytes = start, start + length, file.seek(0, 2)
    if end > file_bytes:
        raise DamagedContainerError("a column reaches beyond the end of the file")
    while position < end:
        # Up to the end of the file, not of the chunk: parquet-mr once left the dictionary's header out of a chunk's
        # length (PARQUET-816).
        fields, header_bytes = _read_header(file, position, file_bytes)
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
        # The compressed page is in memory as well.
        yield Page(max(uncompressed, compressed), values, kind == _DICTIONARY_PAGE)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column of a row group: the position of its pages in the file, and their bytes once decompressed."""

    start: int
    length: int
    uncompressed_bytes: int


def read_chunks(file: IO[bytes]) -> list[dict[str, Chunk]]:
    """Read the column chunks from a file's footer: for each row group, by the column's dotted path.

    pyarrow returns the same, but with a damaged footer its `RowGroupMetaData.column` ends the process (26.0: the C++
    exception of an invalid size statistic is not caught).

    Raises:
        DamagedContainerError: the footer is damaged.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    length = int.from_bytes(_read_up_to(file, 8)[:4], "little")
    if length + 8 > size:
        raise DamagedContainerError("its footer is longer than the file")
    file.seek(size - 8 - length)
    try:
        # parquet.thrift: FileMetaData.row_groups, RowGroup.columns, ColumnChunk.meta_data.
        groups = _Compact(_read_up_to(file, length)).read_struct().get(4)
        return [dict(map(_chunk, _structs(group.get(1)))) for group in _structs(groups)]
    except IndexError:
        raise DamagedContainerError("its footer is truncated or invalid") from None


def _structs(value: object) -> list[dict[int, object]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise DamagedContainerError("its footer is invalid")
    return value


def _chunk(column: dict[int, object]) -> tuple[str, Chunk]:
    # ColumnMetaData: 3 path_in_schema, 6 total_uncompressed_size, 7 total_compressed_size, 9 data_page_offset, 11
    # dictionary_page_offset.
    (found,) = _structs([column.get(3)])
    path, sizes = found.get(3), [found.get(number) for number in (6, 7, 9, 11)]
    if not isinstance(path, list) or not all(isinstance(name, bytes) for name in path):
        raise DamagedContainerError("a column of its footer has no name")
    uncompressed, compressed, data, dictionary = (each if isinstance(each, int) else 0 for each in sizes)
    start = min((each for each in (data, dictionary) if each > 0), default=0)
    name = ".".join(name.decode("utf-8", "surrogateescape") for name in path)
    return name, Chunk(start, max(0, compressed), max(0, uncompressed))


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
                raise DamagedContainerError("a page header is truncated or invalid") from None
        size *= 8


def _read_up_to(file: IO[bytes], size: int) -> bytes:
    # Unbuffered files may return fewer bytes than requested.
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class _Compact:
    """Reads Thrift's compact protocol, except for maps. Raises IndexError where the bytes end."""

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
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            return self._list(depth + 1)
        if kind == 12:
            return self.read_struct(depth + 1)
        sizes = {3: 1, 7: 8}
        if kind not in sizes:
            # Maps (11) are neither in page headers nor in footers.
            raise DamagedContainerError(f"a header holds a value of the unknown kind {kind}")
        return self._bytes(sizes[kind])

    def _list(self, depth: int) -> list[object]:
        if depth > _MOST_DEPTH:
            raise DamagedContainerError("a header is nested too deeply")
        head = self._byte()
        size, kind = head >> 4, head & 0x0F
        size = self._varint() if size == 15 else size
        # A boolean takes a byte in a list, and a bit of the field's head in a struct.
        return [self._byte() == 1 if kind in (1, 2) else self._value(kind, depth) for _ in range(size)]

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

    def _bytes(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._payload):
            raise IndexError
        value = self._payload[self.position : end]
        self.position = end
        return value
