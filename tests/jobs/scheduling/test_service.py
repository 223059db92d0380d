"""`htc scheduler` as a process: one per folder, it finds what is due, and exits quickly."""

import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path

import pytest

from jobs.scheduling.engine import plan_firing
from jobs.scheduling.firing import Ending, Firing
from jobs.scheduling.schedule import build_schedule
from jobs.scheduling.store import ScheduleStore
from tests.support.paths import PROGRAMS

Start = Callable[..., subprocess.Popen[str]]
PATIENCE_S = 30


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `htc scheduler` in the test's folder; processes that still run at the end are killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jobs", "scheduler", "--home", str(tmp_path), *arguments]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read the log until a line contains the words; return the log, or fail with it if the process ends first."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


def add(home: Path, *, cron: str = "0 0 1 1 *", **keys: object) -> None:
    (home / "in").mkdir(exist_ok=True)
    (home / "job.yaml").write_text(f"input: {{uri: {home}/in}}\noutput: {{uri: {home}/out}}\n")
    schedule = build_schedule({"name": "nightly", "spec": str(home / "job.yaml"), "cron": cron, **keys})
    with closing(ScheduleStore(home)) as store:
        store.put(schedule, datetime.now(UTC))


STAND_IN = """
import sys
from pathlib import Path
from jobs.scheduling import service
from jobs.scheduling.local_launcher import LocalLauncher

home, stand_in, *flags = sys.argv[1:]
service.LocalLauncher = lambda folder: LocalLauncher(folder, (sys.executable, stand_in))
service.run_scheduler(Path(home), local_runs=1, is_once="once" in flags, is_drained="drained" in flags)
"""


@pytest.fixture
def start_stand_in(tmp_path: Path) -> Iterator[Start]:
    """Start a scheduler whose runs last until there is a file `go`, with one requested run."""
    started: list[subprocess.Popen[str]] = []
    add(tmp_path)
    schedule = build_schedule({"name": "nightly", "spec": str(tmp_path / "job.yaml"), "cron": "0 0 1 1 *"})
    with closing(ScheduleStore(tmp_path)) as store:
        store.insert(plan_firing(schedule, datetime.now(UTC), "manual"))

    def run(*flags: str) -> subprocess.Popen[str]:
        stand_in = PROGRAMS / "stand_in_runner.py"
        command = [sys.executable, "-c", STAND_IN, str(tmp_path), str(stand_in), *flags]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    let_go(tmp_path)
    for process in started:
        process.kill()
        process.communicate()


def let_go(home: Path) -> None:
    """Let the runs that have begun end."""
    for folder in (home / "firings").iterdir():
        (folder / "go").touch()


def last_firing(home: Path) -> Firing:
    with closing(ScheduleStore(home)) as store:
        return store.history(None, 1)[0]


def test_a_second_scheduler_says_who_holds_the_folder(start: Start, tmp_path: Path) -> None:
    first = start()
    read_until(first, "scheduler of")
    second = start()
    _, said = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 2
    assert f"A scheduler is already running in {tmp_path} (process {first.pid} on " in said
    assert "--home" in said
    # A killed scheduler leaves no lock behind.
    first.send_signal(signal.SIGKILL)
    first.wait(PATIENCE_S)
    read_until(start(), "scheduler of")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_scheduler_cleanly(start: Start, number: int) -> None:
    process = start()
    read_until(process, "scheduler of")
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (0, "")


