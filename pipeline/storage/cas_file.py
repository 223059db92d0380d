"""A file with compare-and-swap: created only where there is none, replaced only while its version is unchanged.

S3, Google Cloud Storage and Azure compare versions themselves (`conditional_put`). A local folder is locked for the
comparison and the write. Any other store is compared first and written then, which is not atomic: two drivers may both
succeed, and the one that was overwritten finds out at its next read.
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
        """Read the file; None when there is none."""
        try:
            # The version first: if the file is replaced in between, `replace` fails.
            version = self._version() if self._is_conditional else None
            payload = self._storage.read(self.uri)
        except NotFoundError:
            return None
        return Versioned(payload, version or payload.decode("latin-1"))

    def create(self, payload: bytes) -> str | None:
        """Create the file and return its version; None when it exists already."""
        if self._is_conditional:
            return self._put(payload, None)
        with self._locked():
            if self._storage.exists(self.uri):
                return None
            return self._write(payload)

    def replace(self, payload: bytes, version: str) -> str | None:
        """Replace the file if it still has this version, and return the new version; None if it has not."""
        if self._is_conditional:
            return self._put(payload, version)
        with self._locked():
            current = self.read()
            if current is None or current.version != version:
                return None
            return self._write(payload)

    def delete(self) -> None:
        """Delete the file; no error when there is none."""
        self._storage.delete(self.uri)

    def _write(self, payload: bytes) -> str:
        self._storage.write(self.uri, payload)
        return payload.decode("latin-1")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._is_local:
            yield
            return
        folder = Path(local_path(self.uri)).parent
        # The folder itself is locked: a lock file would be left behind, or be removed while another process holds it.
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
    """Create a folder and lock it until the descriptor is closed; the lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    # Some network file systems cannot lock folders; then it is compared first, as on other stores.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor
