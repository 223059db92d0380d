"""Reading the Parquet parts of the tables: whole and of the expected columns, or an error that names the file."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotFoundError
from pipeline.storage.damage import damaged
from pipeline.storage.storage import Storage

NOT_PARQUET = "it is not a valid Parquet file"


@contextmanager
def parquet_errors(uri: str) -> Iterator[None]:
    """Turn what Arrow raises over a file's content into an error that names the file.

    Raises:
        DamagedFileError: the file is not a valid Parquet file.
        NotFoundError: it is gone.
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
        DamagedFileError: it is not a valid Parquet file, or not one of the schema; also while it is read.
        NotFoundError, StorageError: storage failed.
    """
    with parquet_errors(uri), storage.reading(uri) as file:
        part = pq.ParquetFile(file, page_checksum_verification=True)
        check_columns(uri, part.schema_arrow, schema)
        yield part


def read_part(storage: Storage, uri: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part with one request; the columns that it has of those asked for.

    Raises:
        As `open_part`.
    """
    payload = storage.read(uri)
    with parquet_errors(uri):
        # A file, not `read_table`, which would find a column `run` in the folder's name.
        part = pq.ParquetFile(io.BytesIO(payload), page_checksum_verification=True)
        check_columns(uri, part.schema_arrow, schema)
        return part.read(columns=None if columns is None else list(columns))


def check_columns(uri: str, found: pa.Schema, schema: pa.Schema) -> None:
    """Make sure that a file is a part of a table; columns that came later may be absent.

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
    """Return the first sentence of what Arrow says, which may quote the whole stack."""
    return " ".join(str(error).split("\n")[0].split()).rstrip(".")[:160]
