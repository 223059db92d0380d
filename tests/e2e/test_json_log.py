"""Every line that `htc` writes to stderr with --log-format json is JSON, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.logs import EVENTS, KEYS
from tests.support.fakes.models import write_image
from tests.support.paths import PROGRAMS, ROOT

HTC = (sys.executable, "-m", "jobs")


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def _lines(text: str) -> list[dict[str, Any]]:
    """Parse every line, and check what all of them have."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert tuple(line) == KEYS
        assert line["event"] in EVENTS
        assert line["level"] in ("debug", "info", "warning", "error")
        assert line["time"].endswith("Z")
        assert isinstance(line["fields"], dict)
    return lines


def _htc(*arguments: str, **environment: str) -> tuple[int, str, list[dict[str, Any]]]:
    done = subprocess.run(
        [*HTC, *arguments], capture_output=True, text=True, env=_environment(**environment), check=False, timeout=300
    )
    return done.returncode, done.stdout, _lines(done.stderr)


@pytest.mark.slow
def test_a_run_with_a_bad_image_a_retry_and_an_error_exit(tmp_path: Path) -> None:
    source, marks = tmp_path / "in", tmp_path / "marks"
    source.mkdir()
    marks.mkdir()
    for number in range(6):
        write_image(source / f"{number}.png", (32, 48))
    write_image(source / "kills.png", (33, 48))
    write_image(source / "raises.png", (40, 40))
    (source / "bad.jpg").write_bytes(b"no image")
    secret = "s3cr3t-of-the-store"
    command = [sys.executable, str(PROGRAMS / "htc_with_a_fake_model.py"), str(marks), "run"]
    command += [str(source), str(tmp_path / "out"), "--log-format", "json", "--log-level", "debug", "--json"]
    command += ["--workers", "1", "--shard-images", "3", "--max-error-rate", "0", "--run", "told"]
    environment = _environment(MY_STORE_TOKEN=secret, RAY_ADDRESS="")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)

    assert done.returncode == 1, done.stderr
    lines = _lines(done.stderr)
    # stdout is one line of JSON as well: a pod's log holds both.
    assert json.loads(done.stdout.strip())["run"] == "told"
    assert len(done.stdout.splitlines()) == 1
    by_event: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_event.setdefault(line["event"], []).append(line)
    told = {"run_started", "worker_started", "worker_lost", "shard_retried", "image_failed", "heartbeat", "run_ended"}
    assert told | {"warning", "output", "shard_committed"} <= by_event.keys()
    [started] = by_event["run_started"]
    assert started["run"] == "told"
    assert started["fields"]["images"] == 9
    [lost] = by_event["worker_lost"]
    assert lost["worker"] == 0
    assert {line["fields"]["uri"].rpartition("/")[2] for line in by_event["image_failed"]} == {"bad.jpg", "raises.png"}
    retried = by_event["shard_retried"][0]
    assert retried["fields"]["kind"] == "death"
    assert (retried["shard"], retried["attempt"]) == (lost["fields"]["lost_shards"][0], 1)
    [ended] = by_event["run_ended"]
    assert ended["level"] == "error"
    assert ended["fields"]["exit_code"] == 1
    assert [line["message"] for line in by_event["output"]] == ["a library writes"]
    # The traceback of the worker's own bug is a field, relayed from the worker.
    relayed = [line for line in by_event["log"] if "traceback" in line["fields"]]
    assert any("ZeroDivisionError" in line["fields"]["traceback"] and line["worker"] is not None for line in relayed)


def test_errors_of_usage_and_of_input() -> None:
    code, _, [line] = _htc("run", "--nope", "--log-format", "json")
    assert (code, line["event"], line["fields"]["exit_code"]) == (2, "usage_error", 2)
    code, _, [line] = _htc("--log-format=json", "runs", "/no/such/folder")
    assert (code, line["event"], line["fields"]["exit_code"]) == (2, "error", 2)
    code, _, [line] = _htc("schedule", "history", "--last", "none", HTC_LOG_FORMAT="json")
    assert (code, line["event"]) == (2, "usage_error")


@pytest.mark.slow
def test_a_scheduled_run_logs_json_and_its_reason_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"input: {{uri: {tmp_path}/none}}\noutput: {{uri: {tmp_path}/out}}\n")
    home = ("--home", str(tmp_path / "home"))
    add = ("schedule", "add", "night", "--spec", str(tmp_path / "job.yaml"), "--cron", "30 2 * * *")
    assert _htc(*add, *home, HTC_LOG_FORMAT="json")[0] == 0
    assert _htc("schedule", "run-now", "night", *home, HTC_LOG_FORMAT="json")[0] == 0
    code, _, lines = _htc("scheduler", "--once", *home, "--log-format", "json")
    assert code == 0
    assert [line["fields"]["state"] for line in lines if line["event"] == "firing"] == ["begun", "failed"]
    # The run's own log holds its stderr and its stdout.
    [log] = (tmp_path / "home" / "firings").glob("*/log.txt")
    assert [line["event"] for line in _lines(log.read_text())][-1] == "error"
    _, history, _ = _htc("schedule", "history", *home, HTC_LOG_FORMAT="json")
    assert f"failed: The input {tmp_path}/none does not exist." in history


def test_no_secret_is_logged() -> None:
    code, _, [line] = _htc("runs", "https://user:pass-word@127.0.0.1:9/out", HTC_LOG_FORMAT="json")
    assert code == 2
    assert "pass-word" not in json.dumps(line)


def test_an_unknown_format_or_level_is_one_sentence() -> None:
    done = subprocess.run(
        [*HTC, "runs", "out"],
        capture_output=True,
        text=True,
        env=_environment(HTC_LOG_FORMAT="xml"),
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("HTC_LOG_FORMAT is 'xml'")
    code, _, [line] = _htc("runs", "out", HTC_LOG_FORMAT="json", HTC_LOG_LEVEL="loud")
    assert (code, line["event"]) == (2, "error")


@pytest.mark.slow
def test_ctrl_c(tmp_path: Path) -> None:
    with (tmp_path / "err").open("wb") as errors:
        process = subprocess.Popen(
            [*HTC, "scheduler", "--home", str(tmp_path / "home"), "--log-format", "json"],
            stderr=errors,
            env=_environment(),
        )
        while b"scheduler of" not in (tmp_path / "err").read_bytes() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert _lines((tmp_path / "err").read_text())
