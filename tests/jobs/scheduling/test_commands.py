"""The commands `htc schedule ...`, in one process, without a scheduler."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.cli import program as cli
from jobs.scheduling.firing import Ending
from jobs.scheduling.home import scheduler_lock
from jobs.scheduling.store import ScheduleStore

Htc = Callable[..., tuple[int, str, str]]
NO_SCHEDULER = "No scheduler is running to start it; start one with: htc scheduler\n"


@pytest.fixture
def htc(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Htc:
    """Run one command in a folder with a job.yaml; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTC_HOME", str(tmp_path / "home"))
    (tmp_path / "job.yaml").write_text("input: {uri: photos}\noutput: {uri: out}\n")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["schedule", *arguments])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


def add(htc: Htc, name: str = "nightly", *flags: str) -> tuple[int, str, str]:
    return htc("add", name, "job.yaml", "--cron", "30 2 * * *", "--time-zone", "Europe/Berlin", *flags)


def test_add_prints_the_next_time(htc: Htc) -> None:
    code, out, err = add(htc)
    assert (code, err) == (0, NO_SCHEDULER)
    assert out.startswith("Added nightly: At 02:30, every day, Europe/Berlin.\nNext: ")
    assert " 02:30 CE" in out


def test_list_shows_next_time_and_last_outcome(htc: Htc, tmp_path: Path) -> None:
    add(htc)
    add(htc, "weekly", "--paused", "--address", "http://head:8265")
    htc("run-now", "nightly")
    with closing(ScheduleStore(tmp_path / "home")) as store:
        (firing,) = store.open_firings()
        ending = Ending("over_error_budget", "3 of 4 images failed.", 1, {"images": 4, "images_done": 4})
        store.update(replace(firing, state="ended", ending=ending))
    code, out, _ = htc("list")
    nightly, weekly = (line for line in out.split("\n") if "every day" in line)
    assert code == 0
    assert " 02:30 CE" in nightly
    assert "over error budget, 4 of 4 images: 3 of 4 images failed." in nightly
    assert "paused" in weekly
    assert "http://head:8265" in weekly
    rows = json.loads(htc("list", "--json")[1])
    assert [(row["name"], row["is_paused"]) for row in rows] == [("nightly", False), ("weekly", True)]
    assert rows[0]["last"]["outcome"] == "over_error_budget"
    assert datetime.fromisoformat(rows[0]["next"]) > datetime.now(UTC)
    assert rows[1]["next"] is None


def test_an_empty_list_says_how_to_add_a_schedule(htc: Htc) -> None:
    code, out, err = htc("list")
    assert (code, out) == (0, "")
    assert "htc schedule add NAME job.yaml --cron '30 2 * * *'" in err


def test_show_prints_all_settings_and_the_next_five_times(htc: Htc, tmp_path: Path) -> None:
    add(htc, "nightly", "--deadline", "4h", "--exit-hook", "page-me 'on call'", "--jitter", "5m")
    code, out, _ = htc("show", "nightly")
    values = [line.split(maxsplit=1) for line in out.split("\n") if line]
    assert code == 0
    assert ["spec", f"{tmp_path}/job.yaml"] in values
    assert ["deadline_s", "14400.0"] in values
    assert ["jitter_s", "300.0"] in values
    assert ["notify.exit_hook", "page-me 'on call'"] in values
    assert sum(value[0] == "next" for value in values) == 5


def test_pause_resume_and_remove(htc: Htc) -> None:
    add(htc)
    assert htc("pause", "nightly")[1].startswith("Paused nightly")
    assert json.loads(htc("show", "nightly", "--json")[1])["is_paused"]
    assert htc("resume", "nightly")[1].startswith("Resumed nightly. Next: ")
    assert not json.loads(htc("show", "nightly", "--json")[1])["is_paused"]
    assert htc("remove", "nightly")[1].startswith("Removed nightly")
    assert json.loads(htc("list", "--json")[1]) == []


def test_history_survives_the_schedule(htc: Htc) -> None:
    add(htc)
    htc("run-now", "nightly")
    htc("remove", "nightly")
    code, out, _ = htc("history", "nightly")
    assert code == 0
    assert "-now" in out
    (firing,) = json.loads(htc("history", "--json")[1])
    assert (firing["schedule"], firing["kind"], firing["outcome"]) == ("nightly", "manual", None)


def test_stop_asks_the_scheduler_and_reports_when_nothing_runs(htc: Htc, tmp_path: Path) -> None:
    add(htc)
    assert htc("stop", "nightly")[1] == "No run of nightly is in progress.\n"
    htc("run-now", "nightly")
    _, out, err = htc("stop", "nightly")
    assert out.startswith("Asked to stop nightly-")
    assert err == NO_SCHEDULER
    with closing(ScheduleStore(tmp_path / "home")) as store:
        assert [firing.schedule.name for firing in store.stops_wanted()] == ["nightly"]
    assert htc("stop", "weekly")[0] == 2


def test_a_schedule_may_come_from_a_file_with_flags_over_it(htc: Htc, tmp_path: Path) -> None:
    (tmp_path / "nightly.yaml").write_text(
        "name: nightly\ncron: '@daily'\ntime_zone: Asia/Tokyo\ncatch_up: all\n"
        "spec:\n  input: {uri: photos}\n  output: {uri: out}\n"
    )
    code, out, _ = htc("add", "--file", "nightly.yaml", "--cron", "0 4 * * *", "--overlap", "queue")
    assert code == 0
    assert out.startswith("Added nightly: At 04:00, every day, Asia/Tokyo.")
    shown = json.loads(htc("show", "nightly", "--json")[1])
    assert (shown["catch_up"], shown["overlap"]) == ("all", "queue")
    # The scheduler may run in another folder than the command that added the schedule.
    assert shown["spec"]["input"]["uri"] == str(tmp_path / "photos")


