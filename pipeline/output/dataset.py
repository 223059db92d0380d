"""Parquet parts in any store as an Arrow dataset that DuckDB can query."""

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

# How many parts, or row groups of compacted parts, are in memory at once.
READ_THREADS = 8


class CheckedDataset(pads.FileSystemDataset):  # type: ignore[misc]  # pyarrow has no types
    """A dataset over local files that checks each file before it is scanned.

    Arrow reads a missing column as null, so a foreign file would count as empty rows. The footers are read once and
    kept for the scan.
    """

    def scanner(self, columns: list[str] | None = None, filter: pads.Expression | None = None) -> pads.Scanner:
        """Begin a scan, as `pyarrow.dataset.Dataset.scanner` does.

        Raises:
            DamagedFileError: a file is damaged, missing, or not a part of the table.
        """
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for _ in pool.map(partial(_check, self.schema), self.get_fragments(filter=filter)):
                pass
        return super().scanner(columns=columns, filter=filter)


class StoredDataset(pads.FileSystemDataset):  # type: ignore[misc]  # pyarrow has no types
    """A dataset over `open_files` whose scans read part by part, in Python threads.

    Arrow's own scanner holds the GIL while it waits for its threads, and these need the GIL to read a part: a query of
    several tables may then deadlock.
    """

    def scanner(self, columns: list[str] | None = None, filter: pads.Expression | None = None) -> "_Scanner":
        """Begin a scan, as `pyarrow.dataset.Dataset.scanner` does; parts that the filter excludes are not read."""
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
        # `to_table` releases the GIL while it waits.
        return fragment.to_table(schema=self._dataset.schema, columns=self._columns, filter=self._wanted)


def _check(schema: pa.Schema, fragment: pads.Fragment) -> None:
    """Check that a file is a part of the table; `schema`: with the column `run`, which the files do not have."""
    with parquet_errors(fragment.path):
        found = fragment.physical_schema
    check_columns(fragment.path, found, schema.remove(schema.get_field_index("run")))


class _StorageFiles:
    """The part of an fsspec file system that pyarrow needs to read a file, on top of `Storage`."""

    protocol = "htc-storage"

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def isfile(self, path: str) -> bool:
        """Return True: the path was just listed, and a check would cost a request per part."""
        return bool(path)

    def open(self, path: str, mode: str) -> IO[bytes]:
        """Open a part for reading."""
        if mode != "rb":
            raise PermissionError(f"{path} is opened for reading only")
        return self._storage.open(path)


def open_files(uri: str, storage: Storage) -> pafs.FileSystem:
    """Return the Arrow file system for the parts of an output."""
    if is_local(uri):
        return pafs.LocalFileSystem()
    return pafs.PyFileSystem(pafs.FSSpecHandler(_StorageFiles(storage)))
