"""Parquet shards that hold encoded images (Hugging Face style and plain), and Parquet listings of URIs."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ImageError
from pipeline.listing_files import URI_COLUMNS
from pipeline.storage import Storage
from pipeline.stored import Fetched, Listed
from pipeline.tar_files import DamagedContainerError

_IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "img", "content", "data")
_BATCH_ROWS = 4096


def find_image_column(schema: pa.Schema) -> str | None:
    """Return the dotted path of the column that holds encoded images, None when there is none.

    A struct's `bytes` (Hugging Face) or a binary column counts; well-known names go first, then the only
    candidate.
    """
    candidates: dict[str, str] = {}
    for field in schema:
        if _is_binary(field.type):
            candidates[field.name] = field.name
        elif pa.types.is_struct(field.type):
            index = field.type.get_field_index("bytes")
            if index >= 0 and _is_binary(field.type.field(index).type):
                candidates[field.name] = f"{field.name}.bytes"
    for name in _IMAGE_COLUMNS:
        if name in candidates:
            return candidates[name]
    return next(iter(candidates.values())) if len(candidates) == 1 else None


def find_uri_column(schema: pa.Schema) -> str | None:
    """Return the text column that names images, None when there is none."""
    texts = [field.name for field in schema if _is_text(field.type)]
    return next((name for name in URI_COLUMNS if name in texts), None)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def inspect_parquet(uri: str, storage: Storage) -> tuple[pa.Schema, int]:
    """Read a file's schema and number of rows, not its rows.

    Raises:
        DamagedContainerError: it is no whole Parquet file.
    """
    with _open(uri, storage) as (file, _):
        return file.schema_arrow, file.metadata.num_rows


def read_uris(uri: str, column: str, storage: Storage) -> Iterator[str]:
    """Read a column of URIs, in order, nulls and empty ones left out."""
    with _open(uri, storage) as (file, _):
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[column]):
            for entry in batch.column(0).to_pylist():
                if entry:
                    yield entry


@dataclass(frozen=True)
class _Groups:
    """A version of a file: each row group's first row, and at the end the number of rows."""

    etag: str | None
    starts: list[int]


class RowGroups:
    """The image bytes of the row groups read last, shared by a process's reading threads.

    The images of a shard follow one another in the file, so a row group is fetched once and then serves
    hundreds of reads. Two are kept, because reading runs ahead across the border of two groups.
    """

    def __init__(self, kept: int = 2) -> None:
        self._kept = kept
        self._columns: OrderedDict[tuple[str, str | None, int, str], pa.ChunkedArray] = OrderedDict()
        self._files: OrderedDict[tuple[str, str | None], _Groups] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, uri: str, row: int, column: str, storage: Storage, *, etag: str | None = None) -> Fetched:
        """Return the encoded image in a row.

        Args:
            etag: the version that was listed; when the file is another one by now, the row of that is read.

        Raises:
            ImageError: the row is not there, holds null, or the file is damaged.
            StorageError: the file cannot be read.
        """
        # One lock for all: a second thread that wants the group being fetched must wait for it anyway.
        with self._lock:
            try:
                array, first, version = self._group((uri, etag), row, column, storage)
            except DamagedContainerError as error:
                raise ImageError("unreadable", f"the Parquet file cannot be read: {error}") from error
        if not 0 <= row - first < len(array):
            raise ImageError("unreadable", "the Parquet file is damaged: it holds fewer rows than it says")
        value = array[row - first].as_py()
        if value is None:
            raise ImageError("unreadable", "the row holds no image bytes (null)")
        return Fetched(value, version)

    def _group(
        self, listed: tuple[str, str | None], row: int, column: str, storage: Storage
    ) -> tuple[pa.ChunkedArray, int, str | None]:
        groups = self._files.get(listed)
        if groups is not None:
            key = (listed[0], groups.etag, _index_of(row, groups.starts), column)
            if key in self._columns:
                self._columns.move_to_end(key)
                return self._columns[key], groups.starts[key[2]], groups.etag
        _shrink(self._columns, self._kept - 1)
        with _open(listed[0], storage) as (file, now):
            # The file may have been replaced since its last row group was read.
            groups = self._files[listed] = _Groups(now.etag, _row_group_starts(file.metadata))
            index = _index_of(row, groups.starts)
            array = _leaf(file.read_row_group(index, columns=[column]), column)
        _shrink(self._files, 64)
        self._columns[listed[0], groups.etag, index, column] = array
        return array, groups.starts[index], groups.etag


def _index_of(row: int, starts: list[int]) -> int:
    if not 0 <= row < starts[-1]:
        raise ImageError("unreadable", f"the Parquet file has {starts[-1]} rows now, none of number {row}")
    return bisect_right(starts, row) - 1


def _row_group_starts(metadata: pq.FileMetaData) -> list[int]:
    """Return each row group's first row, and at the end the number of rows."""
    starts = [0]
    for index in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(index).num_rows)
    return starts


def _leaf(table: pa.Table, column: str) -> pa.ChunkedArray:
    """Follow a dotted path into a struct; a null struct gives a null leaf."""
    if column in table.column_names:
        return table.column(column)
    outer, _, inner = column.rpartition(".")
    if outer not in table.column_names:
        raise DamagedContainerError(f"it has no column {column} any more")
    return table.select([outer]).flatten().column(f"{outer}.{inner}")


def _shrink(cache: OrderedDict[Any, Any], size: int) -> None:
    while len(cache) > size:
        cache.popitem(last=False)


@contextmanager
def _open(uri: str, storage: Storage) -> Iterator[tuple[pq.ParquetFile, Listed]]:
    with storage.reading_version(uri) as (raw, listed):
        try:
            with pq.ParquetFile(raw, pre_buffer=True) as file:
                yield file, listed
        except pa.ArrowException as error:
            raise DamagedContainerError(" ".join(str(error).split())) from error
        except OSError as error:
            # Arrow reports a damaged file as a bare OSError without errno; storage trouble has one, or a
            # subclass.
            if type(error) is OSError and error.errno is None:
                raise DamagedContainerError(" ".join(str(error).split())) from error
            raise
