"""What a program and the processes below it use is counted, also after their parents have ended."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import process_meter
from benchmarks.process_meter import run_metered
from tests.support.processes import is_alive

# Computes for 0.3 CPU seconds, keeps 64 MiB, starts a process that outlives it, and ends.
BUSY = """
import subprocess, sys, time
kept = bytearray(b"x" * (64 << 20))
if len(sys.argv) > 1:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid)
while time.process_time() < 0.3:
    pass
time.sleep(0.5)
"""


@pytest.fixture(params=["group", "sampled"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of counting; the first only where this user may create a control group."""
    if request.param == "sampled":
        monkeypatch.setattr(process_meter, "_GROUPS", ())
    else:
        group = process_meter._open_group()
        group.close()
        if not group.is_exact:
            pytest.skip("control groups cannot be created here")
    return str(request.param)


def test_children_are_counted_and_those_left_behind_are_ended(counted: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    usage = run_metered([sys.executable, "-c", BUSY, "x"], log=log, environment=os.environ, folder=tmp_path)
    assert (usage.status, usage.was_ended, usage.is_exact) == (0, False, counted == "group")
    assert usage.cpu_s >= 0.25
    assert usage.peak_mib > 64
    assert usage.wall_s > 0.5
    child = int(log.read_text())
    deadline = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("way", ["limit", "until"])
def test_a_program_is_killed_at_its_limit_or_when_that_is_wanted(way: str, tmp_path: Path) -> None:
    usage = run_metered(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        log=tmp_path / "log.txt",
        environment=os.environ,
        folder=tmp_path,
        limit_s=0.3 if way == "limit" else None,
        until=lambda: way == "until",
    )
    assert usage.was_ended
    assert usage.status == -9


def test_an_interruption_leaves_no_process_and_no_group_behind(tmp_path: Path) -> None:
    def interrupt() -> bool:
        raise KeyboardInterrupt

    log = tmp_path / "log.txt"
    before = psutil.Process().children()
    with pytest.raises(KeyboardInterrupt):
        run_metered(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            log=log,
            environment=os.environ,
            folder=tmp_path,
            until=interrupt,
        )
    assert psutil.Process().children() == before
    assert [folder for root in process_meter._GROUPS for folder in root.glob(f"meter-{os.getpid()}-*")] == []
