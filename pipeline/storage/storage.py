"""The one door to storage: list, read with retries, write atomically.

Names are plain text and are never percent-decoded (`pipeline.storage.uris`). Every failure leaves here as a
StorageError of `pipeline.errors`; transient ones have by then been retried.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from pipeline.errors import NotFoundError, UnsupportedSchemeError
from pipeline.storage import client as store_options
from pipeline.storage import local as local_files
from pipeline.storage.client import read_concurrency
from pipeline.storage.config import StorageSection
from pipeline.storage.listing_gcs_azure import finder_of
from pipeline.storage.local import OnLink
from pipeline.storage.objects import ObjectData, ObjectInfo, listed_from, strip_etag
from pipeline.storage.range_file import open_ranges
from pipeline.storage.read import ReadRequest
from pipeline.storage.retry import retry_local
from pipeline.storage.signed_urls import SignedAddresses
from pipeline.storage.store import Store, translated_errors
from pipeline.storage.translate import Verb, storage_error
from pipeline.storage.uris import (
    BUCKET_SCHEMES,
    S3_SCHEMES,
    WEB_SCHEMES,
    WELL_KNOWN_SCHEMES,
    glob_pattern,
    host_of,
    is_hidden_name,
    is_local,
    join,
    local_path,
    name_order,
    scheme_of,
)
from pipeline.storage.web import WebHosts, WebStore

__all__ = ["ObjectData", "ObjectInfo", "Storage", "join"]

# One PUT is atomic on these. Anywhere else a reader could see half an object, so we write aside and rename.
_OBJECT_STORES = S3_SCHEMES | frozenset({"gs", "gcs", "abfs", "abfss", "az", "adl", "memory", "http", "https"})

# Hosts of a listing of URLs, each with its own health and pace.
MOST_STORES = 1000

Kind = Literal["file", "folder", "absent"]
T = TypeVar("T")


class Storage:
    """Local paths and whatever fsspec opens, behind one set of verbs; pickles, and opens its clients on first
    use.

    Every method raises NotFoundError, AccessDeniedError, TransientStorageError (after the retries) or
    StorageError.
    """

    def __init__(self, section: StorageSection | None = None, *, is_known: bool = False) -> None:
        """`is_known`: another process of the run has reached the stores, so that one that is away is waited for."""
        self.section = section or StorageSection()
        self._is_known = is_known
        self.signed = SignedAddresses()
        self._stores: dict[str, Store] = {}
        # Schemes that were asked about, and why they cannot be opened.
        self._problems: dict[str, str | None] = {}
        self._web_hosts = WebHosts()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., "Storage"], tuple[StorageSection, bool]]:
        # Clients hold sockets and event loops; the process that unpickles opens its own.
        return _arrived, (self.section, self._is_known)

    def read_concurrency(self, uri: str) -> int:
        """How many reads below a uri may be under way at once."""
        return read_concurrency(self.section, is_local=is_local(uri))

    def scheme_problem(self, uri: str) -> str | None:
        """Say why addresses of this scheme cannot be opened here, None when they can; asks no store."""
        scheme = scheme_of(uri)
        if is_local(uri) or scheme in self._problems:
            return self._problems.get(scheme)
        problem = store_options.scheme_problem(scheme, self.section)
        if problem is None and scheme not in WELL_KNOWN_SCHEMES:
            try:
                self._store(uri)
            except UnsupportedSchemeError as error:
                problem = str(error).removesuffix(".")
        self._problems[scheme] = problem
        return problem

    def list(
        self, uri: str, glob: str | None = None, *, after: str | None = None, on_link: OnLink | None = None
    ) -> Iterator[ObjectInfo]:
        """List the files below a folder or prefix, recursively, in `uris.name_order`; a file lists as itself.

        Local folders and S3 are listed while the iterator is read, in little memory. Hidden names
        (a leading dot, our own temporary files among them) are left out.

        Args:
            uri: a folder, prefix or file, taken literally.
            glob: a pattern for the path relative to the folder, see `uris.glob_pattern`.
            after: only what comes behind this name, which need not exist; one that lies outside means nothing.
            on_link: see `local_files.walk_files`.
        """
        kind = self.kind(uri)
        if kind == "absent":
            raise NotFoundError(f"{uri} does not exist.")
        if kind == "file":
            yield self.stat(uri)
            return
        if uri.endswith("//") and not is_local(uri):
            uri = self._folder_of_slashes(uri)
        pattern = glob_pattern(glob) if glob is not None else None
        folder = join(local_path(uri) if is_local(uri) else uri, "")
        start = after.removeprefix(folder) if after is not None and after.startswith(folder) else ""
        listing = self._list_local(uri, start, on_link) if is_local(uri) else self._list_remote(uri, start)
        for relative, listed in listing:
            if pattern is None or pattern.fullmatch(relative):
                yield listed

    def kind(self, uri: str) -> Kind:
        """Tell a file from a folder (or a prefix that holds something) from nothing at all."""
        if is_local(uri):
            path = Path(local_path(uri))
            try:
                if path.is_dir():
                    return "folder"
                return "file" if path.exists() or path.is_symlink() else "absent"
            except OSError as error:
                raise _translated(error, uri, "read") from error

        def ask() -> Kind:
            client, path = self.client(uri)
            try:
                found = client.info(path)
            except FileNotFoundError:
                return "absent"
            return "folder" if found["type"] == "directory" else "file"

        return self.call(ask, uri, "list")

    def stat(self, uri: str) -> ObjectInfo:
        """Return one file's size and version."""
        if is_local(uri):
            path = local_path(uri)
            status = self.call(Path(path).stat, uri, "read")
            return ObjectInfo(path, status.st_size, local_files.etag_of(status))
        client, path = self.client(uri)
        return listed_from(uri, self.call(lambda: client.info(path), uri, "read"))

    def exists(self, uri: str) -> bool:
        """Tell whether a file or folder of this name is there."""
        return self.kind(uri) != "absent"

    def read(self, uri: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Read a whole file, or `length` bytes of it from `offset`; less only when the file ends before."""
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
        """Read a file or a part of it, and tell which version it is of.

        Args:
            listed: the file when it was listed; while its version is the same, so must be its length.
            max_bytes: refuse a larger file before its bytes fill the memory.

        Raises:
            ObjectTooLargeError: it is larger than `max_bytes`.
        """
        if is_local(uri):
            path = local_path(uri)
            return self.call(lambda: local_files.read_file(path, offset, length, max_bytes), uri, "read")
        _, path = self.client(uri)
        return self._store(uri).fetch(ReadRequest(path, uri, offset, length, listed, max_bytes))

    def open_input(self, uri: str) -> IO[bytes]:
        """Open a file for reading and seeking; the caller closes it."""
        return self.open_version(uri)[0]

    def open_version(self, uri: str) -> tuple[IO[bytes], ObjectInfo]:
        """Open a file like `open_input`, and tell which version it is."""
        if is_local(uri):
            path = Path(local_path(uri))
            file = self.call(lambda: path.open("rb"), uri, "read")
            status = os.fstat(file.fileno())
            return file, ObjectInfo(str(path), status.st_size, local_files.etag_of(status))
        listed = self.stat(uri)
        if listed.bytes is not None:
            return open_ranges(listed, listed.bytes, partial(self.fetch, uri)), listed
        client, path_there = self.client(uri)
        # A server that tells no length knows no ranges either.
        return self.call(lambda: client.open(path_there, "rb"), uri, "read"), listed

    @contextmanager
    def reading(self, uri: str) -> Iterator[IO[bytes]]:
        """Open a file for reading and seeking; what a local disk raises inside the block is translated, not
        retried."""
        with self.reading_version(uri) as (file, _):
            yield file

    @contextmanager
    def reading_version(self, uri: str) -> Iterator[tuple[IO[bytes], ObjectInfo]]:
        """Open a file like `reading`, and tell which version it is."""
        file, listed = self.open_version(uri)
        try:
            with file:
                yield file, listed
        except OSError as error:
            # An OSError without errno is a format library's word for a damaged file; that is the caller's to
            # judge.
            is_storage = error.errno is not None or type(error) is not OSError
            translated = storage_error(error, uri, "read", is_local=is_local(uri)) if is_storage else None
            if translated is None:
                raise
            raise translated from error

    def write(self, uri: str, payload: bytes) -> None:
        """Write a file so that a reader sees all of it or none; folders are made, an older file is
        replaced."""
        if is_local(uri):
            self.call(lambda: local_files.write_file(local_path(uri), payload), uri, "write")
            return
        client, path = self.client(uri)
        if scheme_of(uri) in _OBJECT_STORES:
            self.call(lambda: client.pipe_file(path, payload), uri, "write")
            return

        def write_and_rename() -> None:
            folder, _, name = path.rpartition("/")
            aside = f"{folder}/.{name}{local_files.TEMP_SUFFIX}"
            client.makedirs(folder, exist_ok=True)
            client.pipe_file(aside, payload)
            client.mv(aside, path)

        self.call(write_and_rename, uri, "write")

    def delete(self, uri: str) -> None:
        """Delete one file; it is no error when it is already gone."""
        try:
            if is_local(uri):
                self.call(lambda: Path(local_path(uri)).unlink(missing_ok=True), uri, "delete")
            else:
                client, path = self.client(uri)
                self.call(lambda: client.rm_file(path), uri, "delete")
        except NotFoundError:
            return

    def _folder_of_slashes(self, uri: str) -> str:
        """Return the folder that a uri with several slashes at its end names.

        In a bucket `a//` is another prefix than `a/`, and where it holds nothing, one slash too many was typed.
        """
        bare = uri.rstrip("/")
        is_bucket = bare.count("/") == 2
        if scheme_of(uri) in BUCKET_SCHEMES and not is_bucket and next(self._list_remote(uri, ""), None) is not None:
            return uri
        return bare

    def _list_local(self, uri: str, after: str, on_link: OnLink | None) -> Iterator[tuple[str, ObjectInfo]]:
        root = local_path(uri).rstrip("/")
        local_files.check_listable(root or "/")
        try:
            for path, status in local_files.walk_files(root, f"{root}/{after}" if after else "", on_link):
                size, etag = (None, None) if status is None else (status.st_size, local_files.etag_of(status))
                yield path[len(root) + 1 :], ObjectInfo(path, size, etag)
        except OSError as error:
            raise _translated(error, str(error.filename or uri), "list") from error

    def _list_remote(self, uri: str, after: str) -> Iterator[tuple[str, ObjectInfo]]:
        find = finder_of(scheme_of(uri))
        if find is not None:
            client, path = self.client(uri)
            # File systems take slashes off the end; of several, each is part of the prefix.
            path = f"{path.rstrip('/')}{uri[len(uri.rstrip('/')) :]}" if uri.endswith("//") else path
            found = find(client, path, lambda request: self.call(request, uri, "list"), after)
        else:
            found = (each for each in self._find_anywhere(uri) if name_order(each[0]) > name_order(after))
        for relative, size, etag in found:
            is_hidden = (relative.startswith(".") or "/." in relative) and is_hidden_name(relative)
            # Consoles make "folders" by empty objects whose key ends in a slash.
            if relative and not relative.endswith("/") and not is_hidden:
                yield relative, ObjectInfo(join(uri, relative), size, strip_etag(etag))

    def _find_anywhere(self, uri: str) -> Iterator[tuple[str, int | None, str | None]]:
        client, path = self.client(uri)
        # fsspec has no listing by pages: all names are in memory at once.
        found: dict[str, Any] = self.call(lambda: client.find(path, detail=True), uri, "list")
        for name in sorted(found, key=name_order):
            listed = listed_from(uri, found[name])
            yield name[len(path) :].removeprefix("/"), listed.bytes, listed.etag

    def client(self, uri: str) -> tuple[Any, str]:
        """Return the fsspec file system for a remote uri, and the uri as that file system spells it.

        Of a signed URL that is the address with its signature.
        """
        client = self._store(uri).client
        return client, client._strip_protocol(self.signed.find(uri) or uri)

    def call(self, action: Callable[[], T], uri: str, verb: Verb) -> T:
        """Run one storage call: translate its errors, and retry those that may pass (`pipeline.storage.retry`)."""
        if is_local(uri):
            return retry_local(lambda: translated_errors(action, uri, verb, is_local=True))
        return self._store(uri).call(action, uri, verb)

    def _store(self, uri: str) -> Store:
        scheme = scheme_of(uri)
        is_web = scheme in WEB_SCHEMES
        if self._problems.get(scheme) is not None:
            raise UnsupportedSchemeError(f"{self._problems[scheme]}.")
        name = f"{scheme}://{host_of(uri)}" if is_web else scheme
        with self._lock:
            if name not in self._stores:
                if len(self._stores) >= MOST_STORES:
                    # The one used first; what it knew is learnt again.
                    del self._stores[next(iter(self._stores))]
                try:
                    self._stores[name] = (
                        WebStore(scheme, self.section, uri, self._web_hosts)
                        if is_web
                        else Store(scheme, self.section, is_known=self._is_known)
                    )
                except UnsupportedSchemeError as error:
                    # A listing may name it a million times.
                    self._problems[scheme] = str(error).removesuffix(".")
                    raise
            return self._stores[name]


def _arrived(section: StorageSection, is_known: bool) -> Storage:
    return Storage(section, is_known=is_known)


def _translated(error: OSError, uri: str, verb: Verb) -> BaseException:
    return storage_error(error, uri, verb, is_local=True) or error
