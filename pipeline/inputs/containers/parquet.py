"""Parquet shards that hold encoded images (Hugging Face style and plain), and Parquet listings of URIs.

A row group may hold gigabytes of images. So rows are streamed, one at a time, and no more is in memory than the page
that a row lies in; how large that is, is read from the pages' headers before it is decompressed.
"""

import io
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DamagedContainerError, ImageError, IncompleteReadError, PastEndError
from pipeline.inputs.containers.parquet_pages import Chunk, Page, read_chunks, read_pages
from pipeline.storage import local as local_files
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage
from pipeline.storage.translate import storage_error
from pipeline.storage.uris import is_local
from pipeline.text import message_of

_BATCH_ROWS = 4096
# Asked of the file at once; a page that is larger is read whole.
_BUFFER_BYTES = 4 * 2**20
# A page that is larger than this, and than images.max_bytes, is not decompressed. Writers of Hugging Face data sets
# put a row group of 100 images into one page, before they notice that it is too large for a dictionary.
MOST_PAGE_BYTES = 256 * 2**20
# A page holds, beside a single value, its length and the levels that say whether it is null.
_PAGE_OVERHEAD_BYTES = 64
# Rows that a reader is passed by for another one of the same row group: two shards read at two places of it.
_NEAR_ROWS = 64
# How often a file may be replaced between opening it and reading from it.
_LOOKS = 3


@dataclass(frozen=True, slots=True)
class RowContent:
    """What a row holds of its image: the encoded bytes, or the name of a file; None for what it does not hold.

    etag: the version of the Parquet file.
    """

    payload: bytes | None
    path: str | None
    etag: str | None


def inspect_parquet(uri: str, storage: Storage) -> tuple[pa.Schema, int]:
    """Read a file's schema and number of rows, not its rows.

    Raises:
        DamagedContainerError: it is no whole Parquet file.
    """
    with _open(uri, storage) as (file, _):
        # Asked for here, where a name that cannot be read is damage.
        return pa.schema(list(file.schema_arrow), file.schema_arrow.metadata), file.metadata.num_rows


def read_uris(uri: str, column: str, storage: Storage) -> Iterator[str | None]:
    """Read a column of URIs, in order, None for a row without one; no other column is read."""
    with _open(uri, storage) as (file, _):
        parts = column_parts(file.schema_arrow, column)
        if parts is None:
            raise DamagedContainerError(f"it has no column {column} any more")
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[".".join(parts)], use_threads=False):
            for row in range(batch.num_rows):
                yield text_of(follow(batch, row, parts)) or None


