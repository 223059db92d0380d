"""Reading from stores other than S3: versions, ranges and complete answers."""

import hashlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import IncompleteReadError, NotFoundError, ObjectTooLargeError, TransientStorageError
from pipeline.storage import retry as retrying
from pipeline.storage.config import StorageSection
from pipeline.storage.objects import ObjectData, ObjectInfo
from pipeline.storage.range_file import open_ranges
from pipeline.storage.storage import Storage

IMAGE = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves one image under every name; each of the next requests meets one of `faults`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.requests: list[str] = []

    def uri(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that hang up."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append("GET")
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault.isdigit():
            self.send_error(int(fault))
        elif fault == "cut":
            self.close_connection = True
        else:
            self._send(IMAGE[: 1000 if fault == "truncated" else None])

    def do_HEAD(self) -> None:
        self.server.requests.append("HEAD")
        self._send(b"")

    def _send(self, payload: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(IMAGE)))
        self.end_headers()
        self.wfile.write(payload)
        self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Stay silent."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_reads_are_retried_after_faults(server: Server) -> None:
    server.faults = ["500", "503", "cut", "truncated"]
    assert Storage().read(server.uri("a.jpg")) == IMAGE
    assert server.requests == ["GET"] * 5


def test_a_missing_url_is_reported_after_one_request(server: Server) -> None:
    server.faults = ["404"]
    with pytest.raises(NotFoundError):
        Storage().read(server.uri("a.jpg"))
    assert server.requests == ["GET"]


def test_ranges_are_cut_out_of_a_server_that_ignores_them(server: Server) -> None:
    assert Storage().read(server.uri("a.jpg"), 100, 7) == IMAGE[100:107]


def test_an_answer_shorter_than_listed_is_refused(server: Server) -> None:
    storage = Storage(StorageSection(patience_s=0))
    listed = ObjectInfo(server.uri("a.jpg"), len(IMAGE) + 1, None)
    with pytest.raises(IncompleteReadError, match="10240 of 10241 bytes"):
        storage.fetch(listed.uri, listed=listed)
    with pytest.raises(ObjectTooLargeError):
        storage.fetch(listed.uri, listed=listed, max_bytes=100)


@pytest.fixture
def versioned(monkeypatch: pytest.MonkeyPatch) -> str:
    """An object of a store that sends versions with listings and not with reads."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    info = MemoryFileSystem.info

    def info_with_etag(client: Any, path: str, **options: Any) -> dict[str, Any]:
        digest = hashlib.md5(client.cat_file(path)).hexdigest()
        return {**info(client, path, **options), "etag": f'"{digest}"'}

    monkeypatch.setattr(MemoryFileSystem, "info", info_with_etag)
    Storage().write("memory://bucket/a.jpg", b"then")
    return "memory://bucket/a.jpg"


def test_the_version_is_requested_where_one_was_listed(versioned: str) -> None:
    listed = Storage().stat(versioned)
    assert Storage().fetch(versioned, listed=listed) == ObjectData(b"then", listed.etag)
    assert Storage().fetch(versioned) == ObjectData(b"then", None)
    Storage().write(versioned, b"now, longer")
    found = Storage().fetch(versioned, listed=listed)
    assert found == ObjectData(b"now, longer", Storage().stat(versioned).etag)
    assert found.etag != listed.etag


@given(
    payload=st.binary(max_size=300),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(-50, 350), st.integers(-1, 120)), max_size=20),
)
def test_ranges_read_as_a_file_does(payload: bytes, steps: list[tuple[int, int, int]]) -> None:
    def read(offset: int, length: int) -> ObjectData:
        return ObjectData(payload[offset : offset + length], "v")

    plain = io.BytesIO(payload)
    with open_ranges(ObjectInfo("s3://b/a", len(payload), "v"), len(payload), read) as file:
        for whence, offset, count in steps:
            origin = (0, plain.tell(), len(payload))[whence]
            if origin + offset < 0:
                continue
            assert file.seek(offset, whence) == plain.seek(origin + offset)
            assert file.read(count) == plain.read(count)
            assert file.tell() == plain.tell()


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed() -> None:
    versions = iter(["v1", "v2"])

    def read(offset: int, length: int) -> ObjectData:
        return ObjectData(bytes(length), next(versions))

    size = 4 * 2**20
    with open_ranges(ObjectInfo("s3://b/a", size, "v1"), size, read) as file:
        assert file.read(100) == bytes(100)
        file.seek(3 * 2**20)
        with pytest.raises(TransientStorageError, match="s3://b/a was replaced while it was read"):
            file.read(100)