def test_a_second_schedule_of_a_name_is_refused_unless_replaced(htc: Htc) -> None:
    add(htc)
    code, _, err = add(htc)
    assert code == 2
    assert "A schedule nightly already exists" in err
    assert "--replace" in err
    assert add(htc, "nightly", "--replace")[1].startswith("Replaced nightly")


def test_two_schedules_with_one_output_cause_a_warning(htc: Htc) -> None:
    add(htc)
    sentence = "nightly writes to the same output; while a run of one is in progress, one of the other is refused"
    assert sentence in add(htc, "hourly")[2]
    assert sentence in htc("show", "hourly")[2]


@pytest.mark.parametrize("output", ["s3://bucket/masks", "s3://bucket/masks/"])
def test_an_output_is_the_same_with_a_slash_at_its_end(htc: Htc, tmp_path: Path, output: str) -> None:
    for name, uri in (("one", "s3://bucket/masks/"), ("two", output), ("other", "s3://bucket/masks-2/")):
        (tmp_path / f"{name}.yaml").write_text(f"input: {{uri: s3://bucket/in/}}\noutput: {{uri: '{uri}'}}\n")
    htc("add", "one", "one.yaml", "--cron", "@daily")
    assert "one writes to the same output" in htc("add", "two", "two.yaml", "--cron", "@daily")[2]
    assert "same output" not in htc("add", "other", "other.yaml", "--cron", "@daily")[2]


def test_a_missing_webhook_url_is_a_warning(htc: Htc, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "the environment variable NIGHT_HOOK is empty or not set"
    assert sentence in add(htc, "nightly", "--webhook-url-env", "NIGHT_HOOK")[2]
    monkeypatch.setenv("NIGHT_HOOK", "https://hooks.example.com/services/very-secret")
    code, out, err = htc("show", "nightly")
    assert (code, err) == (0, NO_SCHEDULER)
    assert "very-secret" not in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["add", "nightly", "job.yaml", "--cron", "75 2 * * *"], "cron: minute 75 is not in 0-59."),
        (["add", "nightly", "job.yaml", "--cron", "@daily", "--time-zone", "Mars"], "'Mars' is not a time zone"),
        (["add", "nightly", "nowhere.yaml", "--cron", "@daily"], "nowhere.yaml does not exist"),
        (["add", "nightly", "--cron", "@daily"], "spec is missing"),
        (["add", "nightly", "job.yaml"], "cron is missing; give it in the schedule, or as --cron"),
        (["add", "a/b", "job.yaml", "--cron", "@daily"], "name must be letters, digits"),
        (["add", "nightly", "job.yaml", "--cron", "@daily", "--overlap", "wait"], 'overlap must be "skip"'),
        (["add", "nightly", "job.yaml", "--cron", "@daily", "--deadline", "soon"], "--deadline must be a time such as"),
        (
            ["add", "nightly", "job.yaml", "--cron", "@daily", "--deadline", "5m", "--jitter", "1h"],
            "more than jitter_s",
        ),
        (["add", "--file", "nowhere.yaml"], "The schedule nowhere.yaml does not exist."),
        (["add", "--file", "wrong.yaml"], "over_lap is not a key of the schedule; did you mean overlap?"),
        (["add", "--file", "leaky.yaml"], "notify: a webhook's URL is a secret"),
        (["add", "--file", "leakier.yaml"], "notify: this is a section with the keys webhook_url_env"),
        (
            ["add", "nightly", "job.yaml", "--cron", "@daily", "--webhook-url-env", "https://x/very-secret"],
            "the name of",
        ),
        (["show", "nightly"], "There is no schedule nightly in"),
        (["run-now", "nightly"], "there are none"),
        (["history", "nightly"], "There is no schedule nightly"),
    ],
)
def test_wrong_usage_is_exit_2_and_one_sentence(htc: Htc, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    head = "name: nightly\nspec: job.yaml\ncron: '@daily'\n"
    (tmp_path / "wrong.yaml").write_text(head + "over_lap: skip\n")
    (tmp_path / "leaky.yaml").write_text(head + "notify: {webhook_url: 'https://x/very-secret'}\n")
    (tmp_path / "leakier.yaml").write_text(head + "notify: https://x/very-secret\n")
    code, out, err = htc(*arguments)
    assert code == 2, out + err
    assert sentence in err
    assert "very-secret" not in err
    assert "Traceback" not in err


def test_no_warning_while_a_scheduler_is_running(htc: Htc, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with scheduler_lock(tmp_path / "home"):
        assert add(htc)[2] == ""
        assert htc("run-now", "nightly")[2] == ""
    assert htc("list")[2] == NO_SCHEDULER


def test_the_folder_of_schedules_is_private(htc: Htc, tmp_path: Path) -> None:
    add(htc)
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"this is no database, whatever its name says" * 100,
            "cannot be read or written: file is not a database; restore a copy, or move the file away to begin "
            "without schedules.",
        ),
        (None, "were written by a newer htc; install that one."),
    ],
)
def test_a_damaged_or_newer_database_is_one_sentence(
    htc: Htc, tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    add(htc)
    database = tmp_path / "home" / "schedules.sqlite"
    if content is not None:
        database.write_bytes(content)
    else:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA user_version = 99")
    code, out, err = htc("list")
    assert (code, out) == (2, "")
    assert err == f"The schedules in {database} {sentence}\n"


def test_a_folder_that_cannot_be_created_names_the_ways_out(htc: Htc, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = htc("list", "--home", str(tmp_path / "file" / "home"))
    assert code == 2
    assert "choose another with --home or HTC_HOME" in err
