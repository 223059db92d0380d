"""The one door to storage: list, read with retries, write atomically.

Names are plain text and are never percent-decoded (`pipeline.uris`). Every failure leaves here as a
StorageError of `pipeline.errors`; transient ones have by then been retried.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from pipeline import local_files
from pipeline.config import StorageSection
from pipeline.errors import NotFoundError, StorageError, TransientStorageError
from pipeline.s3_listing import find_on_s3
from pipeline.storage_errors import Verb, storage_error
from pipeline.store_options import EXTRAS, client_options, quicken_times
from pipeline.uris import glob_pattern, is_local, join, local_path, name_order, scheme_of

__all__ = ["Listed", "Storage", "join"]

ATTEMPTS = 5
LONGEST_WAIT_S = 8.0

# One PUT is atomic on these. Anywhere else a reader could see half an object, so we write aside and rename.
_S3 = frozenset({"s3", "s3a"})
_OBJECT_STORES = _S3 | frozenset({"gs", "gcs", "abfs", "abfss", "az", "adl", "memory", "http", "https"})

Kind = Literal["file", "folder", "absent"]
T = TypeVar("T")


@dataclass(frozen=True)
class Listed:
    """One object of a listing.

    bytes: its size, None when the store does not say or the object is a link that leads nowhere.
    etag: the store's version of it; for local files modification time and size.
    """

    uri: str
    bytes: int | None
    etag: str | None


class Storage:
    """Local paths and whatever fsspec opens, behind one set of verbs; pickles, and opens its clients on first
    use.

    Every method raises NotFoundError, AccessDeniedError, TransientStorageError (after the retries) or
    StorageError.
    """

    def __init__(self, section: StorageSection | None = None) -> None:
        self.section = section or StorageSection()
        self._clients: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, object]:
        # Clients hold sockets and event loops; the process that unpickles opens its own.
        return {"section": self.section, "_clients": {}}

    def list(self, uri: str, glob: str | None = None) -> Iterator[Listed]:
        """List the files below a folder or prefix, recursively, in `uris.name_order`; a file lists as itself.

        Local folders and S3 are listed while the iterator is read, in little memory. Hidden names
        (a leading dot, our own temporary files among them) are left out.

        Args:
            uri: a folder, prefix or file, taken literally.
            glob: a pattern for the path relative to the folder, see `uris.glob_pattern`.
        """
        kind = self.kind(uri)
        if kind == "absent":
            raise NotFoundError(f"{uri} does not exist.")
        if kind == "file":
            yield self.stat(uri)
            return
        pattern = glob_pattern(glob) if glob is not None else None
        listing = self._list_local(uri) if is_local(uri) else self._list_remote(uri)
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
            client, path = self._client(uri)
            try:
                found = client.info(path)
            except FileNotFoundError:
                return "absent"
            return "folder" if found["type"] == "directory" else "file"

        return self._call(ask, uri, "list")

    def stat(self, uri: str) -> Listed:
        """Return one file's size and version."""
        if is_local(uri):
            path = local_path(uri)
            status = self._call(Path(path).stat, uri, "read")
            return Listed(path, status.st_size, local_files.etag_of(status))
        client, path = self._client(uri)
        return _listed(uri, self._call(lambda: client.info(path), uri, "read"))

    def exists(self, uri: str) -> bool:
        """Tell whether a file or folder of this name is there."""
        return self.kind(uri) != "absent"

    def read(self, uri: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Read a whole file, or `length` bytes of it from `offset`.

        A local file may come back short when it ends early; a short answer of a remote store is retried.
        """
        if is_local(uri):
            return self._call(lambda: local_files.read_file(local_path(uri), offset, length), uri, "read")
        client, path = self._client(uri)
        start = None if offset is None and length is None else (offset or 0)
        end = None if length is None else (start or 0) + length

        def fetch() -> bytes:
            payload: bytes = client.cat_file(path, start=start, end=end)
            if length is not None and len(payload) > length:
                # Servers may ignore the range and send everything.
                payload = payload[start:end]
            if length is not None and len(payload) < length:
                raise TransientStorageError(f"Storage sent {len(payload)} of {length} bytes of {uri}.")
            return payload

        return self._call(fetch, uri, "read")

    def open_input(self, uri: str) -> IO[bytes]:
        """Open a file for reading and seeking; the caller closes it."""
        if is_local(uri):
            return self._call(lambda: Path(local_path(uri)).open("rb"), uri, "read")
        client, path = self._client(uri)
        file: IO[bytes] = self._call(lambda: client.open(path, "rb"), uri, "read")
        return file

    @contextmanager
    def reading(self, uri: str) -> Iterator[IO[bytes]]:
        """Open a file for reading and seeking; what storage raises inside the block is translated, not
        retried."""
        file = self.open_input(uri)
        try:
            with file:
                yield file
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
            self._call(lambda: local_files.write_file(local_path(uri), payload), uri, "write")
            return
        client, path = self._client(uri)
        if scheme_of(uri) in _OBJECT_STORES:
            self._call(lambda: client.pipe_file(path, payload), uri, "write")
            return

        def write_and_rename() -> None:
            folder, _, name = path.rpartition("/")
            aside = f"{folder}/.{name}{local_files.TEMP_SUFFIX}"
            client.makedirs(folder, exist_ok=True)
            client.pipe_file(aside, payload)
            client.mv(aside, path)

        self._call(write_and_rename, uri, "write")

    def delete(self, uri: str) -> None:
        """Delete one file; it is no error when it is already gone."""
        try:
            if is_local(uri):
                self._call(lambda: Path(local_path(uri)).unlink(missing_ok=True), uri, "delete")
            else:
                client, path = self._client(uri)
                self._call(lambda: client.rm_file(path), uri, "delete")
        except NotFoundError:
            return

    def _list_local(self, uri: str) -> Iterator[tuple[str, Listed]]:
        root = local_path(uri).rstrip("/")
        local_files.check_listable(root or "/")
        try:
            for path, status in local_files.walk_files(root):
                size, etag = (None, None) if status is None else (status.st_size, local_files.etag_of(status))
                yield path[len(root) + 1 :], Listed(path, size, etag)
        except OSError as error:
            raise _translated(error, str(error.filename or uri), "list") from error

    def _list_remote(self, uri: str) -> Iterator[tuple[str, Listed]]:
        if scheme_of(uri) in _S3:
            client, path = self._client(uri)
            found = find_on_s3(client, path, lambda request: self._call(request, uri, "list"))
        else:
            found = self._find_anywhere(uri)
        for relative, size, etag in found:
            is_hidden = relative.startswith(".") or "/." in relative
            # Consoles make "folders" by empty objects whose key ends in a slash.
            if relative and not relative.endswith("/") and not is_hidden:
                yield relative, Listed(join(uri, relative), size, _unquoted(etag))

    def _find_anywhere(self, uri: str) -> Iterator[tuple[str, int | None, str | None]]:
        client, path = self._client(uri)
        # fsspec has no listing by pages: all names are in memory at once.
        found: dict[str, Any] = self._call(lambda: client.find(path, detail=True), uri, "list")
        for name in sorted(found, key=name_order):
            listed = _listed(uri, found[name])
            yield name[len(path) :].removeprefix("/"), listed.bytes, listed.etag

    def _client(self, uri: str) -> tuple[Any, str]:
        """Return the fsspec file system for a uri, and the uri as that file system spells it."""
        scheme = scheme_of(uri)
        if scheme not in self._clients:
            self._clients[scheme] = _open_client(scheme, self.section, uri)
        client = self._clients[scheme]
        return client, client._strip_protocol(uri)

    def _call(self, action: Callable[[], T], uri: str, verb: Verb) -> T:
        """Run one storage call: translate its errors, and retry those that may pass.

        Waits are drawn evenly between 0 and a bound that doubles each time (full jitter), so that a thousand
        workers that failed together do not come back together.
        """

        def attempt() -> T:
            try:
                return action()
            except StorageError:
                raise
            except Exception as error:
                translated = storage_error(error, uri, verb, is_local=is_local(uri))
                if translated is None:
                    raise
                raise translated from error

        retrying = Retrying(
            retry=retry_if_exception_type(TransientStorageError),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.25, max=LONGEST_WAIT_S),
            reraise=True,
        )
        return retrying(attempt)


def _translated(error: OSError, uri: str, verb: Verb) -> BaseException:
    return storage_error(error, uri, verb, is_local=True) or error


def _listed(uri: str, found: dict[str, Any]) -> Listed:
    etag = found.get("ETag") or found.get("etag")
    size = found.get("size")
    return Listed(uri, None if size is None else int(size), _unquoted(etag))


def _unquoted(etag: object) -> str | None:
    return etag.strip('"') if isinstance(etag, str) else None


def _open_client(scheme: str, section: StorageSection, uri: str) -> Any:
    """Open the fsspec file system of a scheme; StorageError when nobody knows it or its library is missing."""
    import fsspec

    try:
        client = fsspec.filesystem(scheme, use_listings_cache=False, **client_options(scheme, section))
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        remedy = f"pip install 'htc-batch[{extra}]'" if extra else "install the library named there"
        raise StorageError(f"{scheme}:// needs a library that is not installed ({error}); {remedy}.") from error
    except ValueError as error:
        raise StorageError(f"{uri} has an unknown scheme, {scheme}:// ({error}).") from error
    if hasattr(client, "retries"):
        # s3fs retries on top of botocore and we retry on top of s3fs: one loop with our waits is enough.
        client.retries = 1
    if scheme in _S3:
        quicken_times(client)
        # s3fs takes `?versionId=` off every name, and would write `a?versionId=1` to `a`.
        client.split_path = lambda path: (*client._find_bucket_key(client._strip_protocol(path).lstrip("/")), None)
    return client
