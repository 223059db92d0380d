"""Parquet parts in any store as an Arrow dataset that SQL can read."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import IO

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from pipeline.concurrency import read_ahead
from pipeline.output.part_files import check_columns, parquet_errors
from pipeline.output.parts import parse_part
from pipeline.storage.storage import Storage
from pipeline.storage.uris import base_name, is_local

# Pieces of wide tables lie in memory while they are waited for.
READ_THREADS = 8


class CheckedDataset(pads.FileSystemDataset):  # type: ignore[misc]  # pyarrow has no types
    """A dataset over local files that makes sure of each before it is scanned.

    Arrow takes a column that a file lacks for null: a foreign file would count as rows of nothing. The footers are
    read once, and kept for the scan.
    """

    def scanner(self, columns: list[str] | None = None, filter: pads.Expression | None = None) -> pads.Scanner:
        """Begin a scan, as `pyarrow.dataset.Dataset.scanner` does.

        Raises:
            DamagedFileError: a file is damaged, missing, or not one of the table.
        """
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for _ in pool.map(partial(_check, self.schema), self.get_fragments(filter=filter)):
                pass
        return super().scanner(columns=columns, filter=filter)


class StoredDataset(pads.FileSystemDataset):  # type: ignore[misc]  # pyarrow has no types
    """A dataset over `open_files` whose scans read part by part, in our own threads.

    Arrow's own scanner waits for its threads without letting go of Python, and those need Python to read a part: now
    and then a query of several tables would hang for ever.
    """

    def scanner(self, columns: list[str] | None = None, filter: pads.Expression | None = None) -> "_Scanner":
        """Begin a scan, as `pyarrow.dataset.Dataset.scanner` does; runs and rows that do not pass are not read."""
        return _Scanner(self, columns if columns is not None else self.schema.names, filter)


class _Scanner:
    """One pass over a dataset."""

    def __init__(self, dataset: StoredDataset, columns: list[str], wanted: pads.Expression | None) -> None:
        self._dataset = dataset
        self._columns = columns
        self._wanted = wanted

    def to_reader(self) -> pa.RecordBatchReader:
        schema = pa.schema([self._dataset.schema.field(name) for name in self._columns])
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema))

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for table in read_ahead(READ_THREADS, self._read, self._pieces()):
            yield from table.cast(schema).to_batches()

    def _pieces(self) -> Iterator[pads.Fragment]:
        for fragment in self._dataset.get_fragments(filter=self._wanted):
            part = parse_part(base_name(fragment.path))
            if part is not None and part.is_compacted:
                yield from fragment.split_by_row_group(schema=self._dataset.schema, filter=self._wanted)
            else:
                yield fragment

    def _read(self, fragment: pads.Fragment) -> pa.Table:
        _check(self._dataset.schema, fragment)
        # A whole table is waited for with Python let go.
        return fragment.to_table(schema=self._dataset.schema, columns=self._columns, filter=self._wanted)


def _check(schema: pa.Schema, fragment: pads.Fragment) -> None:
    """Make sure that a file is one of the table; `schema`: with `run` at the end, which no file has."""
    with parquet_errors(fragment.path):
        found = fragment.physical_schema
    check_columns(fragment.path, found, schema.remove(schema.get_field_index("run")))


class _StorageFiles:
    """What pyarrow asks of an fsspec file system to read a file, answered by our own storage door."""

    protocol = "htc-storage"

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def isfile(self, path: str) -> bool:
        """Say yes: the listing has just named the path, and asking costs a request per part."""
        return bool(path)

    def open(self, path: str, mode: str) -> IO[bytes]:
        """Open a part for reading."""
        if mode != "rb":
            raise PermissionError(f"{path} is only read here")
        return self._storage.open_input(path)


def open_files(uri: str, storage: Storage) -> pafs.FileSystem:
    """Return the file system on which Arrow finds the parts of the output at a uri."""
    if is_local(uri):
        return pafs.LocalFileSystem()
    return pafs.PyFileSystem(pafs.FSSpecHandler(_StorageFiles(storage)))
