"""Every file of the scheduler's state, damaged in every way: the other schedules fire, and it starts again."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from jobs.cli.program import main
from jobs.scheduling.endings import ending_of
from jobs.scheduling.engine import START_PATIENCE, Engine, plan_firing
from jobs.scheduling.firing import Ending, Firing, ending_from
from jobs.scheduling.home import is_scheduler_running, lock_holder, scheduler_lock
from jobs.scheduling.launcher import LaunchStatus
from jobs.scheduling.local_launcher import LocalLauncher, firing_folder, read_ending
from jobs.scheduling.schedule import load_job
from jobs.scheduling.store import StoreDamagedError
from jobs.terminal.output_file import atomic_output, set_aside
from pipeline.errors import SpecError
from tests.support.fakes.schedule_bench import ScheduleBench

START = "2026-11-23T00:00:30+00:00"
ENDING = {"outcome": "complete", "reason": "", "exit_code": 0, "counts": {"images": 3}}


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b"{}"
    path.write_bytes(content[: len(content) // 2])


def garble(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 3)


def put_other_types(path: Path) -> None:
    path.write_text('[1, {"outcome": 3}]')


def put_nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def put_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    (path / "in").mkdir(parents=True)


def forbid(path: Path) -> None:
    path.touch()
    path.chmod(0)


def put_dangling_link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent / "nowhere" / "at-all")


def put_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


DAMAGES = [
    remove,
    empty,
    truncate,
    garble,
    put_other_types,
    put_nested,
    put_folder,
    forbid,
    put_dangling_link,
    put_pipe,
]
FILES = ["ending.json", "process.txt", "lock", "job.yaml", "log.txt"]


class QuickRuns(LocalLauncher):
    """Runs that end at once, without a process; all files are those of `LocalLauncher`."""

    def _launch(self, firing: Firing, job: object, folder: Path, lock: object) -> str:
        # The real method first repairs the folder.
        command = self._runner
        self._runner = ("/bin/true",)
        try:
            super()._launch(firing, load_job(firing.schedule), folder, lock)  # type: ignore[arg-type]
        finally:
            self._runner = command
        (folder / "ending.json").write_text(json.dumps(ENDING))
        return "4711"


def bench_of(home: Path) -> ScheduleBench:
    bench = ScheduleBench(home, START)
    bench.engine = engine_of(bench, home)
    for name in ("one", "other"):
        bench.add(name=name)
    return bench


def engine_of(bench: ScheduleBench, home: Path) -> Engine:
    return Engine(bench.store, lambda _: QuickRuns(home), lambda: bench.clock.now, local_runs=10)


def step_until(bench: ScheduleBench, minutes: float) -> None:
    end = bench.clock.now + timedelta(minutes=minutes)
    while bench.clock.now < end:
        bench.clock.now += timedelta(seconds=30)
        bench.engine.step()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "state"),
    [*((name, "running") for name in FILES), *(("ending.json", state) for state in ("starting", "stopping"))],
)
def test_a_damaged_file_of_one_firing_does_not_stop_other_schedules(
    tmp_path: Path, name: str, damage: Callable[[Path], None], state: str
) -> None:
    bench = bench_of(tmp_path)
    step_until(bench, 1)
    spoilt = next(firing for firing in bench.store.history("one", 10) if firing.starts)
    folder = firing_folder(tmp_path, spoilt.name)
    with closing(sqlite3.connect(bench.store.path, isolation_level=None)) as connection:
        # It had not been checked yet when the machine went down.
        connection.execute(
            "UPDATE firings SET state = ?, outcome = NULL, ended = NULL, stop_asked = ? WHERE name = ?",
            [state, bench.clock.now.timestamp() if state == "stopping" else None, spoilt.name],
        )
    damage(folder / name)
    # At the scheduler's start, and from then on.
    bench.engine = engine_of(bench, tmp_path)
    step_until(bench, 7)
    for schedule in ("one", "other"):
        firings = bench.store.history(schedule, 100)
        assert [each.name for each in firings if each.state != "ended"] in ([], [firings[0].name])
        assert sum(each.ending is not None and each.ending.outcome == "complete" for each in firings) >= 4
    ended = bench.store.firing(spoilt.name)
    assert ended is not None
    assert ended.ending is not None
    # A run that is started again finds its images committed; only what would be killed is not started again.
    assert ended.ending.outcome in {"complete", "lost"} if state == "stopping" else ended.ending.outcome == "complete"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ending_is_treated_as_missing_and_logged(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ending.json").write_text(json.dumps(ENDING))
    assert read_ending(tmp_path) == Ending("complete", "", 0, {"images": 3})
    damage(tmp_path / "ending.json")
    is_readable_still = damage is forbid and os.geteuid() == 0
    assert (read_ending(tmp_path) is None) is not is_readable_still
    is_missing = damage is remove or is_readable_still
    assert ("ending.json is " in caplog.text) is not is_missing


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "splendid"},
        {"outcome": None},
        {"reason": None},
        {"exit_code": "0"},
        {"exit_code": True},
        {"counts": []},
        {"counts": {"images": "many"}},
        {"counts": {"images": float("nan")}},
    ],
)
def test_an_ending_of_other_types_is_none(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="it"):
        ending_from(ENDING | change)
    for key in ENDING:
        with pytest.raises(ValueError, match="it"):
            ending_from({other: value for other, value in ENDING.items() if other != key} | {"counts": 0})


@pytest.mark.parametrize("number", ["1", "0", "-1", "9" * 40, "", "x", "this process"])
def test_a_damaged_process_number_stops_no_other_process(
    tmp_path: Path, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 is the scheduler's own group, and -1 every process of this user."""
    bench = ScheduleBench(tmp_path, START)
    firing = plan_firing(bench.add(), bench.clock.now, "cron")
    folder = firing_folder(tmp_path, firing.name)
    folder.mkdir(parents=True)
    (folder / "process.txt").write_text(str(os.getpid()) if number == "this process" else number)
    monkeypatch.setattr("os.kill", lambda *call: pytest.fail(f"kill {call}"))
    with (folder / "lock").open("wb") as lock:
        # As the run's process does.
        fcntl.flock(lock, fcntl.LOCK_EX)
        LocalLauncher(tmp_path).stop(firing, is_forced=True)


