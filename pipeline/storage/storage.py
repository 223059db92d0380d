"""Storage: local paths and remote stores behind one set of verbs.

Names are plain text and are never percent-decoded (`pipeline.storage.uris`). Every failure is a StorageError of
`pipeline.errors`; transient ones have been retried by then.
"""

import re
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeVar

from pipeline.errors import NotFoundError, UnsupportedSchemeError
from pipeline.storage import client as store_options
from pipeline.storage.client import read_concurrency
from pipeline.storage.config import StorageSection
from pipeline.storage.local import OnLink
from pipeline.storage.local_store import LocalStore
from pipeline.storage.objects import Kind, ObjectData, ObjectInfo
from pipeline.storage.range_file import StoredFile
from pipeline.storage.read import ReadRequest
from pipeline.storage.signed_urls import SignedAddresses
from pipeline.storage.store import Store
from pipeline.storage.translate import Verb
from pipeline.storage.uris import WEB_SCHEMES, WELL_KNOWN_SCHEMES, glob_pattern, host_of, is_local, join, scheme_of
from pipeline.storage.web import WebHosts, WebStore

__all__ = ["ObjectData", "ObjectInfo", "Storage", "join"]

# Hosts of a listing of URLs, each with its own health and pace.
MOST_STORES = 1000

T = TypeVar("T")


