"""Reads the image rows of one row group of a Parquet file, forwards, one row at a time.

A row group may hold gigabytes of images, so rows are streamed, and only the page that a row lies in is in memory. How
large that page is, its header says before it is decompressed (`pipeline.inputs.containers.parquet_pages`).

An example: a row group holds rows 200 to 299 and lies in three data pages of 40, 40 and 20 rows. `read(205)` checks the
headers up to the first page, reads the rows 200 to 205 and returns the last of them. `read(250)` then checks the second
page's header and reads the rows 206 to 250 from the same stream. `read(204)` is not possible: a reader only goes
forwards, and `ParquetRows` opens another one.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DamagedContainerError, ImageError, IncompleteReadError
from pipeline.inputs.containers.parquet_file import BUFFER_BYTES, damage_translated
from pipeline.inputs.containers.parquet_pages import Chunk, Page, read_pages
from pipeline.inputs.containers.parquet_schema import column_parts, follow, text_of
from pipeline.storage import local as local_files
from pipeline.storage.storage import Storage
from pipeline.storage.translate import storage_error
from pipeline.storage.uris import is_local

MOST_PAGE_BYTES = 256 * 2**20
"""A page larger than this, and than images.max_bytes, is not decompressed.

Writers of Hugging Face data sets put a row group of 100 images into one page before they notice that it is too large
for a dictionary.
"""
# Beside a single value, a page holds its length and the levels that mark a null.
_PAGE_OVERHEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class RowContent:
    """What a row holds of its image: the encoded bytes, or the name of a file; each None if absent.

    etag: the version of the Parquet file.
    """

    payload: bytes | None
    path: str | None
    etag: str | None


@dataclass(frozen=True)
class FileLayout:
    """A version of a Parquet file.

    metadata: its footer. chunks: for each row group, the column chunks by dotted path.
    starts: the first row of each row group, and at the end the number of rows.
    """

    etag: str | None
    metadata: pq.FileMetaData
    chunks: list[dict[str, Chunk]]
    starts: list[int]


class FileReplacedError(Exception):
    """The file is not the version that was opened."""


class RowGroupReader:
    """Reads one row group from its beginning to its end.

    Attributes:
        next: the row that the stream is at. end: the row after the last one.
    """

    def __init__(
        self, uri: str, storage: Storage, layout: FileLayout, group: int, column: str, *, most_page_bytes: int
    ) -> None:
        self.first = layout.starts[group]
        self.end = layout.starts[group + 1]
        self.next = self.first
        self._uri = uri
        self._layout = layout
        self._storage = storage
        self._most_page_bytes = most_page_bytes
        # Page headers are read through a file of their own: seeking in the stream's file would discard its buffer.
        self._opened: list[IO[bytes]] = []
        try:
            self._raw = self._open()
            with damage_translated():
                self._file = pq.ParquetFile(self._raw, metadata=layout.metadata, buffer_size=BUFFER_BYTES)
                self._parts = _find_parts(self._file.schema_arrow, column)
                self._start_stream(group, column)
        except BaseException:
            self._close_files()
            raise

    def _open(self) -> IO[bytes]:
        raw = self._storage.open(self._uri)
        self._opened.append(raw)
        if raw.info.etag != self._layout.etag:
            raise FileReplacedError
        return raw

    def _close_files(self) -> None:
        for raw in self._opened:
            raw.close()

    def _start_stream(self, group: int, column: str) -> None:
        names = [".".join(each) for each in self._parts.values()]
        selected = [chunk for name, chunk in self._layout.chunks[group].items() if name in names]
        if len(selected) != len(names):
            raise DamagedContainerError(f"a row group has no column {column}")
        # Headers of a remote file cost requests. They are skipped where the footer says that the whole chunk is small.
        is_small = max((chunk.uncompressed_bytes for chunk in selected), default=0) <= self._most_page_bytes
        is_checked = _version_of(self._raw) is not None or not is_small
        # Unbuffered (`raw`): a header has about thirty bytes, and a buffer would read the page after it.
        headers = self._open() if is_checked else None
        self._pages = [_PageLimit(getattr(headers, "raw", headers), chunk) for chunk in selected if headers is not None]
        self._batches = self._file.iter_batches(batch_size=1, row_groups=[group], columns=names, use_threads=False)

    def close(self) -> None:
        """Close the file."""
        self._batches.close()
        self._close_files()

    def read(self, row: int, max_bytes: int | None) -> RowContent:
        """Read a row at or after `next`; the rows in between are skipped.

        Raises:
            ImageError: the row is too large, or missing.
            FileReplacedError: the file was replaced since it was opened.
        """
        with self._replacement_noticed(), damage_translated():
            for pages in self._pages:
                pages.check(row - self.first, max_bytes, self._most_page_bytes)
            batch = self._advance(row)
            payload, path = (
                follow(batch, batch.num_rows - 1, self._parts[name]) if name in self._parts else None
                for name in ("bytes", "path")
            )
            return RowContent(_payload(payload, max_bytes), text_of(path) or None, self._layout.etag)

    def _advance(self, row: int) -> pa.RecordBatch:
        """Stream up to a row and return the batch that ends with it."""
        batch = None
        while self.next <= row:
            batch = next(self._batches, None)
            if batch is None:
                raise ImageError("unreadable", "the Parquet file is damaged: it holds fewer rows than it says")
            self.next += batch.num_rows
        if batch is None or self.next != row + 1:
            raise ImageError("unreadable", "the Parquet file is damaged: its row groups overlap")
        return batch

    @contextmanager
    def _replacement_noticed(self) -> Iterator[None]:
        try:
            yield
        except IncompleteReadError as error:
            raise FileReplacedError from error
        except OSError as error:
            translated = storage_error(error, self._uri, "read", is_local=is_local(self._uri))
            raise translated or error from error
        finally:
            # If a local file was written to meanwhile, the result mixes two versions, be it an image or an error.
            now = _version_of(self._raw)
            if now is not None and now != self._layout.etag:
                raise FileReplacedError


def _find_parts(schema: pa.Schema, column: str) -> dict[str, tuple[str, ...]]:
    """Find the nested fields of a row's image: its "bytes", and the "path" that a struct may hold beside them."""
    parts = column_parts(schema, column)
    if parts is None:
        raise DamagedContainerError(f"it has no column {column} any more")
    found: dict[str, tuple[str, ...]] = {}
    if len(parts) == 1 or parts[-1] != "path":
        found["bytes"] = parts
    path = column_parts(schema, ".".join((*parts[:-1], "path"))) if len(parts) > 1 else None
    if path is not None:
        found["path"] = path
    return found


