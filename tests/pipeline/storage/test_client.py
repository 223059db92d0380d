"""Options of the clients of remote stores: from the spec, and set by the program."""

import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from pipeline.errors import SpecError, TransientStorageError
from pipeline.job_spec.job import load_spec
from pipeline.storage import client
from pipeline.storage import retry as retrying
from pipeline.storage.client import client_options, read_concurrency
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.servers.http_server import serving


@pytest.mark.parametrize(("asked", "remote", "local"), [("auto", 32, 16), (5, 5, 5), (200, 200, 200)])
def test_there_are_more_connections_than_concurrent_reads(asked: Any, remote: int, local: int) -> None:
    section = StorageSection(read_concurrency=asked)
    assert read_concurrency(section, is_local=False) == remote
    assert read_concurrency(section, is_local=True) == local
    config = client_options("s3", section)["config_kwargs"]
    assert config["max_pool_connections"] > remote
    # The program itself makes the only retries.
    assert config["retries"] == {"total_max_attempts": 1}


@pytest.mark.parametrize(
    ("key", "value"), [("read_concurrency", 0), ("read_concurrency", "many"), ("patience_s", -1), ("hedge_reads", 2)]
)
def test_invalid_settings_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SpecError, match=rf"storage\.{key} must be"):
        load_spec(None, {"input.uri": "in", "output.uri": "out", f"storage.{key}": value})


def test_a_specs_options_reach_the_client_of_their_scheme_and_no_other() -> None:
    section = StorageSection(
        endpoint_url="http://127.0.0.1:8333",
        options={
            "s3": {"requester_pays": True, "config_kwargs": {"s3": {"addressing_style": "path"}, "read_timeout": 7}},
            "gcs": {"project": "night", "endpoint_url": "http://127.0.0.1:4443"},
        },
    )
    for scheme in ("s3", "s3a"):
        options = client_options(scheme, section)
        assert options["requester_pays"] is True
        assert options["endpoint_url"] == "http://127.0.0.1:8333"
        config = options["config_kwargs"]
        assert (config["s3"], config["read_timeout"]) == ({"addressing_style": "path"}, 7)
        assert config["retries"] == {"total_max_attempts": 1}
    gcs = client_options("gs", section)
    assert gcs.pop("requests_timeout").sock_read == client.READ_TIMEOUT_S
    assert gcs == {"project": "night", "endpoint_url": "http://127.0.0.1:4443"}
    assert client_options("abfs", section) == {"anon": False}
    assert client_options("https", section).keys() == {"client_kwargs"}


@pytest.mark.parametrize(
    ("scheme", "said"), [("s3", {"anon": True}), ("gs", {"token": "anon"}), ("az", {"anon": True})]
)
def test_anonymous_is_translated_for_each_store(scheme: str, said: dict[str, object]) -> None:
    assert said.items() <= client_options(scheme, StorageSection(anonymous=True)).items()


def test_what_the_spec_does_not_set_is_left_to_fsspecs_own_settings() -> None:
    assert not {"anon", "endpoint_url"} & client_options("s3", StorageSection()).keys()


@pytest.mark.parametrize("scheme", ["s3", "gs", "http"])
def test_a_server_that_never_answers_is_given_up(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        section = StorageSection(endpoint_url=f"http://{address}", patience_s=0, anonymous=scheme == "gs")
        uri = f"http://{address}/a.jpg" if scheme == "http" else f"{scheme}://bucket/a.jpg"
        with pytest.raises(TransientStorageError):
            Storage(section).read(uri)


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_request_to_google_cloud_storage_is_repeated_by_htc_alone(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    requests = []

    class Overloaded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)
    with serving(Overloaded) as address:
        options = {"gs": {"endpoint_url": address, "project": "tests"}}
        storage = Storage(StorageSection(anonymous=True, options=options, patience_s=0))
        with pytest.raises(TransientStorageError):
            storage.stat("gs://bucket/a.jpg")
        assert requests.count("/storage/v1/b/bucket/o/a.jpg") == retrying.ATTEMPTS
        type(storage.client("gs://bucket/a.jpg")[0]).clear_instance_cache()


def test_google_cloud_storage_is_asked_for_no_kinds_of_buckets_where_another_package_imported_gcsfs_first() -> None:
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    code = """
import gcsfs
from pipeline.storage.client import open_client
from pipeline.storage.config import StorageSection
client = open_client("gs", StorageSection(anonymous=True))
print(gcsfs.GCSFileSystem.__name__, type(client).__name__)
"""
    environment = {key: value for key, value in os.environ.items() if key != "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "GCSFileSystem"
