"""Puts tests/ on the import path, so that every test can `import goldens`; the S3 server that tests share."""

import zlib
from collections.abc import Iterator

import fsspec
import pytest
from s3_server import WRITER, S3Server, ServerUnavailableError


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server, started when the first test asks for it; one per test process.

    Tests that use it carry `xdist_group("s3")`, so that one process of several starts it.
    """
    try:
        server = S3Server(tmp_path_factory.mktemp("s3"))
        server.start()
    except ServerUnavailableError as error:
        pytest.skip(f"no S3 server here: {error}")
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def s3_bucket(s3_server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of the test's own, `s3://...`; the environment holds the key that may write."""
    for name, value in WRITER.environment().items():
        monkeypatch.setenv(name, value)
    # Clients are shared in a process, and remember the key they were opened with.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield s3_server.make_bucket(f"htc-{zlib.crc32(request.node.nodeid.encode()):08x}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
