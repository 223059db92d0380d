"""Parquet parts in any store as files for Arrow."""

from typing import IO

import pyarrow.fs as pafs

from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local


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
