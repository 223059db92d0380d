"""Schedules on a machine that only schedules: no torch, no Ray."""

from pathlib import Path

import pytest

from tests.support.without_torch import run_without_torch


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a job spec for an empty folder of images."""
    (tmp_path / "in").mkdir()
    (tmp_path / "job.yaml").write_text(f"input: {{uri: {tmp_path}/in}}\noutput: {{uri: {tmp_path}/out}}\n")
    return tmp_path


def test_schedules_and_their_scheduler(home: Path) -> None:
    def schedule(*arguments: str) -> str:
        done = run_without_torch(*arguments, "--home", str(home))
        assert done.returncode == 0, done.stderr
        return done.stdout

    schedule("schedule", "add", "nightly", str(home / "job.yaml"), "--cron", "30 2 * * *")
    assert "At 02:30, every day, UTC" in schedule("schedule", "list")
    schedule("schedule", "run-now", "nightly")
    # The run is another process, which has what it needs.
    schedule("scheduler", "--once")
    assert "failed: There are no images in" in schedule("schedule", "history")


@pytest.mark.parametrize("command", ["schedule", "schedule add", "schedule history", "scheduler"])
def test_help_needs_nothing(command: str) -> None:
    done = run_without_torch(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: htc {command}")
