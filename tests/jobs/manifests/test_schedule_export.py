"""Exported schedules: the same times and policies, and a report of unsupported ones."""

import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from jobs.cli import program as cli
from jobs.manifests.airflow import build_dag
from jobs.manifests.cron_fields import is_shifted_by_the_clock
from jobs.manifests.systemd import calendar_of
from jobs.scheduling.cron import check_cron, due_times
from jobs.scheduling.cron_values import split_cron
from jobs.scheduling.schedule import Schedule, build_schedule
from pipeline.job_spec.job import JobSpec
from tests.support.manifest_schemas import check_manifest
from tests.support.without_torch import run_without_torch

Htc = Callable[..., tuple[int, str, str]]
SPEC = {"input": {"uri": "s3://bucket/in/"}, "output": {"uri": "s3://bucket/masks/"}}
IMAGE = ("--image", "registry.example/htc-batch:0.2.0", "--ray-version", "2.60.0")
CRONS = ("30 2 * * *", "*/20 8-18/2 * * mon-fri", "0 4 1,15 * 5-7", "5 0 */2 jan,jul *", "0 12 31 * *", "15 6 * * 0")
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not on this machine")


def make_schedule(**keys: Any) -> Schedule:
    return build_schedule({"name": "nightly.Streets", "spec": SPEC, "cron": "30 2 * * *", **keys})


@pytest.fixture
def schedule_file(tmp_path: Path) -> Callable[..., str]:
    def write(**keys: Any) -> str:
        path = tmp_path / "schedule.yaml"
        path.write_text(yaml.safe_dump({"name": "nightly.Streets", "spec": SPEC, "cron": "30 2 * * *", **keys}))
        return str(path)

    return write


