"""Reads the Parquet parts of tables and manifests; a damaged part is an error that names the file."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotFoundError
from pipeline.storage.damage import damaged
from pipeline.storage.storage import Storage
from pipeline.text import message_of

NOT_PARQUET = "it is not a valid Parquet file"


@contextmanager
def parquet_errors(uri: str) -> Iterator[None]:
    """Translate Arrow's errors inside the block into errors that name the file.

    Raises:
        DamagedFileError: the file is not a valid Parquet file.
        NotFoundError: the file does not exist.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri} does not exist.") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(uri, f"{NOT_PARQUET} ({_short(error)})") from error


@contextmanager
def open_part(storage: Storage, uri: str, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    """Open a part for reading in pieces.

    Raises:
        DamagedFileError: it is not a valid Parquet file, or not of the schema; also raised while it is read.
        NotFoundError: it does not exist.
        StorageError: storage failed.
    """
    with parquet_errors(uri), storage.open(uri) as file:
        part = pq.ParquetFile(file, page_checksum_verification=True)
        check_columns(uri, part.schema_arrow, schema)
        yield part


def read_part(storage: Storage, uri: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part with one request; errors as for `open_part`.

    Args:
        columns: names; None for all columns. Those that the part lacks are ignored.
    """
    payload = storage.read(uri)
    with parquet_errors(uri):
        # Not `read_table`, which would take a column `run` from the folder's name.
        part = pq.ParquetFile(io.BytesIO(payload), page_checksum_verification=True)
        check_columns(uri, part.schema_arrow, schema)
        return part.read(columns=None if columns is None else list(columns))


def check_columns(uri: str, found: pa.Schema, schema: pa.Schema) -> None:
    """Check the columns of a part; nullable columns may be absent, because older releases did not write all of them.

    Raises:
        DamagedFileError: a column is absent or of another type.
    """
    for field in schema:
        index = found.get_field_index(field.name)
        if index < 0 and not field.nullable:
            raise damaged(uri, f"it has no column {field.name}, so htc did not write it")
        if index >= 0 and found.field(index).type != field.type:
            kind = found.field(index).type
            raise damaged(uri, f"its column {field.name} is {kind} instead of {field.type}, so htc did not write it")


def _short(error: Exception) -> str:
    """Return the first line of an Arrow error, which may contain a stack trace; at most 160 characters."""
    return message_of(str(error).split("\n")[0], max_chars=160)
