"""Opens Parquet files of the input: their schema, and their columns of URIs."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DamagedContainerError
from pipeline.inputs.containers.parquet_schema import column_parts, follow, text_of
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage
from pipeline.text import message_of

BUFFER_BYTES = 4 * 2**20
"""Bytes per read of the file; a larger page is read as a whole."""
_BATCH_ROWS = 4096


@contextmanager
def open_parquet(uri: str, storage: Storage) -> Iterator[tuple[pq.ParquetFile, ObjectInfo]]:
    """Open a Parquet file, and describe the version that is opened.

    Raises:
        DamagedContainerError: it is not a valid Parquet file.
        StorageError: it cannot be read.
    """
    # Without a buffer, pyarrow reads a column of a row group as a whole, however large it is.
    with (
        storage.open(uri) as raw,
        damage_translated(),
        pq.ParquetFile(raw, buffer_size=BUFFER_BYTES) as file,
    ):
        yield file, raw.info


@contextmanager
def damage_translated() -> Iterator[None]:
    """Translate what pyarrow raises on a damaged file into a DamagedContainerError."""
    try:
        yield
    except pa.ArrowException as error:
        raise DamagedContainerError(message_of(error)) from error
    except UnicodeDecodeError as error:
        # From pyarrow, for the name of a column.
        raise DamagedContainerError("a column's name is not UTF-8") from error
    except OSError as error:
        # Arrow reports a damaged file as a bare OSError without errno; a failure of storage has one, or is a subclass.
        if type(error) is OSError and error.errno is None:
            raise DamagedContainerError(message_of(error)) from error
        raise


def inspect_parquet(uri: str, storage: Storage) -> tuple[pa.Schema, int]:
    """Read a file's schema and number of rows from its footer.

    Raises:
        DamagedContainerError: it is not a valid Parquet file.
        StorageError: it cannot be read.
    """
    with open_parquet(uri, storage) as (file, _):
        # Field by field, inside this block: a name that cannot be decoded is damage.
        return pa.schema(list(file.schema_arrow), file.schema_arrow.metadata), file.metadata.num_rows


def read_uris(uri: str, column: str, storage: Storage) -> Iterator[str | None]:
    """Yield a column's URIs in the order of the rows, None for an empty one; reads no other column.

    Raises:
        DamagedContainerError: the file is damaged, or has no such column any more.
        StorageError: it cannot be read.
    """
    with open_parquet(uri, storage) as (file, _):
        parts = column_parts(file.schema_arrow, column)
        if parts is None:
            raise DamagedContainerError(f"it has no column {column} any more")
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[".".join(parts)], use_threads=False):
            for row in range(batch.num_rows):
                yield text_of(follow(batch, row, parts)) or None