SPOILT = ["", "{", "null", "[]", '{"name": 3}', "\x00"]


@pytest.mark.parametrize("document", SPOILT)
def test_a_damaged_schedule_does_not_stop_the_others_and_can_be_removed(
    tmp_path: Path, document: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bench = bench_of(tmp_path)
    with closing(sqlite3.connect(bench.store.path, isolation_level=None)) as connection:
        connection.execute("UPDATE schedules SET document = ? WHERE name = 'one'", [document])
    step_until(bench, 3)
    assert caplog.text.count("the schedule one in") == 1
    assert set(bench.outcomes("other").values()) == {"complete"}
    with pytest.raises(SystemExit) as left:
        main(["schedule", "remove", "one", "--home", str(tmp_path)])
    assert left.value.code == 0
    assert "Removed one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("document", each) for each in SPOILT),
        ("scheduled", 1e300),
        ("begins", float("inf")),
        ("state", "odd"),
        ("kind", "odd"),
        ("counts", "["),
        ("outcome", "odd"),
    ],
)
def test_a_damaged_firing_does_not_stop_the_others(tmp_path: Path, column: str, value: object) -> None:
    bench = bench_of(tmp_path)
    step_until(bench, 2)
    with closing(sqlite3.connect(bench.store.path, isolation_level=None)) as connection:
        connection.execute(f"UPDATE firings SET {column} = ? WHERE schedule = 'one'", [value])
        if column == "counts":
            connection.execute("UPDATE firings SET outcome = 'complete'")
    bench.engine = engine_of(bench, tmp_path)
    step_until(bench, 3)
    assert set(bench.outcomes("other").values()) == {"complete"}
    assert "complete" in bench.outcomes("one").values()