class _PageLimit:
    """Refuses rows in pages that are too large to decompress; reads the headers of a column chunk as far as needed."""

    def __init__(self, headers: IO[bytes], chunk: Chunk) -> None:
        self._pages = read_pages(headers, chunk.start, chunk.length)
        self._rows = 0
        self._largest = 0
        self._last: Page | None = None
        self._dictionary: Page | None = None

    def check(self, row: int, max_bytes: int | None, most_page_bytes: int) -> None:
        """Check the pages up to a row, counted from the first row of the group.

        Raises:
            ImageError: the row lies in, or after, a page that is too large.
        """
        most = most_page_bytes if max_bytes is None else max(most_page_bytes, max_bytes)
        self._read_headers(row)
        for page in (self._dictionary, self._last):
            # The only value of a dictionary is the value of every row that is not null.
            if page is not None and page.values == 1 and max_bytes is not None:
                size = page.bytes - _PAGE_OVERHEAD_BYTES
                if size > max_bytes:
                    raise ImageError(
                        "too_large", f"about {size} bytes encoded, more than images.max_bytes = {max_bytes}"
                    )
        largest = max(self._largest, self._last.bytes if self._last else 0)
        if largest > most:
            raise ImageError(
                "too_large",
                f"it lies in or after a Parquet page of {largest} bytes, and the limit is {most}; write the file "
                "with smaller row groups, or raise images.max_bytes",
            )

    def _read_headers(self, row: int) -> None:
        while self._rows <= row and (page := next(self._pages, None)) is not None:
            if self._last is not None:
                self._largest = max(self._largest, self._last.bytes)
            if page.is_dictionary:
                self._dictionary = page
                self._largest = max(self._largest, page.bytes)
            else:
                self._rows += page.values
                self._last = page


def _version_of(raw: IO[bytes]) -> str | None:
    """Return the current version of an open local file; None for anything else."""
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
