"""A remote store: its fsspec client with retries, concurrency limit and hedging."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeVar

from pipeline.errors import (
    NotFoundError,
    ObjectTooLargeError,
    PastEndError,
    SlowDownError,
    StorageError,
    TransientStorageError,
    WebHostError,
)
from pipeline.storage.client import open_client, read_concurrency
from pipeline.storage.config import StorageSection
from pipeline.storage.listing_gcs_azure import finder_of
from pipeline.storage.listing_s3 import written_on_s3
from pipeline.storage.local import TEMP_SUFFIX, OnLink
from pipeline.storage.objects import Kind, ObjectData, ObjectInfo, listed_from, strip_etag
from pipeline.storage.pacing import HedgePolicy, ReadLimiter, hedged
from pipeline.storage.range_file import StoredFile, open_ranges
from pipeline.storage.read import ReadRequest, begin_read
from pipeline.storage.retry import StoreHealth
from pipeline.storage.signed_urls import SignedAddresses
from pipeline.storage.translate import Verb, translated_errors
from pipeline.storage.uris import (
    BUCKET_SCHEMES,
    S3_SCHEMES,
    WEB_SCHEMES,
    WELL_KNOWN_SCHEMES,
    is_hidden_name,
    join,
    name_order,
)
from pipeline.storage.written import written_at

T = TypeVar("T")

# One PUT is atomic on these. Anywhere else a reader could see half an object, so it is written aside and renamed.
_OBJECT_STORES = BUCKET_SCHEMES | WEB_SCHEMES | {"memory"}


class Store:
    """The client of a scheme, shared by a process's threads.

    client: the fsspec file system.
    """

    def __init__(self, scheme: str, section: StorageSection, signed: SignedAddresses, *, is_known: bool) -> None:
        """`signed`: addresses of signed URLs. `is_known`: whether another process of the run has used the store."""
        self._scheme = scheme
        self.client: Any = open_client(scheme, section)
        self._signed = signed
        self._health = StoreHealth(section.patience_s, has_answered=is_known)
        self._limiter = ReadLimiter(read_concurrency(section, is_local=False))
        self._hedges = HedgePolicy(is_on=section.hedge_reads)

    def path_of(self, uri: str) -> str:
        """Return an object's address as the client spells it; of a signed URL the address with its signature."""
        path: str = self.client._strip_protocol(self._signed.find(uri) or uri)
        return path

    def set_patience(self, patience_s: float) -> None:
        """Set for how long requests are retried while the store is unreachable."""
        self._health.patience_s = patience_s

    def has_answered_within(self, seconds: float) -> bool:
        """Return whether the store granted a request within the last seconds."""
        return time.monotonic() - self._health.last_success < seconds

    def call(self, action: Callable[[], T], uri: str, verb: Verb, *, is_expected: bool = False) -> T:
        """Make a request: translate its errors, and retry it where that may help.

        Args:
            is_expected: whether the object existed before, so that "not found" is retried too.

        Raises:
            StorageError: all attempts are used up.
        """

        def attempt() -> T:
            began = time.monotonic()
            try:
                return translated_errors(action, uri, verb, is_local=False)
            except SlowDownError:
                self._limiter.record_slow_down(began)
                raise

        return self._health.call(attempt, is_expected=is_expected)

    def kind(self, uri: str) -> Kind:
        """Return whether there is an object of this name, a folder (a prefix of objects), or neither."""

        def ask() -> Kind:
            path = self.path_of(uri)
            try:
                found = self.client.info(path)
            except FileNotFoundError:
                return "absent"
            return "folder" if found["type"] == "directory" else "file"

        return self.call(ask, uri, "list")

    def stat(self, uri: str) -> ObjectInfo:
        """Return an object's size and version."""
        path = self.path_of(uri)
        return listed_from(uri, self.call(lambda: self.client.info(path), uri, "read"))

    def folder_uri(self, uri: str) -> str:
        """Return the prefix of the names listed below a folder.

        In a bucket `a//` is another prefix than `a/`; where it holds nothing, the extra slashes are ignored.
        """
        if not uri.endswith("//"):
            return uri
        bare = uri.rstrip("/")
        is_bucket = bare.count("/") == 2
        if self._scheme in BUCKET_SCHEMES and not is_bucket and next(self.list_folder(uri, "", None), None) is not None:
            return uri
        return bare

    def list_names(self, uri: str, prefix: str) -> Iterator[str]:
        """List the names of the objects right below a folder that begin with a prefix."""
        try:
            for relative, _ in self.list_folder(self.folder_uri(uri), "", None, prefix):
                if "/" not in relative:
                    yield relative
        except NotFoundError:
            return

    def written_times(self, uri: str) -> dict[str, datetime]:
        """Return when the objects right below a folder were written last, UTC, by their names."""
        path = self.path_of(self.folder_uri(uri))
        times: dict[str, datetime | None]
        try:
            if self._scheme in S3_SCHEMES:
                times = dict(written_on_s3(self.client, path, lambda request: self.call(request, uri, "list")))
            else:
                found: list[dict[str, Any]] = self.call(lambda: self.client.ls(path, detail=True), uri, "list")
                times = {
                    str(each["name"]).rsplit("/", 1)[-1]: written_at(each) for each in found if each["type"] == "file"
                }
        except NotFoundError:
            return {}
        return {name: time for name, time in times.items() if time is not None and not is_hidden_name(name)}

    def list_folder(
        self, uri: str, after: str, on_link: OnLink | None, prefix: str = ""
    ) -> Iterator[tuple[str, ObjectInfo]]:
        """List the objects below a folder with their relative names; only names behind `after`, which is relative too.

        `on_link` is never called: remote stores have no links.

        Args:
            prefix: what the relative names begin with; others are not asked for, where the store supports that.
        """
        find = finder_of(self._scheme)
        if find is not None:
            path = self.path_of(uri)
            # File systems strip slashes at the end; two or more of them are part of the prefix.
            path = f"{path.rstrip('/')}{uri[len(uri.rstrip('/')) :]}" if uri.endswith("//") else path
            found = find(self.client, path, lambda request: self.call(request, uri, "list"), after, prefix)
        else:
            found = (
                each
                for each in self._find_all(uri)
                if each[0].startswith(prefix) and name_order(each[0]) > name_order(after)
            )
        for relative, size, etag in found:
            is_hidden = (relative.startswith(".") or "/." in relative) and is_hidden_name(relative)
            # Consoles represent "folders" by empty objects whose key ends in a slash.
            if relative and not relative.endswith("/") and not is_hidden:
                yield relative, ObjectInfo(join(uri, relative), size, strip_etag(etag))

    def _find_all(self, uri: str) -> Iterator[tuple[str, int | None, str | None]]:
        path = self.path_of(uri)
        # fsspec has no listing by pages: all names are in memory at once.
        found: dict[str, Any] = self.call(lambda: self.client.find(path, detail=True), uri, "list")
        for name in sorted(found, key=name_order):
            listed = listed_from(uri, found[name])
            yield name[len(path) :].removeprefix("/"), listed.bytes, listed.etag

    def fetch(self, request: ReadRequest) -> ObjectData:
        """Read an object or a part of it; a slow read is sent a second time.

        Raises:
            ObjectTooLargeError: it is larger than the request allows.
            StorageError: it cannot be read.
        """
        is_listed = request.listed is not None and request.listed.etag is not None
        try:
            return self.call(lambda: self._read_once(request), request.uri, "read", is_expected=is_listed)
        except PastEndError:
            # As with a local file.
            return ObjectData(b"", None)
        except (NotFoundError, ObjectTooLargeError, TransientStorageError):
            raise
        except StorageError as error:
            if self._scheme in WELL_KNOWN_SCHEMES:
                raise
            # A refusal of an unknown store is a failure of that image: another attempt at the whole shard is unlikely
            # to help.
            raise WebHostError(str(error)) from error

    def _read_once(self, request: ReadRequest) -> ObjectData:
        path = self.path_of(request.uri)
        with self._limiter.slot():
            start = time.monotonic()
            found = hedged(
                lambda: begin_read(self.client, path, request),
                self._hedges.hedge_after_s(request.expected_bytes),
                lambda: self._limiter.has_room() and self._hedges.take(),
            )
        self._hedges.record(time.monotonic() - start, len(found.payload))
        self._limiter.record_success()
        return found

    def open(self, uri: str) -> StoredFile:
        """Open an object for reading and seeking."""
        info = self.stat(uri)
        if info.bytes is not None:
            return open_ranges(info, info.bytes, lambda offset, length: self.fetch(ReadRequest(uri, offset, length)))
        path = self.path_of(uri)
        # A server that sends no length supports no ranges either.
        return StoredFile(self.call(lambda: self.client.open(path, "rb"), uri, "read"), info)

    def write(self, uri: str, payload: bytes) -> None:
        """Write an object atomically."""
        path = self.path_of(uri)

        def write_and_rename() -> None:
            folder, _, name = path.rpartition("/")
            aside = f"{folder}/.{name}{TEMP_SUFFIX}"
            self.client.makedirs(folder, exist_ok=True)
            self.client.pipe_file(aside, payload)
            self.client.mv(aside, path)

        is_atomic = self._scheme in _OBJECT_STORES
        self.call((lambda: self.client.pipe_file(path, payload)) if is_atomic else write_and_rename, uri, "write")

    def delete(self, uri: str) -> None:
        """Delete an object; no error when there is none."""
        path = self.path_of(uri)
        try:
            self.call(lambda: self.client.rm_file(path), uri, "delete")
        except NotFoundError:
            return