def column_parts(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Split a dotted column into the names of nested fields, which may hold dots themselves; None if not there."""
    return _parts(list(schema), column)


def _parts(fields: list[pa.Field], column: str) -> tuple[str, ...] | None:
    for field in fields:
        if field.name == column:
            return (field.name,)
    for field in fields:
        kind = storage_type(field.type)
        if column.startswith(f"{field.name}.") and pa.types.is_struct(kind):
            rest = _parts([kind.field(index) for index in range(kind.num_fields)], column[len(field.name) + 1 :])
            if rest is not None:
                return (field.name, *rest)
    return None


def storage_type(kind: pa.DataType) -> pa.DataType:
    """What an extension type or a dictionary holds; any other type as it is."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def follow(batch: pa.RecordBatch, row: int, parts: tuple[str, ...]) -> pa.Scalar | None:
    """Follow names into nested structs; None where one of them is null."""
    scalar = batch.column(batch.schema.get_field_index(parts[0]))[row]
    for name in (*parts[1:], None):
        while scalar is not None and isinstance(scalar, pa.ExtensionScalar | pa.DictionaryScalar):
            scalar = scalar.value
        if scalar is None or not scalar.is_valid:
            return None
        if name is not None:
            scalar = scalar[name]
    return scalar


def text_of(scalar: pa.Scalar | None) -> str | None:
    """A text or binary scalar as text; bytes that are no UTF-8 come through as surrogates."""
    if scalar is None:
        return None
    return bytes(scalar.as_buffer()).decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class _Layout:
    """A version of a file: its footer, each row group's columns and first row, and at the end the number of rows."""

    etag: str | None
    metadata: pq.FileMetaData
    chunks: list[dict[str, Chunk]]
    starts: list[int]


class _ReplacedError(Exception):
    """The file is not the one that was opened."""


class _Rows:
    """Reads one row group from its beginning to its end."""

    def __init__(self, uri: str, storage: Storage, layout: _Layout, group: int, column: str) -> None:
        self.first = layout.starts[group]
        self.end = layout.starts[group + 1]
        self.next = self.first
        self._uri = uri
        self._layout = layout
        self._storage = storage
        # One for the pages' headers: moving about in the other would upset its buffer.
        self._opened: list[IO[bytes]] = []
        try:
            self._raw = self._open()
            with _damage_named():
                self._file = pq.ParquetFile(self._raw, metadata=layout.metadata, buffer_size=_BUFFER_BYTES)
                self._select(group, column)
        except BaseException:
            self._close_files()
            raise

    def _open(self) -> IO[bytes]:
        raw, listed = self._storage.open_version(self._uri)
        self._opened.append(raw)
        if listed.etag != self._layout.etag:
            raise _ReplacedError
        return raw

    def _close_files(self) -> None:
        for raw in self._opened:
            raw.close()

    def _select(self, group: int, column: str) -> None:
        schema = self._file.schema_arrow
        parts = column_parts(schema, column)
        if parts is None:
            raise DamagedContainerError(f"it has no column {column} any more")
        self._parts: dict[str, tuple[str, ...]] = {}
        if len(parts) == 1 or parts[-1] != "path":
            self._parts["bytes"] = parts
        # Beside a struct's `bytes` may stand the name of the file that holds them.
        beside = column_parts(schema, ".".join((*parts[:-1], "path"))) if len(parts) > 1 else None
        if beside is not None:
            self._parts["path"] = beside
        names = [".".join(each) for each in self._parts.values()]
        selected = [chunk for name, chunk in self._layout.chunks[group].items() if name in names]
        if len(selected) != len(names):
            raise DamagedContainerError(f"a row group has no column {column}")
        # A read of a remote file costs a request, so there the footer is believed where it says that all is small.
        is_small = max((chunk.uncompressed_bytes for chunk in selected), default=0) <= MOST_PAGE_BYTES
        is_checked = _version_of(self._raw) is not None or not is_small
        # Around the buffer, which a few bytes of a page's beginning would fill with the page.
        headers = self._open() if is_checked else None
        self._pages = [_Pages(getattr(headers, "raw", headers), chunk) for chunk in selected if headers is not None]
        self._batches = self._file.iter_batches(batch_size=1, row_groups=[group], columns=names, use_threads=False)

    def close(self) -> None:
        """Close the file."""
        self._batches.close()
        self._close_files()

    def read(self, row: int, max_bytes: int | None) -> RowContent:
        """Read a row at or behind `next`; rows in between are passed.

        Raises:
            ImageError: it is too large, or not there.
            _ReplacedError: the file is another one by now.
        """
        with self._replacement_noticed(), _damage_named():
            for pages in self._pages:
                pages.check(row - self.first, max_bytes)
            batch = None
            while self.next <= row:
                batch = next(self._batches, None)
                if batch is None:
                    raise ImageError("unreadable", "the Parquet file is damaged: it holds fewer rows than it says")
                self.next += batch.num_rows
            if batch is None or self.next != row + 1:
                raise ImageError("unreadable", "the Parquet file is damaged: its row groups overlap")
            payload, path = (
                follow(batch, batch.num_rows - 1, self._parts[name]) if name in self._parts else None
                for name in ("bytes", "path")
            )
            return RowContent(_payload(payload, max_bytes), text_of(path) or None, self._layout.etag)

    @contextmanager
    def _replacement_noticed(self) -> Iterator[None]:
        try:
            yield
        except IncompleteReadError as error:
            raise _ReplacedError from error
        except OSError as error:
            translated = storage_error(error, self._uri, "read", is_local=is_local(self._uri))
            raise translated or error from error
        finally:
            # What a local file that was written to meanwhile gave is of two versions, be it damage or an image.
            now = _version_of(self._raw)
            if now is not None and now != self._layout.etag:
                raise _ReplacedError


class _Pages:
    """What a column's pages take, as far as they were looked at."""

    def __init__(self, headers: IO[bytes], chunk: Chunk) -> None:
        self._pages = read_pages(headers, chunk.start, chunk.length)
        self._rows = 0
        self._largest = 0
        self._last: Page | None = None
        self._dictionary: Page | None = None

    def check(self, row: int, max_bytes: int | None) -> None:
        """Refuse a row, counted from the group's first one, that lies in too large a page or behind one.

        Raises:
            ImageError: so it does.
        """
        most = MOST_PAGE_BYTES if max_bytes is None else max(MOST_PAGE_BYTES, max_bytes)
        while self._rows <= row and (page := next(self._pages, None)) is not None:
            if self._last is not None:
                self._largest = max(self._largest, self._last.bytes)
            if page.is_dictionary:
                self._dictionary = page
                self._largest = max(self._largest, page.bytes)
            else:
                self._rows += page.values
                self._last = page
        for page in (self._dictionary, self._last):
            if page is not None and page.values == 1 and max_bytes is not None:
                size = page.bytes - _PAGE_OVERHEAD_BYTES
                # A dictionary's only value is that of every row that is not null.
                if size > max_bytes:
                    raise ImageError(
                        "too_large", f"some {size} bytes encoded, more than images.max_bytes = {max_bytes}"
                    )
        largest = max(self._largest, self._last.bytes if self._last else 0)
        if largest > most:
            raise ImageError(
                "too_large",
                f"it lies in or behind a Parquet page of {largest} bytes, and the limit is {most}; write the file "
                "with smaller row groups, or raise images.max_bytes",
            )


def _version_of(raw: IO[bytes]) -> str | None:
    """The version of an open local file as it is now; None for anything else."""
    with suppress(io.UnsupportedOperation, AttributeError):
        return local_files.etag_of(os.fstat(raw.fileno()))
    return None


def _payload(scalar: pa.Scalar | None, max_bytes: int | None) -> bytes | None:
    if scalar is None:
        return None
    buffer = scalar.as_buffer()
    if max_bytes is not None and buffer.size > max_bytes:
        raise ImageError("too_large", f"{buffer.size} bytes encoded, more than images.max_bytes = {max_bytes}")
    return bytes(buffer.to_pybytes())


class ParquetRows:
    """Reads rows of Parquet files for a process's threads, each file forwards.

    The images of a shard follow one another in the file, so a reader that is open at one row goes on to the next.
    Readers stay open for the next shard, which lies behind. Three are kept: a worker does two shards at a time.
    """

    def __init__(self, kept: int = 3) -> None:
        self._kept = kept
        # The one that was used last comes last.
        self._readers: OrderedDict[tuple[tuple[str, str | None], int, str, int], _Rows] = OrderedDict()
        self._layouts: OrderedDict[tuple[str, str | None], _Layout] = OrderedDict()
        self._opened = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open; reading on opens it again."""
        with self._lock:
            while self._readers:
                self._readers.popitem()[1].close()

    def read(
        self,
        uri: str,
        row: int,
        column: str,
        storage: Storage,
        *,
        etag: str | None = None,
        max_bytes: int | None = None,
    ) -> RowContent:
        """Read what a row holds of its image.

        Args:
            column: the dotted path of the column with the bytes (beside which a struct may hold a `path`), or
                of a struct's `path` that has none.
            etag: the version that was listed; when the file is another one by now, the row of that is read.
            max_bytes: refuse a larger image, before it is decompressed where its size is known.

        Raises:
            ImageError: the row is not there, or too large, or the file is damaged.
            StorageError: the file cannot be read.
        """
        # One lock for all: a file is read forwards, by one thread at a time.
        with self._lock:
            for _ in range(_LOOKS):
                try:
                    return self._read((uri, etag), row, column, storage, max_bytes)
                except _ReplacedError:
                    self._forget((uri, etag))
                except DamagedContainerError as error:
                    self._forget((uri, etag))
                    raise ImageError("unreadable", f"the Parquet file cannot be read: {error}") from error
                except PastEndError as error:
                    self._forget((uri, etag))
                    raise ImageError("unreadable", f"the Parquet file cannot be read: {error}") from error
        raise IncompleteReadError(f"{uri} is being written to while it is read.")

    def _read(
        self, listed: tuple[str, str | None], row: int, column: str, storage: Storage, max_bytes: int | None
    ) -> RowContent:
        layout = self._layouts.get(listed)
        if layout is None:
            layout = self._layouts[listed] = _read_layout(listed[0], storage)
            if len(self._layouts) > 64:
                self._layouts.popitem(last=False)
        group = _index_of(row, layout.starts)
        key = self._find_reader(listed, group, column, row)
        if key is None:
            while len(self._readers) >= self._kept:
                self._readers.popitem(last=False)[1].close()
            self._opened += 1
            key = (listed, group, column, self._opened)
            self._readers[key] = _Rows(listed[0], storage, layout, group, column)
        self._readers.move_to_end(key)
        reader = self._readers[key]
        is_sound = False
        try:
            content = reader.read(row, max_bytes)
            is_sound = True
        except ImageError as error:
            is_sound = error.status == "too_large"
            raise
        finally:
            if not is_sound or reader.next >= reader.end:
                self._readers.pop(key).close()
        return content

    def _find_reader(
        self, listed: tuple[str, str | None], group: int, column: str, row: int
    ) -> "tuple[tuple[str, str | None], int, str, int] | None":
        before = [
            key for key, reader in self._readers.items() if key[:3] == (listed, group, column) and reader.next <= row
        ]
        near = [key for key in before if row - self._readers[key].next <= _NEAR_ROWS]
        if near:
            return max(near, key=lambda key: self._readers[key].next)
        # Far behind the others, as another shard's first row is: with a reader of its own while there is one to spare.
        return before[0] if before and len(self._readers) >= self._kept else None

    def _forget(self, listed: tuple[str, str | None]) -> None:
        self._layouts.pop(listed, None)
        for key in [key for key in self._readers if key[0] == listed]:
            self._readers.pop(key).close()


def _read_layout(uri: str, storage: Storage) -> _Layout:
    with _open(uri, storage) as (file, now):
        metadata = file.metadata
    with storage.reading_version(uri) as (raw, again):
        if again.etag != now.etag:
            raise _ReplacedError
        # Around the buffer: a footer is read once.
        chunks = read_chunks(getattr(raw, "raw", raw))
    if len(chunks) != metadata.num_row_groups:
        raise DamagedContainerError("its footer makes no sense")
    return _Layout(now.etag, metadata, chunks, _row_group_starts(metadata))


def _index_of(row: int, starts: list[int]) -> int:
    if not 0 <= row < starts[-1]:
        raise ImageError("unreadable", f"the Parquet file has {starts[-1]} rows now, none of number {row}")
    return bisect_right(starts, row) - 1


def _row_group_starts(metadata: pq.FileMetaData) -> list[int]:
    """Return each row group's first row, and at the end the number of rows."""
    starts = [0]
    for index in range(metadata.num_row_groups):
        starts.append(starts[-1] + max(0, metadata.row_group(index).num_rows))
    return starts


@contextmanager
def _open(uri: str, storage: Storage) -> Iterator[tuple[pq.ParquetFile, ObjectInfo]]:
    # Without a buffer, a column of a row group is read whole, however large it is.
    with (
        storage.reading_version(uri) as (raw, listed),
        _damage_named(),
        pq.ParquetFile(raw, buffer_size=_BUFFER_BYTES) as file,
    ):
        yield file, listed


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise DamagedContainerError(message_of(error)) from error
    except UnicodeDecodeError as error:
        # pyarrow's, for the name of a column.
        raise DamagedContainerError("a column's name is no UTF-8") from error
    except OSError as error:
        # Arrow reports a damaged file as a bare OSError without errno; a failure of storage has one, or is a subclass.
        if type(error) is OSError and error.errno is None:
            raise DamagedContainerError(message_of(error)) from error
        raise
