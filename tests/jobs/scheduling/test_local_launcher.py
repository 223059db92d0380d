"""Runs as processes on the scheduler's machine: started once, found again, stopped, and detected when killed."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.scheduling.engine import plan_firing
from jobs.scheduling.firing import Firing
from jobs.scheduling.launcher import LaunchStatus
from jobs.scheduling.local_launcher import LocalLauncher, firing_folder
from jobs.scheduling.schedule import build_schedule
from tests.support.paths import PROGRAMS

STAND_IN = (sys.executable, str(PROGRAMS / "stand_in_runner.py"))
NIGHT = datetime(2026, 11, 23, 2, 30, tzinfo=UTC)


@pytest.fixture
def firing(tmp_path: Path) -> Firing:
    """A firing whose input is an empty folder."""
    (tmp_path / "in").mkdir()
    spec = tmp_path / "job.yaml"
    spec.write_text(f"input: {{uri: {tmp_path}/in}}\noutput: {{uri: {tmp_path}/out}}\nmodel: {{weights: untrained}}\n")
    schedule = build_schedule({"name": "nightly", "spec": str(spec), "cron": "30 2 * * *"})
    return plan_firing(schedule, NIGHT, "cron")


@pytest.fixture
def runs(tmp_path: Path, firing: Firing) -> Iterator[Callable[[], LocalLauncher]]:
    """Create a launcher, as each scheduler does; the runs that it started end with the test."""
    launchers: list[LocalLauncher] = []

    def make() -> LocalLauncher:
        launchers.append(LocalLauncher(tmp_path, STAND_IN))
        return launchers[-1]

    yield make
    for launcher in launchers:
        launcher.stop(firing, is_forced=True)
        see(launcher, firing, until="ended, gone")


def see(launcher: LocalLauncher, firing: Firing, until: str) -> LaunchStatus:
    give_up = time.monotonic() + 20
    while (status := launcher.check(firing)).state not in until and time.monotonic() < give_up:
        time.sleep(0.02)
    return status


def process_of(tmp_path: Path, firing: Firing) -> int:
    file = firing_folder(tmp_path, firing.name) / "process.txt"
    give_up = time.monotonic() + 20
    while not (file.exists() and file.read_text()) and time.monotonic() < give_up:
        time.sleep(0.02)
    return int(file.read_text())


def starts_of(tmp_path: Path, firing: Firing) -> int:
    return (firing_folder(tmp_path, firing.name) / "starts.txt").read_text().count("started")


def test_starting_a_firing_is_idempotent(runs: Callable[[], LocalLauncher], firing: Firing, tmp_path: Path) -> None:
    launcher = runs()
    launcher.start(firing)
    # Another scheduler, after the first one died before it could write down that it had started.
    process = process_of(tmp_path, firing)
    assert runs().start(firing) == str(process)
    (firing_folder(tmp_path, firing.name) / "go").touch()
    ended = see(launcher, firing, until="ended")
    assert (ended.state, ended.ending.outcome, ended.ending.counts) == ("ended", "complete", {"images": 3})
    assert runs().start(firing) == str(process)
    assert runs().check(firing).state == "ended"
    assert starts_of(tmp_path, firing) == 1


def test_another_scheduler_finds_it_and_can_stop_it(
    runs: Callable[[], LocalLauncher], firing: Firing, tmp_path: Path
) -> None:
    launcher = runs()
    launcher.start(firing)
    process_of(tmp_path, firing)
    successor = runs()
    assert successor.check(firing).state == "going"
    successor.stop(firing, is_forced=False)
    assert see(successor, firing, until="ended").ending.outcome == "interrupted"


def test_a_killed_run_is_gone_and_can_be_started_again(
    runs: Callable[[], LocalLauncher], firing: Firing, tmp_path: Path
) -> None:
    launcher = runs()
    launcher.start(firing)
    os.kill(process_of(tmp_path, firing), signal.SIGKILL)
    assert see(launcher, firing, until="gone").state == "gone"
    launcher.start(firing)
    process_of(tmp_path, firing)
    assert launcher.check(firing).state == "going"
    assert starts_of(tmp_path, firing) == 2


def test_a_firing_that_was_never_started_is_gone(runs: Callable[[], LocalLauncher], firing: Firing) -> None:
    assert runs().check(firing).state == "gone"
    runs().stop(firing, is_forced=False)


def test_a_run_that_cannot_begin_ends_with_its_own_message(firing: Firing, tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path)
    launcher.start(firing)
    ended = see(launcher, firing, until="ended, gone")
    assert ended.state == "ended"
    assert (ended.ending.outcome, ended.ending.exit_code) == ("failed", 2)
    assert ended.ending.reason == f"There are no images in {tmp_path}/in."
    log = (firing_folder(tmp_path, firing.name) / "log.txt").read_text()
    assert ended.ending.reason in log


def test_the_job_spec_is_read_again_each_time(
    runs: Callable[[], LocalLauncher], firing: Firing, tmp_path: Path
) -> None:
    launcher = runs()
    launcher.start(firing)
    process_of(tmp_path, firing)
    spec = Path(str(firing.schedule.spec))
    spec.write_text(spec.read_text() + "retry: {max_attempts: 7}\n")
    later = replace(firing, name="nightly-20261124-023000")
    launcher.start(later)
    assert "max_attempts: 4" in (firing_folder(tmp_path, firing.name) / "job.yaml").read_text()
    assert "max_attempts: 7" in (firing_folder(tmp_path, later.name) / "job.yaml").read_text()
    process_of(tmp_path, later)
    launcher.stop(later, is_forced=True)
    assert see(launcher, later, until="gone").state == "gone"


def test_a_run_imports_nothing_from_the_folder_of_the_scheduler(
    tmp_path: Path, firing: Firing, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("jobs", "pipeline", "types"):
        (here / f"{name}.py").write_text("raise ImportError('imported from the current folder')")
    monkeypatch.chdir(here)
    launcher = LocalLauncher(tmp_path)
    launcher.start(firing)
    status = see(launcher, firing, until="ended, gone")
    # The input holds no image, which is for the run itself to say.
    assert (status.state, status.ending.exit_code) == ("ended", 2)
