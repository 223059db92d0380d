"""A small file that drivers compete for: made only where there is none, replaced only while nobody else has.

S3, Google Cloud Storage and Azure do both by themselves (`conditional_put`). Local folders are locked while one looks
and writes. Any other store is looked at first and written then; two drivers may both win there in the same instant, and
the one that was overwritten finds out when it next looks.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import NotFoundError
from pipeline.storage.conditional_put import CONDITIONAL_SCHEMES, find_version, put_if
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, local_path, scheme_of


@dataclass(frozen=True)
class Versioned:
    """The file as it was read: its content, and the version that `replace` compares."""

    payload: bytes
    version: str


class CasFile:
    """One file in storage with compare-and-swap; every method raises StorageError when storage fails."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self.uri = uri
        self._storage = storage
        self._is_local = is_local(uri)
        self._scheme = scheme_of(uri)
        self._is_conditional = self._scheme in CONDITIONAL_SCHEMES

    def read(self) -> Versioned | None:
        """Read it; None when it is not there."""
        try:
            # The version first: if the file is replaced in between, `replace` will say so.
            version = self._version() if self._is_conditional else None
            payload = self._storage.read(self.uri)
        except NotFoundError:
            return None
        return Versioned(payload, version or payload.decode("latin-1"))

    def create(self, payload: bytes) -> str | None:
        """Make it, and return its version; None when it is there already."""
        if self._is_conditional:
            return self._put(payload, None)
        with self._guarded():
            if self._storage.exists(self.uri):
                return None
            return self._write(payload)

    def replace(self, payload: bytes, version: str) -> str | None:
        """Replace it while it is still of this version, and return the new one; None when it is not."""
        if self._is_conditional:
            return self._put(payload, version)
        with self._guarded():
            seen = self.read()
            if seen is None or seen.version != version:
                return None
            return self._write(payload)

    def delete(self) -> None:
        """Remove it; no error when it is gone."""
        self._storage.delete(self.uri)

    def _write(self, payload: bytes) -> str:
        self._storage.write(self.uri, payload)
        return payload.decode("latin-1")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        if not self._is_local:
            yield
            return
        folder = Path(local_path(self.uri)).parent
        # The folder itself is locked: a lock file would be left behind, or be removed under somebody's lock.
        descriptor = self._storage.call(lambda: _lock_folder(folder), str(folder), "write")
        try:
            yield
        finally:
            os.close(descriptor)

    def _version(self) -> str:
        client, path = self._storage.client(self.uri)
        return self._storage.call(lambda: find_version(client, path, self._scheme), self.uri, "read")

    def _put(self, payload: bytes, version: str | None) -> str | None:
        client, path = self._storage.client(self.uri)
        return self._storage.call(lambda: put_if(client, path, self._scheme, payload, version), self.uri, "write")


def _lock_folder(folder: Path) -> int:
    """Make a folder and lock it until the descriptor is closed; the lock of a process that dies is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    # Some network file systems lock no folders; then looking first must do, as on other stores.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor
