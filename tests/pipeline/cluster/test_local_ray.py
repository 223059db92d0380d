"""The folder and the processes of a local Ray, without starting one."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.cluster import local_ray
from pipeline.cluster.local_ray import (
    OWNER_FILE,
    RayThread,
    choose_base,
    end_processes,
    ray_folder,
    remove_dead_folders,
    unused_services_left_out,
)
from pipeline.errors import RunError
from pipeline.runs.process_id import identify_process
from pipeline.signals import StopRequest


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary folders, short enough whatever its name is."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(local_ray, "MAX_SOCKET_PATH", 1000)
    return tmp_path


def left_by(base: Path, process: str, name: str = "htc-012345", host: str | None = None) -> Path:
    folder = base / name
    (folder / "ray" / "session_1").mkdir(parents=True)
    owner = {"host": host or socket.gethostname(), "process": process}
    (folder / OWNER_FILE).write_text(json.dumps(owner))
    return folder


def dead_process() -> str:
    boot, _, started = identify_process().rsplit(" ", 2)
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return f"{boot} {int(child.stdout)} {started}"


def test_only_its_owner_may_enter_the_folder_and_it_is_removed_afterwards(base: Path) -> None:
    with ray_folder() as folder:
        assert folder.parent == base
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "ray").mkdir()
    assert list(base.iterdir()) == []


def test_the_folder_is_removed_after_an_exception_as_well(base: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ray_folder():
        raise KeyboardInterrupt
    assert list(base.iterdir()) == []


def test_the_folder_is_kept_when_that_is_requested(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local_ray.KEEP_VARIABLE, "1")
    with ray_folder() as folder:
        (folder / OWNER_FILE).write_text(json.dumps({"host": socket.gethostname(), "process": dead_process()}))
    remove_dead_folders(base)
    assert list(base.iterdir()) == [folder]


@pytest.mark.skipif(not identify_process(), reason="this system does not report when a process was started")
def test_the_folder_of_a_killed_process_is_removed_by_the_next_one(base: Path) -> None:
    left_by(base, dead_process())
    with ray_folder() as folder:
        assert [each.name for each in base.iterdir()] == [folder.name]


@pytest.mark.parametrize("case", ["alive", "other host", "other boot", "other name", "link", "no owner", "nonsense"])
def test_folders_that_may_belong_to_a_live_process_stay(base: Path, case: str) -> None:
    match case:
        case "alive":
            kept = left_by(base, identify_process())
        case "other host":
            kept = left_by(base, dead_process(), host="elsewhere")
        case "other boot":
            kept = left_by(base, "b0 pid:[1] 123 456")
        case "other name":
            kept = left_by(base, dead_process(), name="htc-photos")
        case "link":
            kept = base / "htc-abcdef"
            kept.symlink_to(left_by(base / "elsewhere", dead_process()))
        case "no owner":
            kept = base / "htc-abcdef"
            (kept / "photos").mkdir(parents=True)
            os.utime(kept, (0, 0))
        case _:
            kept = base / "htc-abcdef"
            kept.mkdir()
            (kept / OWNER_FILE).write_text("[1]")
    remove_dead_folders(base)
    assert (kept / "").exists()


def test_an_old_folder_without_an_owner_is_removed(base: Path) -> None:
    for name, age_s in (("htc-000001", 0.0), ("htc-000002", 2 * local_ray.MIN_AGE_WITHOUT_OWNER_S)):
        (base / name).mkdir()
        os.utime(base / name, (time.time() - age_s,) * 2)
    remove_dead_folders(base)
    assert [each.name for each in base.iterdir()] == ["htc-000001"]


def test_a_folder_with_a_long_name_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(local_ray.tempfile, "gettempdir", lambda: str(long))
    assert len(str(choose_base())) <= local_ray.MAX_SOCKET_PATH - local_ray.LONGEST_BELOW_BASE


def test_no_usable_folder_is_one_sentence(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "MAX_SOCKET_PATH", 0)
    with pytest.raises(RunError, match="TMPDIR"):
        choose_base()


def test_only_the_processes_of_the_folder_are_ended(base: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with ray_folder() as folder:
        its, others = (subprocess.Popen([*sleep, word]) for word in (f"--dir={folder}/ray", "--dir=/elsewhere"))
        end_processes(folder)
        its.wait(10)
        assert others.poll() is None
        others.kill()
        others.wait()
    assert not [child for child in psutil.Process().children() if child.pid in {its.pid, others.pid}]


def test_an_exception_while_connecting_is_raised_by_wait() -> None:
    def fail() -> None:
        raise RunError("no room")

    thread = RayThread(fail)
    with pytest.raises(RunError, match="no room"):
        thread.wait()
    assert not thread.is_connected


def test_a_request_to_stop_does_not_wait_for_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "START_PATIENCE_S", 0.0)
    is_over = threading.Event()
    with StopRequest() as stop:
        thread = RayThread(lambda: bool(is_over.wait(60)))
        stop.signal_name = "SIGTERM"
        with pytest.raises(RunError, match="Stopped"):
            thread.wait()
        assert thread.is_connecting
        is_over.set()
        thread.give_up()
        assert thread.is_connected
    thread.end()


def test_services_that_nothing_uses_are_left_out_only_in_the_block() -> None:
    from ray._private.node import Node

    before = [getattr(Node, name) for name in local_ray.UNUSED_SERVICES]
    during = []

    def start() -> None:
        with unused_services_left_out():
            # The arguments are those of the method that is left out.
            during.append(Node.start_api_server(None, include_dashboard=False, raise_on_failure=False))
            raise RunError("no room")

    with pytest.raises(RunError, match="no room"):
        start()
    assert during == [None]
    assert [getattr(Node, name) for name in local_ray.UNUSED_SERVICES] == before


def test_a_release_of_ray_without_such_a_service_starts_what_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.node import Node

    monkeypatch.setattr(local_ray, "UNUSED_SERVICES", ("start_nothing_known",))
    with unused_services_left_out():
        assert not hasattr(Node, "start_nothing_known")
    assert not hasattr(Node, "start_nothing_known")