class Storage:
    """Local paths and whatever fsspec opens, behind one set of verbs; pickles, and opens its clients on first use.

    Every method raises NotFoundError, AccessDeniedError, TransientStorageError (after the retries) or StorageError.
    """

    def __init__(self, section: StorageSection | None = None, *, is_known: bool = False) -> None:
        """`is_known`: whether another process of the run has used the stores: if one is unreachable, it is retried."""
        self.section = section or StorageSection()
        self._is_known = is_known
        self.signed = SignedAddresses()
        self._local = LocalStore()
        self._stores: dict[str, Store] = {}
        # Why a scheme cannot be opened, None when it can.
        self._problems: dict[str, str | None] = {}
        self._web_hosts = WebHosts()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., "Storage"], tuple[StorageSection, bool]]:
        # Clients hold sockets and event loops; the process that unpickles opens its own.
        return _unpickled, (self.section, self._is_known)

    def read_concurrency(self, uri: str) -> int:
        """Return how many concurrent reads below a uri are allowed."""
        return read_concurrency(self.section, is_local=is_local(uri))

    def scheme_problem(self, uri: str) -> str | None:
        """Return why addresses of this scheme cannot be opened here, None when they can; makes no request."""
        scheme = scheme_of(uri)
        if is_local(uri) or scheme in self._problems:
            return self._problems.get(scheme)
        problem = store_options.scheme_problem(scheme, self.section)
        if problem is None and scheme not in WELL_KNOWN_SCHEMES:
            try:
                self._remote(uri)
            except UnsupportedSchemeError as error:
                problem = str(error).removesuffix(".")
        self._problems[scheme] = problem
        return problem

    def list(
        self,
        uri: str,
        glob: str | None = None,
        *,
        after: str | None = None,
        on_link: OnLink | None = None,
        missing_ok: bool = False,
    ) -> Iterator[ObjectInfo]:
        """List the files below a folder or prefix, recursively, in `uris.name_order`; a file lists itself.

        Local folders, S3, Google Cloud Storage and Azure are listed while the iterator is read, in little memory.
        Hidden names (with a leading dot, such as unfinished files) are left out.

        Args:
            uri: a folder, prefix or file, taken literally.
            glob: a pattern for the path relative to the folder, see `uris.glob_pattern`.
            after: only names behind this one, which need not exist; a name outside the folder is ignored.
            on_link: see `local.walk_files`.
            missing_ok: a folder that does not exist lists nothing, instead of raising NotFoundError.
        """
        try:
            yield from self._list(uri, glob_pattern(glob) if glob is not None else None, after, on_link)
        except NotFoundError:
            if not missing_ok:
                raise

    def _list(
        self, uri: str, pattern: re.Pattern[str] | None, after: str | None, on_link: OnLink | None
    ) -> Iterator[ObjectInfo]:
        kind = self.kind(uri)
        if kind == "absent":
            raise NotFoundError(f"{uri} does not exist.")
        if kind == "file":
            yield self.stat(uri)
            return
        store = self._store(uri)
        uri = store.folder_uri(uri)
        folder = join(uri, "")
        start = after.removeprefix(folder) if after is not None and after.startswith(folder) else ""
        for relative, listed in store.list_folder(uri, start, on_link):
            if pattern is None or pattern.fullmatch(relative):
                yield listed

    def list_names(self, uri: str, prefix: str = "") -> Iterator[str]:
        """List the names of the files right below a folder that begin with a prefix, in any order.

        Costs less than `list`: no file is examined, and of a bucket only keys with the prefix are listed. Hidden names
        are left out; a folder that does not exist lists nothing.
        """
        return self._store(uri).list_names(uri, prefix)

    def written_times(self, uri: str) -> dict[str, datetime]:
        """Return when the files right below a folder were written last, UTC, by their names.

        Hidden files are left out, and so are those of which the store does not say it; a folder that does not exist
        has none.
        """
        return self._store(uri).written_times(uri)

    def kind(self, uri: str) -> Kind:
        """Return whether there is a file of this name, a folder (or a prefix of objects), or neither."""
        return self._store(uri).kind(uri)

    def stat(self, uri: str) -> ObjectInfo:
        """Return one file's size and version."""
        return self._store(uri).stat(uri)

    def exists(self, uri: str) -> bool:
        """Return whether there is a file or folder of this name."""
        return self.kind(uri) != "absent"

    def read(self, uri: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Read a file, or `length` bytes of it from `offset`; fewer only when the file ends before."""
        return self.fetch(uri, offset, length).payload

    def fetch(
        self,
        uri: str,
        offset: int | None = None,
        length: int | None = None,
        *,
        listed: ObjectInfo | None = None,
        max_bytes: int | None = None,
    ) -> ObjectData:
        """Read a file or a part of it, with its version.

        Args:
            listed: the file as it was listed; if its version is unchanged, so must be its length.
            max_bytes: refuse a larger file before its bytes fill the memory.

        Raises:
            ObjectTooLargeError: it is larger than `max_bytes`.
        """
        return self._store(uri).fetch(ReadRequest(uri, offset, length, listed, max_bytes))

    def open(self, uri: str) -> StoredFile:
        """Open a file for reading and seeking; its `info` holds the version. The caller closes it, best by `with`."""
        return self._store(uri).open(uri)

    def write(self, uri: str, payload: bytes) -> None:
        """Write a file atomically; folders are created, an older file is replaced."""
        self._store(uri).write(uri, payload)

    def delete(self, uri: str) -> None:
        """Delete one file; no error when there is none."""
        self._store(uri).delete(uri)

    def client(self, uri: str) -> tuple[Any, str]:
        """Return the fsspec file system for a remote uri, and the uri as that file system spells it.

        For a signed URL that is the address with its signature.
        """
        store = self._remote(uri)
        return store.client, store.path_of(uri)

    def call(self, action: Callable[[], T], uri: str, verb: Verb) -> T:
        """Run one storage call: translate its errors, and retry transient ones (`pipeline.storage.retry`)."""
        return self._store(uri).call(action, uri, verb)

    def _store(self, uri: str) -> LocalStore | Store:
        return self._local if is_local(uri) else self._remote(uri)

    def _remote(self, uri: str) -> Store:
        scheme = scheme_of(uri)
        is_web = scheme in WEB_SCHEMES
        if self._problems.get(scheme) is not None:
            raise UnsupportedSchemeError(f"{self._problems[scheme]}.")
        name = f"{scheme}://{host_of(uri)}" if is_web else scheme
        with self._lock:
            if name not in self._stores:
                if len(self._stores) >= MOST_STORES:
                    # The oldest; its health and pace are measured from the start when it is used again.
                    del self._stores[next(iter(self._stores))]
                try:
                    self._stores[name] = (
                        WebStore(scheme, self.section, self.signed, host_of(uri), self._web_hosts)
                        if is_web
                        else Store(scheme, self.section, self.signed, is_known=self._is_known)
                    )
                except UnsupportedSchemeError as error:
                    # A listing may name the scheme a million times.
                    self._problems[scheme] = str(error).removesuffix(".")
                    raise
            return self._stores[name]


def _unpickled(section: StorageSection, is_known: bool) -> Storage:
    return Storage(section, is_known=is_known)
