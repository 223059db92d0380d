"""Headers of every request to S3: the session token, and requester pays."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import fsspec
import pytest

from pipeline.storage.cas_file import CasFile
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.servers.http_server import serving
from tests.support.servers.s3_server import WRITER

TOKEN = "temporary-session-token-of-a-role-0123456789"
LISTING = (
    b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>in/a</Key><Size>1</Size></Contents>"
    b"</ListBucketResult>"
)


class Recorder(BaseHTTPRequestHandler):
    """Grants every request and records its headers."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, dict[str, str]]] = []  # noqa: RUF012 - one server per test, emptied by it

    def do_HEAD(self) -> None:
        """Every name is a folder."""
        self._answer(404, b"")

    def do_GET(self) -> None:
        """A listing, or an object."""
        self._answer(200, LISTING if "list-type" in self.path else b"x")

    def do_PUT(self) -> None:
        """Accept it."""
        self._answer(200, b"")

    def do_DELETE(self) -> None:
        """Accept it."""
        self._answer(204, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture
def endpoint_url() -> Iterator[str]:
    Recorder.seen.clear()
    with serving(Recorder) as url:
        yield url


def test_every_request_has_the_session_token_and_requester_pays(
    endpoint_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (WRITER.environment() | {"AWS_SESSION_TOKEN": TOKEN}).items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    storage = Storage(StorageSection(endpoint_url=endpoint_url, options={"s3": {"requester_pays": True}}))
    assert [each.uri for each in storage.list("s3://bucket/in")] == ["s3://bucket/in/a"]
    assert storage.read("s3://bucket/in/a") == b"x"
    storage.write("s3://bucket/out/a", b"y")
    assert CasFile(storage, "s3://bucket/out/lease.json").create(b"z") == "1"
    storage.delete("s3://bucket/out/a")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert {"GET", "PUT", "DELETE"} <= {command for command, _ in Recorder.seen}
    for command, headers in Recorder.seen:
        assert headers.get("x-amz-security-token") == TOKEN, command
        assert headers.get("x-amz-request-payer") == "requester", command
