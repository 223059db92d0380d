"""Images in Parquet files (Hugging Face style and plain), read row by row with readers that stay open.

An example: a file has row groups of 100 rows, and two shards of 50 images are read at the same time, rows 100 to 149 by
one thread and rows 150 to 199 by another. Row 100 opens a reader of row group 1. Row 150 is 50 rows ahead of it, within
`_NEAR_ROWS`, so the second thread advances the same reader, which has then passed row 101. Row 101 opens a second
reader. From then on each thread finds a reader just before its next row, so that a page is decompressed at most twice
instead of once for each row.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from types import TracebackType
from typing import IO, NamedTuple, Self, cast

import pyarrow.parquet as pq

from pipeline.errors import DamagedContainerError, ImageError, IncompleteReadError, PastEndError
from pipeline.inputs.containers.parquet_file import open_parquet
from pipeline.inputs.containers.parquet_pages import read_chunks
from pipeline.inputs.containers.parquet_row_group import (
    MOST_PAGE_BYTES,
    FileLayout,
    FileReplacedError,
    RowContent,
    RowGroupReader,
)
from pipeline.storage.storage import Storage

# A reader at most this many rows before the wanted one is advanced to it, even if another reader could be opened.
_NEAR_ROWS = 64
# How often a file may be replaced between opening it and reading from it.
_ATTEMPTS = 3
_MOST_LAYOUTS = 64


class _Version(NamedTuple):
    """A Parquet file as it was listed."""

    uri: str
    etag: str | None


class _ReaderKey(NamedTuple):
    """A reader; `number` distinguishes readers of one row group."""

    version: _Version
    group: int
    column: str
    number: int


class ParquetRows:
    """Reads rows of Parquet files for a process's threads, each file forwards.

    The images of a shard follow one another in the file, so a reader that is open at one row continues with the next.
    Readers stay open for the next shard, which comes after it. Three are kept: a worker does two shards at a time.

    Attributes:
        opened: how many readers have been opened.
    """

    def __init__(self, kept: int = 3, *, most_page_bytes: int = MOST_PAGE_BYTES) -> None:
        """Open nothing yet.

        Args:
            kept: how many readers stay open.
            most_page_bytes: a page larger than this, and than `max_bytes`, is not decompressed.
        """
        self.opened = 0
        self._kept = kept
        self._most_page_bytes = most_page_bytes
        # The most recently used one is the last.
        self._readers: OrderedDict[_ReaderKey, RowGroupReader] = OrderedDict()
        self._layouts: OrderedDict[_Version, FileLayout] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def open_count(self) -> int:
        """How many readers are open."""
        return len(self._readers)

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
        """Close all readers; a later read opens new ones."""
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
            column: the dotted path of the column with the bytes (a struct may hold a `path` beside them), or of the
                `path` of a struct without bytes.
            etag: the version that was listed; if the file was replaced since, the row of the new one is read.
            max_bytes: refuse a larger image, before it is decompressed where its size is known.

        Raises:
            ImageError: the row is missing or too large, or the file is damaged.
            StorageError: the file cannot be read.
        """
        version = _Version(uri, etag)
        # One lock for all: a file is read forwards, by one thread at a time.
        with self._lock:
            for _ in range(_ATTEMPTS):
                try:
                    return self._read(version, row, column, storage, max_bytes)
                except FileReplacedError:
                    self._forget(version)
                except (DamagedContainerError, PastEndError) as error:
                    self._forget(version)
                    raise ImageError("unreadable", f"the Parquet file cannot be read: {error}") from error
        raise IncompleteReadError(f"{uri} is being written to while it is read.")

    def _read(self, version: _Version, row: int, column: str, storage: Storage, max_bytes: int | None) -> RowContent:
        layout = self._layout(version, storage)
        group = _row_group_of(row, layout.starts)
        key = self._find_reader(version, group, column, row)
        if key is None:
            while len(self._readers) >= self._kept:
                self._readers.popitem(last=False)[1].close()
            self.opened += 1
            key = _ReaderKey(version, group, column, self.opened)
            self._readers[key] = RowGroupReader(
                version.uri, storage, layout, group, column, most_page_bytes=self._most_page_bytes
            )
        self._readers.move_to_end(key)
        reader = self._readers[key]
        is_usable = False
        try:
            content = reader.read(row, max_bytes)
            is_usable = True
        except ImageError as error:
            is_usable = error.status == "too_large"
            raise
        finally:
            if not is_usable or reader.next >= reader.end:
                self._readers.pop(key).close()
        return content

    def _layout(self, version: _Version, storage: Storage) -> FileLayout:
        layout = self._layouts.get(version)
        if layout is None:
            layout = self._layouts[version] = _read_layout(version.uri, storage)
            if len(self._layouts) > _MOST_LAYOUTS:
                self._layouts.popitem(last=False)
        return layout

    def _find_reader(self, version: _Version, group: int, column: str, row: int) -> _ReaderKey | None:
        """Find an open reader that has not passed the row; None if a new one is better."""
        before = [
            key
            for key, reader in self._readers.items()
            if (key.version, key.group, key.column) == (version, group, column) and reader.next <= row
        ]
        near = [key for key in before if row - self._readers[key].next <= _NEAR_ROWS]
        if near:
            return max(near, key=lambda key: self._readers[key].next)
        # Far ahead of the readers, as the first row of another shard is: it gets its own reader while one is free.
        return before[0] if before and len(self._readers) >= self._kept else None

    def _forget(self, version: _Version) -> None:
        self._layouts.pop(version, None)
        for key in [key for key in self._readers if key.version == version]:
            self._readers.pop(key).close()


def _read_layout(uri: str, storage: Storage) -> FileLayout:
    with open_parquet(uri, storage) as (file, now):
        metadata = file.metadata
    with storage.open(uri) as raw:
        if raw.info.etag != now.etag:
            raise FileReplacedError
        # Unbuffered (`raw`): a footer is read once.
        chunks = read_chunks(cast("IO[bytes]", raw.raw))
    if len(chunks) != metadata.num_row_groups:
        raise DamagedContainerError("its footer is invalid")
    return FileLayout(now.etag, metadata, chunks, _row_group_starts(metadata))


def _row_group_of(row: int, starts: list[int]) -> int:
    if not 0 <= row < starts[-1]:
        raise ImageError("unreadable", f"the Parquet file has {starts[-1]} rows now, none of number {row}")
    return bisect_right(starts, row) - 1


def _row_group_starts(metadata: pq.FileMetaData) -> list[int]:
    """Return each row group's first row, and at the end the number of rows."""
    starts = [0]
    for index in range(metadata.num_row_groups):
        starts.append(starts[-1] + max(0, metadata.row_group(index).num_rows))
    return starts
