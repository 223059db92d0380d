"""The files of this machine as a store: the same verbs as `pipeline.storage.store` has for remote stores."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pipeline.storage import local as local_files
from pipeline.storage.local import OnLink
from pipeline.storage.objects import Kind, ObjectData, ObjectInfo
from pipeline.storage.range_file import StoredFile
from pipeline.storage.read import ReadRequest
from pipeline.storage.retry import retry_local
from pipeline.storage.translate import Verb, storage_error, translated_errors
from pipeline.storage.uris import join, local_path

T = TypeVar("T")


class LocalStore:
    """Files and folders by their paths, with or without `file://`."""

    def call(self, action: Callable[[], T], uri: str, verb: Verb) -> T:
        """Run an operation on a file: translate its errors, and retry transient ones."""
        return retry_local(lambda: translated_errors(action, uri, verb, is_local=True))

    def folder_uri(self, uri: str) -> str:
        """Return the prefix of the names listed below a folder."""
        return local_path(uri)

    def list_folder(self, uri: str, after: str, on_link: OnLink | None) -> Iterator[tuple[str, ObjectInfo]]:
        """List the files below a folder with their relative names; only names behind `after`, which is relative too."""
        root = local_path(uri).rstrip("/")
        local_files.check_listable(root or "/")
        try:
            for path, status in local_files.walk_files(root, join(root, after) if after else "", on_link):
                size, etag = (None, None) if status is None else (status.st_size, local_files.etag_of(status))
                yield path[len(root) + 1 :], ObjectInfo(path, size, etag)
        except OSError as error:
            raise _translated(error, str(error.filename or uri), "list") from error

    def list_names(self, uri: str, prefix: str) -> Iterator[str]:
        """List the names of the files right below a folder that begin with a prefix."""
        folder = local_path(uri).rstrip("/") or "/"
        try:
            yield from local_files.file_names(folder, prefix)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _translated(error, str(error.filename or uri), "list") from error

    def written_times(self, uri: str) -> dict[str, datetime]:
        """Return when the files right below a folder were written last, UTC, by their names."""
        folder = local_path(uri).rstrip("/") or "/"
        times: dict[str, datetime] = {}
        for name in self.list_names(uri, ""):
            # Files may be removed while they are listed.
            with contextlib.suppress(FileNotFoundError):
                times[name] = datetime.fromtimestamp(Path(folder, name).stat().st_mtime, UTC)
        return times

    def kind(self, uri: str) -> Kind:
        """Return whether there is a file of this name, a folder, or neither."""
        path = Path(local_path(uri))
        try:
            if path.is_dir():
                return "folder"
            return "file" if path.exists() or path.is_symlink() else "absent"
        except OSError as error:
            raise _translated(error, uri, "read") from error

    def stat(self, uri: str) -> ObjectInfo:
        """Return a file's size and version."""
        path = local_path(uri)
        return _info(path, self.call(Path(path).stat, uri, "read"))

    def fetch(self, request: ReadRequest) -> ObjectData:
        """Read a file or a part of it."""
        path = local_path(request.uri)
        return self.call(
            lambda: local_files.read_file(path, request.offset, request.length, request.max_bytes), request.uri, "read"
        )

    def open(self, uri: str) -> StoredFile:
        """Open a file for reading and seeking."""
        path = local_path(uri)
        raw = self.call(lambda: io.FileIO(path), uri, "read")
        status = os.fstat(raw.fileno())
        return StoredFile(raw, _info(path, status), max(status.st_blksize, io.DEFAULT_BUFFER_SIZE))

    def write(self, uri: str, payload: bytes) -> None:
        """Write a file atomically."""
        self.call(lambda: local_files.write_file(local_path(uri), payload), uri, "write")

    def delete(self, uri: str) -> None:
        """Delete a file; no error when there is none."""
        self.call(lambda: Path(local_path(uri)).unlink(missing_ok=True), uri, "delete")


def _info(path: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(path, status.st_size, local_files.etag_of(status))


def _translated(error: OSError, uri: str, verb: Verb) -> BaseException:
    return storage_error(error, uri, verb, is_local=True) or error
