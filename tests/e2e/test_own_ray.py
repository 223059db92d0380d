"""A local Ray answers only on this machine, and only with its token."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.cluster.connection import ray_cluster
from pipeline.driver.progress import LineProgress
from pipeline.driver.run_job import run
from pipeline.job_spec.job import ComputeSection
from tests.support.builders.e2e_specs import spec_with, statuses
from tests.support.fakes.models import LoadFake, write_images

CLIENT = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print('inside', ray.cluster_resources())"
PATIENCE_S = 120.0


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of Ray's files and logs; its sockets are in it, and a socket's path is short."""
    folder = tempfile.mkdtemp(prefix="htc-own-ray-")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def client(address: str, **changes: str) -> "subprocess.Popen[str]":
    """Another program that knows the address."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | changes
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def listening() -> set[str]:
    """Return the addresses on which processes of this Ray listen."""
    found = set()
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found |= {at.laddr.ip.removeprefix("::ffff:") for at in each.net_connections() if at.status == "LISTEN"}
    return found


def programs() -> str:
    """Return the command lines of this Ray's processes."""
    lines = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            lines.append(" ".join(each.cmdline()))
    return "\n".join(lines)


@pytest.mark.slow
def test_a_client_without_the_token_is_refused_and_the_token_is_written_nowhere(
    tmp_path: Path, ray_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    write_images(tmp_path / "in", 8)
    spec = spec_with(tmp_path)
    with ray_cluster(ComputeSection(workers=2, cpus_per_worker=1.0), shards=2):
        token = os.environ["RAY_AUTH_TOKEN"]
        address = ray.get_runtime_context().gcs_address
        assert run(spec, progress=LineProgress(sys.stdout), load_model=LoadFake()).exit_code == 0
        assert listening() == {"127.0.0.1"}
        assert "raylet" in programs()
        assert not re.search(r"/(monitor|log_monitor|dashboard)\.py", programs())
        clients = [
            client(address, RAY_AUTH_MODE="disabled"),
            client(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
            client(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token),
        ]
        said = [each.communicate(timeout=PATIENCE_S) for each in clients]
        written = [path for folder in (tmp_path, ray_folder) for path in folder.rglob("*") if path.is_file()]
        assert any("gcs_server" in path.name for path in written)
        assert [path for path in written if token.encode() in path.read_bytes()] == []
        (own,) = ray_folder.iterdir()
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert [each.returncode == 0 for each in clients] == [False, False, True]
    assert ["inside" in out for out, _ in said] == [False, False, True]
    assert "unauthenticated" in said[1][1].lower()
    assert set(statuses(spec).values()) == {"ok"}
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert list(ray_folder.iterdir()) == []
    assert token not in "".join(capfd.readouterr())
