"""The scheduler under the real clock, with real runs of the real network."""

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from pictures import encoded, gradient

from jobs.scheduling.store import ScheduleStore
from pipeline.tables import open_results

PATIENCE_S = 180


def htc(home: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "jobs", *arguments, "--home", str(home)], check=True, timeout=PATIENCE_S)


def start_scheduler(home: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs", "scheduler", "--home", str(home), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job spec for two small photos."""
    (tmp_path / "photos").mkdir()
    for name in "ab":
        (tmp_path / "photos" / f"{name}.png").write_bytes(encoded(gradient(), "PNG"))
    spec = tmp_path / "job.yaml"
    spec.write_text(
        f"input: {{uri: {tmp_path}/photos}}\noutput: {{uri: {tmp_path}/out}}\ncompute: {{workers: 1}}\n"
        "model: {preset: htc_lite0_fpn, weights: untrained, score_threshold: 0.99}\n"
    )
    return spec


# A minute at most until the next full one, and the run.
@pytest.mark.slow
def test_a_minute_comes_and_its_run_outlives_the_scheduler_that_began_it(job: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    hook = f"sh -c 'echo $HTC_EVENT $HTC_STATUS $HTC_IMAGES >> {tmp_path}/told'"
    htc(home, "schedule", "add", "minutely", str(job), "--cron", "* * * * *", "--exit-hook", hook)
    with start_scheduler(home) as scheduler:
        assert scheduler.stderr is not None
        try:
            begun = next(line for line in scheduler.stderr if "has begun" in line)
        finally:
            scheduler.send_signal(signal.SIGKILL)
    htc(home, "schedule", "pause", "minutely")
    with start_scheduler(home, "--once") as successor:
        try:
            _, said = successor.communicate(timeout=PATIENCE_S)
        finally:
            successor.kill()
    assert successor.returncode == 0, said
    with closing(ScheduleStore(home)) as store:
        (firing,) = store.history(None, 10)
    assert firing.name in begun
    assert firing.starts == 1
    assert firing.ending is not None
    assert (firing.ending.outcome, firing.ending.exit_code, firing.ending.counts["images"]) == ("complete", 0, 2)
    assert (tmp_path / "told").read_text() == "end complete 2\n"
    results = open_results(str(tmp_path / "out"))
    assert {row["run"] for row in results.images(None).to_pylist()} == {firing.name}
