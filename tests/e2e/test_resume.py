"""Runs that are stopped half-way, by a signal or a kill, and resumed by the same command."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.job_spec.job import JobSpec
from pipeline.output.results import open_results
from tests.support.builders.e2e_specs import image_rows, instance_rows, spec_with, statuses
from tests.support.fakes.models import write_images
from tests.support.paths import PROGRAMS
from tests.support.processes import is_any_alive

SCRIPT = PROGRAMS / "fake_run.py"
# Eight shards of four images: two committed and four in flight leave two that were not begun.
IMAGES = 32
PATIENCE_S = 60.0
# Chosen so that the other half still takes many seconds when the first is done.
SLOW_S = 0.4


def driver_of(folder: Path, delay_s: float) -> list[str]:
    return [sys.executable, str(SCRIPT), str(folder), str(delay_s)]


@contextmanager
def started(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A slow driver in its own process group, its output in folder/log; killed on leaving if it is alive."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(driver_of(folder, SLOW_S), stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(is_so: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(f"not so after {PATIENCE_S} s; the log says:\n{(folder / 'log').read_text()}")
        time.sleep(0.05)


def committed(folder: Path) -> dict[Path, int]:
    """Return the committed parts with the time when they were written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "out" / "images").glob("run=*/part-*.parquet")}


def resume(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(driver_of(folder, 0.0), capture_output=True, text=True, timeout=120, check=False)


def check_resumed_tables(folder: Path, before: dict[Path, int], log: str) -> None:
    """Check that every image has one row, and that nothing was done twice."""
    spec = spec_with(folder)
    rows = image_rows(spec)
    assert sorted(str(row["uri"]) for row in rows) == sorted(map(str, (folder / "in").iterdir()))
    assert set(statuses(spec).values()) == {"ok"}
    assert len({(row["image_id"], row["instance"]) for row in instance_rows(spec)}) == IMAGES
    check_maps(spec)
    after = committed(folder)
    assert {path: after[path] for path in before} == before
    assert f"{IMAGES // 4 - len(before)} of {IMAGES // 4} shards to go" in log
    assert not [path for path in (folder / "out").rglob("*") if path.name.startswith(".")]


def check_maps(spec: JobSpec) -> None:
    """Check that each image has its map and its segment once."""
    results = open_results(spec.output.uri)
    pixels = {row["image_id"]: row["width"] * row["height"] for row in results.images().to_pylist()}
    areas: Counter[int] = Counter()
    for row in results.semantic().to_pylist():
        areas[row["image_id"]] += row["area"]
    assert areas == pixels
    assert sorted(results.panoptic().column("image_id").to_pylist()) == sorted(pixels)


def test_a_driver_killed_with_its_whole_group_resumes(tmp_path: Path) -> None:
    write_images(tmp_path / "in", IMAGES)
    with started(tmp_path) as process:
        wait_until(lambda: len(committed(tmp_path)) >= 2, tmp_path)
        family = family_of(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # Workers have their own process groups and end when their raylet is gone; until then one may still commit.
    wait_until(lambda: not is_any_alive(family), tmp_path)
    before = committed(tmp_path)
    assert 2 <= len(before) < IMAGES // 4
    resumed = resume(tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    check_resumed_tables(tmp_path, before, resumed.stdout)


@pytest.fixture
def ray_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The parent of Ray's temporary folders; short, because its sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="htc-") as name:
        monkeypatch.setenv("RAY_TMPDIR", name)
        yield Path(name)


def family_of(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_driver_stopped_while_ray_starts_leaves_a_summary_and_nothing_else(
    tmp_path: Path, ray_base: Path, number: signal.Signals
) -> None:
    write_images(tmp_path / "in", 4)
    with started(tmp_path) as process:
        # Its log folder exists before any of its processes is ready.
        wait_until(lambda: any(ray_base.glob("htc-*/ray/session_2*/logs")), tmp_path)
        family = family_of(process)
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE_S) == 1
    # The input may not be listed to its end by then, which the sentence says first.
    assert "\ninterrupted: " in (tmp_path / "log").read_text()
    (summary,) = (tmp_path / "out" / "runs").glob("*/summary.json")
    assert json.loads(summary.read_text())["status"] == "interrupted"
    assert list(ray_base.iterdir()) == []
    wait_until(lambda: not is_any_alive(family), tmp_path)
    assert not list(tmp_path.glob("out/runs/*/lease.json"))


def test_the_temporary_folder_of_a_killed_run_is_removed_by_the_next_run(tmp_path: Path, ray_base: Path) -> None:
    write_images(tmp_path / "in", 4)
    with started(tmp_path) as process:
        wait_until(lambda: any(ray_base.glob("htc-*/ray/session_2*/logs")), tmp_path)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (left,) = ray_base.iterdir()
    assert resume(tmp_path).returncode == 0
    assert not left.exists()
    assert list(ray_base.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_driver_asked_to_stop_stops_cleanly_and_is_resumed(tmp_path: Path, number: signal.Signals) -> None:
    write_images(tmp_path / "in", IMAGES)
    with started(tmp_path) as process:
        wait_until(lambda: len(committed(tmp_path)) >= 2, tmp_path)
        family = family_of(process)
        if number == signal.SIGINT:
            # Like a terminal: to the whole foreground group.
            os.killpg(process.pid, number)
        else:
            process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 1
    wait_until(lambda: not is_any_alive(family), tmp_path)
    assert "interrupted: Stopped with" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    (summary,) = (tmp_path / "out" / "runs").glob("*/summary.json")
    assert json.loads(summary.read_text())["status"] == "interrupted"
    before = committed(tmp_path)
    assert 2 <= len(before) < IMAGES // 4
    resumed = resume(tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    check_resumed_tables(tmp_path, before, resumed.stdout)
    assert json.loads(summary.read_text())["status"] == "complete"
