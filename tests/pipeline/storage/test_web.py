"""Images by URL from many hosts: a host that is gone, refuses or breaks fails its own images only."""

import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.errors import NotFoundError, ObjectTooLargeError, TransientStorageError, WebHostError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection
from pipeline.messages import ImageFailure
from pipeline.storage import retry as retrying
from pipeline.storage.storage import Storage
from pipeline.worker.error_boundaries import image_boundary
from tests.support.servers.http_server import serving

NO_SUCH_HOST = "http://nowhere.invalid"
REFUSES = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)


def tar_of(name: str, payload: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        header = tarfile.TarInfo(name)
        header.size = len(payload)
        tar.addfile(header, io.BytesIO(payload))
    return sink.getvalue()


class Host(BaseHTTPRequestHandler):
    """Answers a path that begins with a number with that status; `/endless` never ends."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        """Answer with the length only."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer as the path says."""
        self.asked[self.path] += 1
        name = self.path.strip("/")
        if name == "endless.jpg":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            for _ in range(64):
                self.wfile.write(bytes(2**20))
            return
        status = int(name[:3]) if name[:3].isdigit() else 200
        body = tar_of("m.jpg", b"member") if name.endswith(".tar") else f"body of {name}".encode()
        begin, _, end = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        whole = len(body)
        if begin and status == 200:
            status, body = 206, body[int(begin) : int(end) + 1 if end else None]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(body) - 1}/{whole}")
        self.send_header("ETag", '"1"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def host() -> Iterator[str]:
    Host.asked.clear()
    with serving(Host) as url:
        yield url


def outcome(storage: Storage, url: str) -> bytes | ImageFailure:
    """The outcome of an image in a shard's attempt that is not the last."""
    return image_boundary(url, lambda: read_image(ImageRef(url), storage, max_bytes=2**22))


@pytest.mark.parametrize(
    ("url", "status", "reason"),
    [
        (f"{NO_SUCH_HOST}/a.jpg", "failed", "nowhere.invalid"),
        (f"{REFUSES}/a.jpg", "failed", "127.0.0.1:9"),
        ("{host}/403.jpg", "failed", "No permission to read {host}/403.jpg; check that the URL is public, or signed."),
        ("{host}/451.jpg", "failed", "451"),
        ("{host}/500.jpg", "failed", "500"),
        ("{host}/404.jpg", "missing", "{host}/404.jpg does not exist."),
        ("{host}/410.jpg", "missing", "{host}/410.jpg does not exist."),
        ("{host}/endless.jpg", "too_large", "bytes encoded, more than images.max_bytes = 4194304"),
    ],
)
def test_a_url_that_cannot_be_read_fails_alone(host: str, url: str, status: str, reason: str) -> None:
    storage = Storage()
    other = host.replace("127.0.0.1", "localhost")
    assert outcome(storage, f"{other}/1.jpg") == b"body of 1.jpg"
    failure = outcome(storage, url.format(host=host))
    assert isinstance(failure, ImageFailure)
    assert (failure.status, reason.format(host=host) in failure.reason) == (status, True), failure.reason
    assert outcome(storage, f"{other}/2.jpg") == b"body of 2.jpg"


def test_a_process_that_reaches_no_host_blames_none() -> None:
    for url in (f"{NO_SUCH_HOST}/a.jpg", f"{REFUSES}/a.jpg"):
        with pytest.raises(TransientStorageError):
            outcome(Storage(), url)


def test_no_request_is_made_to_a_host_that_was_given_up(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()
    broken = host.replace("127.0.0.1", "localhost")
    outcome(storage, f"{host}/1.jpg")
    assert isinstance(outcome(storage, f"{broken}/500.jpg"), ImageFailure)
    asked = Host.asked["/500.jpg"]
    assert asked == retrying.ATTEMPTS
    failure = outcome(storage, f"{broken}/500.jpg")
    assert isinstance(failure, ImageFailure)
    assert failure.reason.startswith("localhost:")
    assert Host.asked["/500.jpg"] == asked
    monkeypatch.setattr("pipeline.storage.web.PAUSE_S", 0.0)
    assert outcome(storage, f"{broken}/2.jpg") == b"body of 2.jpg"


def test_containers_of_other_hosts_are_listed_when_one_is_gone(host: str, tmp_path: Path) -> None:
    storage = Storage()
    listing = tmp_path / "urls.txt"
    listing.write_text(f"{host}/1.tar\n{REFUSES}/2.tar\n{host}/3.jpg\n{host}/404.tar\n{host}/5.tar\n")
    refs = list(list_images(InputSection(uri=str(listing)), storage))
    assert [ref.uri for ref in refs] == [
        f"tar://m.jpg::{host}/1.tar",
        f"{REFUSES}/2.tar",
        f"{host}/3.jpg",
        f"{host}/404.tar",
        f"tar://m.jpg::{host}/5.tar",
    ]
    assert "127.0.0.1:9" in (refs[1].problem or "")
    assert [read_image(refs[number], storage) for number in (0, 4)] == [b"member"] * 2


def test_ranges_versions_and_size_limits(host: str) -> None:
    storage = Storage()
    uri = f"{host}/a.jpg"
    assert (storage.read(uri, 5, 2), storage.read(uri, 8)) == (b"of", b"a.jpg")
    assert storage.fetch(uri).etag == "1"
    with storage.open(uri) as file:
        file.seek(5)
        assert file.read() == b"of a.jpg"
    with pytest.raises(ObjectTooLargeError):
        storage.fetch(uri, max_bytes=5)
    with pytest.raises(NotFoundError):
        storage.read(f"{host}/404.jpg")
    with pytest.raises(WebHostError):
        storage.read(f"{host}/403.jpg")