@pytest.fixture
def htc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Htc:
    monkeypatch.setenv("HTC_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


@pytest.mark.parametrize("flags", [(), ("--without-raycronjob",)])
def test_the_manifests_apply_to_kubernetes(htc: Htc, schedule_file: Callable[..., str], flags: tuple[str, ...]) -> None:
    file = schedule_file(time_zone="Europe/Berlin", jitter_s=60, deadline_s=3600, on_deadline="stop")
    code, out, _ = htc("schedule", "export", "--file", file, "--kubernetes", *flags, *IMAGE)
    assert code == 0
    manifests = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(out)}
    for manifest in manifests.values():
        check_manifest(manifest)
    fired = manifests["CronJob" if flags else "RayCronJob"]
    assert fired["metadata"]["name"] == "nightly-streets"
    assert (fired["spec"]["schedule"], fired["spec"]["timeZone"]) == ("30 2 * * *", "Europe/Berlin")
    if flags:
        assert set(manifests) > {"ServiceAccount", "Role", "RoleBinding", "CronJob"}
        created = yaml.safe_load(
            next(m for m in yaml.safe_load_all(out) if m["metadata"]["name"].endswith("-rayjob"))["data"]["rayjob.yaml"]
        )
        check_manifest(created)
    else:
        created = {"spec": fired["spec"]["jobTemplate"]}
    assert created["spec"]["activeDeadlineSeconds"] == 3600
    spec = next(m for m in yaml.safe_load_all(out) if m["metadata"]["name"].endswith("-spec"))
    assert JobSpec.model_validate(yaml.safe_load(spec["data"]["job.yaml"])).select.mode == "incremental"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"overlap": "skip"}, {"concurrencyPolicy": "Forbid", "startingDeadlineSeconds": 86400, "suspend": False}),
        (
            {"overlap": "replace", "catch_up_window_s": 600},
            {"concurrencyPolicy": "Replace", "startingDeadlineSeconds": 600},
        ),
        ({"catch_up": "none", "is_paused": True}, {"startingDeadlineSeconds": 60, "suspend": True}),
    ],
)
def test_policies_that_a_cron_job_has(
    htc: Htc, schedule_file: Callable[..., str], keys: dict[str, Any], expected: dict[str, Any]
) -> None:
    file = schedule_file(**keys)
    code, out, err = htc("schedule", "export", "--file", file, "--kubernetes", "--without-raycronjob", *IMAGE)
    assert (code, err) == (0, "")
    spec = list(yaml.safe_load_all(out))[-1]["spec"]
    assert {key: spec[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("flags", "keys", "words"),
    [
        (("--kubernetes",), {}, ["overlap: skip", "catch_up: last"]),
        (("--kubernetes", "--without-raycronjob"), {"overlap": "queue", "catch_up": "all"}, ["queue", "catch_up: all"]),
        (("--kubernetes",), {"deadline_s": 60.0, "jitter_s": 5}, ["on_deadline: notify", "jitter_s"]),
        (("--kubernetes",), {"notify": {"webhook_url_env": "URL"}, "address": "http://h:8265"}, ["notify;", "address"]),
        (("--kubernetes", "--without-raycronjob"), {"time_zone": "Europe/Berlin"}, ["summer time begins"]),
        (("--systemd",), {"overlap": "replace", "catch_up": "all"}, ["overlap: replace", "catch_up: all"]),
        (("--systemd",), {"mode": "full", "is_paused": True}, ["restarts", "is_paused"]),
        (("--systemd",), {"time_zone": "Europe/Berlin"}, ["summer time begins"]),
        (("--airflow",), {"deadline_s": 60.0}, ["overlap: skip", "catch_up: last", "on_deadline: notify"]),
    ],
)
def test_unsupported_policies_are_printed_and_written(
    htc: Htc, schedule_file: Callable[..., str], flags: tuple[str, ...], keys: dict[str, Any], words: list[str]
) -> None:
    code, out, err = htc("schedule", "export", "--file", schedule_file(**keys), *flags, *IMAGE)
    assert code == 0
    for word in words:
        assert word in err
    for line in err.splitlines():
        assert f"# {line}\n" in out


def test_a_stored_schedule_without_torch_and_ray(tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    home = ("--home", str(tmp_path / "home"))
    added = run_without_torch("schedule", "add", "night", str(spec), "--cron", "@daily", *home)
    assert added.returncode == 0, added.stderr
    flags = ("--kubernetes", "--without-raycronjob")
    done = run_without_torch("schedule", "export", "night", *home, *flags, *IMAGE, "--to", str(tmp_path / "k8s"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "k8s" / "cronjob.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("night", "--kubernetes"), "There is no schedule night"),
        (("--kubernetes",), "Name a schedule"),
        (("night",), "one of --kubernetes, --systemd and --airflow"),
        (("night", "--systemd", "--airflow"), "one of --kubernetes, --systemd and --airflow"),
    ],
)
def test_contradicting_options_are_refused(htc: Htc, arguments: tuple[str, ...], sentence: str) -> None:
    code, out, err = htc("schedule", "export", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err


def test_a_full_run_needs_its_own_name(htc: Htc, schedule_file: Callable[..., str]) -> None:
    file = schedule_file(mode="full")
    code, _, err = htc("schedule", "export", "--file", file, "--kubernetes", *IMAGE)
    assert code == 2
    assert "--without-raycronjob" in err
    code, out, _ = htc("schedule", "export", "--file", file, "--kubernetes", "--without-raycronjob", *IMAGE)
    assert code == 0
    pod = list(yaml.safe_load_all(out))[-1]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert "--run-of-its-own" in pod["containers"][0]["command"]


@pytest.mark.parametrize("cron", CRONS)
def test_fields_hold_every_time_that_is_due(cron: str) -> None:
    fields = split_cron(check_cron(cron))
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for due, _ in zip(due_times(cron, "UTC", begin), range(200), strict=False):
        assert fields.minutes is None or due.minute in fields.minutes
        assert fields.hours is None or due.hour in fields.hours
        assert fields.months is None or due.month in fields.months
        is_day = fields.days is None or due.day in fields.days
        is_weekday = fields.weekdays is None or due.isoweekday() % 7 in fields.weekdays
        assert (is_day or is_weekday) if fields.is_either_day else (is_day and is_weekday)


def test_times_that_summer_time_skips_are_detected() -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    assert is_shifted_by_the_clock("30 2 * * *", "Europe/Berlin", now)
    assert not is_shifted_by_the_clock("30 4 * * *", "Europe/Berlin", now)
    assert not is_shifted_by_the_clock("30 2 * * *", "UTC", now)
    assert not is_shifted_by_the_clock("30 2 * * mon", "Europe/Berlin", now)


@needs_systemd
@pytest.mark.parametrize("cron", CRONS)
def test_the_timer_fires_when_cron_does(cron: str) -> None:
    schedule = make_schedule(cron=cron, time_zone="Europe/Berlin")
    begin = datetime(2026, 11, 23, tzinfo=ZoneInfo("Europe/Berlin"))
    expected = [due for due, _ in zip(due_times(schedule.cron, schedule.time_zone, begin), range(12), strict=False)]
    fired: set[datetime] = set()
    for moment in calendar_of(schedule):
        command = ["systemd-analyze", "calendar", "--iterations=12", "--base-time=2026-11-22 23:00:00 UTC", moment]
        lines = subprocess.run(
            command, capture_output=True, text=True, check=True, env={"TZ": "UTC"}
        ).stdout.splitlines()
        times = [line.rpartition(": ")[2] for line in lines if "elapse:" in line or "Iter. #" in line]
        fired |= {datetime.strptime(time, "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC) for time in times}
    assert sorted(fired)[:12] == expected


@needs_systemd
@pytest.mark.parametrize(
    "keys",
    [{}, {"mode": "full", "deadline_s": 7200.0, "on_deadline": "stop", "jitter_s": 30}, {"address": "http://h:8265"}],
)
def test_systemd_accepts_the_units(
    htc: Htc, schedule_file: Callable[..., str], tmp_path: Path, keys: dict[str, Any]
) -> None:
    code, _, _ = htc(
        "schedule", "export", "--file", schedule_file(**keys), "--systemd", "--to", str(tmp_path / "units")
    )
    assert code == 0
    units = sorted(str(path) for path in (tmp_path / "units").iterdir() if path.suffix != ".yaml")
    checked = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_command_of_a_full_run_survives_systemd(htc: Htc, schedule_file: Callable[..., str]) -> None:
    _, out, _ = htc("schedule", "export", "--file", schedule_file(mode="full"), "--systemd")
    (line,) = [line for line in out.splitlines() if line.startswith("ExecStart=")]
    shell = line.removeprefix('ExecStart=/bin/sh -c "').removesuffix('"')
    # Unquoted as systemd.service(5) does before the shell runs it.
    script = shell.replace("%%", "%").replace("$$", "$").replace('\\"', '"')
    done = subprocess.run(
        ["/bin/sh", "-c", script.replace("exec ", "echo ", 1)], capture_output=True, text=True, check=True
    )
    name = done.stdout.split()[-1].removeprefix("nightly.Streets-")
    assert abs(datetime.strptime(name, "%Y%m%d-%H%M%S").replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(hours=1)


def test_the_dag_is_python() -> None:
    schedule = make_schedule(time_zone="Europe/Berlin", deadline_s=60.0, on_deadline="stop", jitter_s=5)
    compile(build_dag(schedule, "/etc/htc/job.yaml"), "dag.py", "exec")


@pytest.mark.skipif(
    "HTC_AIRFLOW_PYTHON" not in os.environ, reason="HTC_AIRFLOW_PYTHON names no interpreter that has Apache Airflow"
)
@pytest.mark.parametrize("keys", [{}, {"catch_up": "all", "deadline_s": 60.0, "on_deadline": "stop", "jitter_s": 5}])
def test_airflow_loads_the_dag(tmp_path: Path, keys: dict[str, Any]) -> None:
    (tmp_path / "dags").mkdir()
    source = build_dag(make_schedule(time_zone="Europe/Berlin", **keys), "/etc/htc/job.yaml")
    (tmp_path / "dags" / "dag.py").write_text(source)
    script = (
        "from airflow.dag_processing.dagbag import DagBag\n"
        f"bag = DagBag({str(tmp_path / 'dags')!r})\n"
        "assert not bag.import_errors, bag.import_errors\n"
        "assert list(bag.dags) == ['htc-nightly.Streets']\n"
    )
    environment = {"AIRFLOW_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [os.environ["HTC_AIRFLOW_PYTHON"], "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