def test_a_failing_launcher_ends_its_own_firing_only(tmp_path: Path) -> None:
    """Whatever it raises; after a while, so that the schedule's later firings begin."""
    bench = bench_of(tmp_path)

    class Broken(QuickRuns):
        def check(self, firing: Firing) -> LaunchStatus:
            raise KeyError("outcome")

    whole = QuickRuns(tmp_path)
    bench.engine = Engine(
        bench.store,
        lambda schedule: Broken(tmp_path) if schedule.name == "one" else whole,
        lambda: bench.clock.now,
        local_runs=10,
    )
    step_until(bench, 3 + START_PATIENCE.total_seconds() / 60)
    assert set(bench.outcomes("other").values()) == {"complete"}
    assert "failed" in bench.outcomes("one").values()


@pytest.mark.parametrize("damage", [truncate, garble, put_folder])
@pytest.mark.parametrize("command", [["scheduler", "--once"], ["schedule", "list"], ["schedule", "history"]])
def test_a_damaged_database_is_one_sentence(
    tmp_path: Path, damage: Callable[[Path], None], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bench = bench_of(tmp_path)
    step_until(bench, 2)
    bench.store.close()
    for left in tmp_path.glob("schedules.sqlite-*"):
        left.unlink()
    damage(tmp_path / "schedules.sqlite")
    with pytest.raises(SystemExit) as left_with:
        main([*command, "--home", str(tmp_path)])
    said = capsys.readouterr().err
    assert (left_with.value.code, said.count("\n")) == (2, 1)
    assert "schedules.sqlite cannot be read" in said


def test_a_database_that_breaks_while_it_is_used_is_one_sentence(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    with closing(sqlite3.connect(bench.store.path, isolation_level=None)) as connection:
        connection.execute("DROP TABLE firings")
    with pytest.raises(StoreDamagedError, match="firings"):
        bench.engine.step()


@pytest.mark.parametrize("damage", DAMAGES[:-1])
def test_a_damaged_lock_of_the_scheduler(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(tmp_path / "scheduler.lock")
    assert isinstance(lock_holder(tmp_path), str)
    assert not is_scheduler_running(tmp_path)
    if damage is put_dangling_link:
        with pytest.raises(SpecError, match=r"scheduler\.lock"), scheduler_lock(tmp_path):
            pytest.fail("locked")
        return
    if damage is forbid and os.geteuid() != 0:
        return
    with scheduler_lock(tmp_path):
        assert is_scheduler_running(tmp_path)


@pytest.mark.parametrize(
    "summary", ["", "[]", "3", "null", '{"status": []}', '{"status": "complete", "statuses": [], "images": "x"}']
)
def test_a_damaged_summary_is_ignored(tmp_path: Path, summary: str) -> None:
    bench = ScheduleBench(tmp_path, START)
    folder = tmp_path / "out" / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(summary)
    assert ending_of(load_job(bench.add()), "r", 0, "") == Ending("complete", "", 0)


def test_files_are_synced_before_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between the two left an empty ending.json."""
    steps: list[str] = []
    sync, move = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        steps.append("sync")
        sync(descriptor)

    def noted_move(self: Path, target: Path) -> Path:
        steps.append("move")
        return move(self, target)

    monkeypatch.setattr("os.fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_move)
    with atomic_output(tmp_path / "a") as file:
        file.write(b"x")
    assert steps == ["sync", "move", "sync"]


def test_a_damaged_file_that_is_renamed_keeps_its_content(tmp_path: Path) -> None:
    for content in ("one", "two"):
        (tmp_path / "a").write_text(content)
        set_aside(tmp_path / "a")
    assert [(tmp_path / name).read_text() for name in ("a.damaged", "a.damaged-1")] == ["one", "two"]