def test_the_running_scheduler_does_what_a_command_requests(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process = start()
    read_until(process, "scheduler of")
    add(tmp_path, notify={"exit_hook": ["sh", "-c", f"echo $HTC_STATUS $HTC_EXIT_CODE > {tmp_path}/received"]})
    asked = [sys.executable, "-m", "jobs", "schedule", "run-now", "nightly", "--home", str(tmp_path)]
    assert subprocess.run(asked, check=False).returncode == 0
    read_until(process, "failed - There are no images in")
    give_up = time.monotonic() + PATIENCE_S
    while not (tmp_path / "received").exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    assert (tmp_path / "received").read_text() == "failed 2\n"
    assert "No scheduler" not in capfd.readouterr().err


def test_once_runs_what_is_due_and_exits(start: Start, tmp_path: Path) -> None:
    add(tmp_path, catch_up_window_s=366 * 86_400)
    with closing(ScheduleStore(tmp_path)) as store:
        # As if the year had begun while no scheduler was running.
        store.decide("nightly", datetime.now(UTC) - timedelta(days=365), [])
    process = start("--once")
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    firing = last_firing(tmp_path)
    assert firing.kind == "caught_up"
    assert firing.ending == Ending("failed", f"There are no images in {tmp_path}/in.", 2)


def test_a_run_continues_when_the_scheduler_exits_and_the_next_one_finds_it(
    start_stand_in: Start, tmp_path: Path
) -> None:
    first = start_stand_in()
    read_until(first, "has begun")
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=PATIENCE_S)
    name = last_firing(tmp_path).name
    assert first.returncode == 0
    assert f"exiting; {name} continues, and the next scheduler finds it" in said
    let_go(tmp_path)
    second = start_stand_in("once")
    second.communicate(timeout=PATIENCE_S)
    assert last_firing(tmp_path).ending == Ending("complete", "", 0, {"images": 3})
    assert (tmp_path / "firings" / name / "starts.txt").read_text().count("started") == 1


def test_a_drained_scheduler_waits_for_the_run(start_stand_in: Start, tmp_path: Path) -> None:
    process = start_stand_in("drained")
    read_until(process, "has begun")
    process.send_signal(signal.SIGTERM)
    read_until(process, "waiting for the end of")
    let_go(tmp_path)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert last_firing(tmp_path).state == "ended"


OLD_JOB_STORE = """
CREATE TABLE apscheduler_jobs (
    id VARCHAR(191) NOT NULL, next_run_time FLOAT(25), job_state BLOB NOT NULL, PRIMARY KEY (id)
);
CREATE INDEX ix_apscheduler_jobs_next_run_time ON apscheduler_jobs (next_run_time);
"""


def test_a_folder_with_the_alarms_of_release_0_1_still_works(start: Start, tmp_path: Path) -> None:
    # That release kept the next time of each schedule in APScheduler's table, in the same file.
    add(tmp_path, catch_up_window_s=366 * 86_400)
    state = {"version": 1, "id": "nightly", "func": "jobs.scheduling.alarms:ring", "args": (), "kwargs": {}}
    alarm = ("nightly", datetime(2020, 1, 1, tzinfo=UTC).timestamp(), pickle.dumps(state))
    with closing(sqlite3.connect(tmp_path / "schedules.sqlite")) as connection:
        connection.executescript(OLD_JOB_STORE)
        connection.execute("INSERT INTO apscheduler_jobs VALUES (?, ?, ?)", alarm)
        connection.commit()
    with closing(ScheduleStore(tmp_path)) as store:
        store.decide("nightly", datetime.now(UTC) - timedelta(days=365), [])
    process = start("--once")
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert last_firing(tmp_path).kind == "caught_up"
    # Left in place, so that the earlier release can be installed again.
    with closing(sqlite3.connect(tmp_path / "schedules.sqlite")) as connection:
        assert connection.execute("SELECT * FROM apscheduler_jobs").fetchall() == [alarm]


def test_the_function_that_old_job_stores_name_can_be_imported() -> None:
    module, _, name = "jobs.scheduling.alarms:ring".partition(":")
    assert callable(getattr(import_module(module), name))


def test_a_schedule_fires_at_its_time_without_an_alarm(start: Start, tmp_path: Path) -> None:
    process = start()
    read_until(process, "scheduler of")
    # Added while the scheduler runs, and last decided a minute ago.
    add(tmp_path, cron="* * * * *")
    with closing(ScheduleStore(tmp_path)) as store:
        store.decide("nightly", datetime.now(UTC) - timedelta(minutes=1), [])
    read_until(process, "failed - There are no images in")
    firing = last_firing(tmp_path)
    assert firing.scheduled.second == 0
    assert firing.kind in {"cron", "caught_up"}
