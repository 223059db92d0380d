"""The log: its lines of JSON, what is in them, and that a text log shows what it did before."""

import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import logs
from pipeline.driver.progress import JsonProgress, RunProgress
from pipeline.worker.log_relay import MAX_LINES, LogRelay

log = logging.getLogger("pipeline.test")


@pytest.fixture
def json_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The JSON log in this process; everything is as before afterwards."""
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    for name in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(logs.threading, "excepthook", logs.threading.excepthook)
    shown, level = warnings.showwarning, logging.getLogger().level
    # Workers that other tests ran in this process left theirs.
    monkeypatch.setattr(logs, "_process_place", {})
    logs.configure()
    yield
    logging.captureWarnings(False)
    warnings.showwarning = shown
    monkeypatch.delenv(logs.FORMAT_VARIABLE)
    logs.configure()
    logging.getLogger().setLevel(level)


def _read(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def _record(sentence: str, fields: object) -> logging.LogRecord:
    record = logging.LogRecord("pipeline.test", logging.INFO, "", 0, "%s", (sentence,), None)
    record.htc_event, record.htc_place, record.htc_fields = "note", {}, {"value": fields}
    return record


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(st.characters(exclude_categories=())), _ANY)
def test_any_message_and_any_value_is_one_line_of_strict_json(sentence: str, value: object) -> None:
    line = logs.JsonFormatter().format(_record(sentence, value))
    assert "\n" not in line

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    parsed = json.loads(line, parse_constant=refuse)
    assert tuple(parsed) == logs.KEYS
    assert logs.parse_line(line) == parsed


def test_secrets_are_removed_from_messages_fields_and_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "very-secret-value")
    try:
        raise ValueError("very-secret-value")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "it is very-secret-value", (), sys.exc_info())
    record.htc_fields = {"header": 'Authorization: "Bearer abc"', "list": ["s3://me:very@host/"]}
    line = logs.JsonFormatter().format(record)
    parsed = json.loads(line)
    assert "very-secret-value" not in line
    assert "Bearer" not in line
    assert parsed["fields"]["list"] == ["s3://***@host/"]
    assert "ValueError: ***" in parsed["fields"]["traceback"]


@pytest.mark.usefixtures("json_log")
def test_an_event_names_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_place(run="night")
    with logs.placed(shard=3, attempt=2):
        logs.log_event(log, "store_retry", "again", retries=4)
    log.info("plain %d", 5)
    logs.log_note(log, logs.note("worker_lost", "gone", worker=7, reason="killed"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)
    retry, plain, lost, warning = _read(capsys)
    assert [retry[key] for key in ("run", "shard", "attempt", "worker")] == ["night", 3, 2, None]
    assert retry["fields"] == {"retries": 4}
    assert retry["level"] == "warning"
    assert (plain["event"], plain["message"], plain["fields"]) == ("log", "plain 5", {"logger": "pipeline.test"})
    assert (lost["event"], lost["worker"], lost["fields"]) == ("worker_lost", 7, {"reason": "killed"})
    assert (warning["event"], warning["message"]) == ("warning", "careful")


@pytest.mark.usefixtures("json_log")
def test_the_level_decides(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logs.log_event(log, "shard_committed", "done", shard=1)
    assert _read(capsys) == []
    monkeypatch.setenv(logs.LEVEL_VARIABLE, "debug")
    logs.configure()
    logs.log_event(log, "shard_committed", "done", shard=1)
    assert [line["event"] for line in _read(capsys)] == ["shard_committed"]
    monkeypatch.setenv(logs.LEVEL_VARIABLE, "error")
    logs.configure()
    logs.log_event(log, "worker_lost", "gone", worker=1)
    assert _read(capsys) == []
    monkeypatch.delenv(logs.LEVEL_VARIABLE)
    logs.configure()


@pytest.mark.usefixtures("json_log")
def test_the_heartbeat_holds_the_progress(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    display = JsonProgress(clock=lambda: now[0])
    progress = RunProgress(10, 4, 1, math.inf, None, 2, statuses={"ok": 3})
    for _ in range(3):
        display.update(progress)
        now[0] += 6.0
    lines = _read(capsys)
    assert [line["event"] for line in lines] == ["heartbeat", "heartbeat"]
    assert lines[0]["fields"]["images_done"] == 4  # type: ignore[index]
    assert lines[0]["fields"]["images_per_s"] is None  # type: ignore[index]


@pytest.mark.usefixtures("json_log")
def test_the_steps_of_a_training_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from htc_model.training.spec import TrainingSpec
    from jobs.running.training_display import TrainingDisplay

    display = TrainingDisplay(Console(stderr=True), TrainingSpec.model_construct(epochs=2, batch_size=1))
    display.step(1, 2, {"total": 0.5})
    display.step(2, 2, {"total": math.nan})
    display.evaluation({"epoch": 0, "evaluation": {"val": {"mask_ap": 0.5}}, "is_best": True})
    display.close()
    lines = _read(capsys)
    assert [line["event"] for line in lines] == ["training_progress", "training_progress", "training_scores"]
    assert lines[2]["fields"]["evaluation"] == {"val": {"mask_ap": 0.5}}  # type: ignore[index]
    assert lines[1]["fields"] == {"step": 2, "steps": 2, "losses": {"total": None}}


def test_the_reason_of_a_run_is_a_message_of_its_log() -> None:
    from jobs.scheduling.endings import last_line

    record = _record("the reason", 1)
    record.levelno, record.levelname = logging.ERROR, "ERROR"
    lines = [logs.JsonFormatter().format(record), logs.JsonFormatter().format(_record("later", 1))]
    assert last_line("\n".join(lines)) == "the reason"
    assert last_line(lines[1] + "\n{}\n") == "later"
    assert last_line("plain\n\n") == "plain"


def test_a_note_is_its_sentence() -> None:
    said = logs.note("worker_lost", "Worker 1: gone.", worker=1)
    assert said == "Worker 1: gone."
    assert f"{said}" == "Worker 1: gone."


@pytest.mark.usefixtures("json_log")
def test_lines_of_another_process_are_passed_on_or_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    line = logs.JsonFormatter().format(_record("told by a worker", 1))
    logs.relay_line(line)
    logs.relay_line('{"a": 1}')
    logs.relay_line("(raylet) something")
    passed, other, wrapped = _read(capsys)
    assert passed == json.loads(line)
    assert (other["event"], other["message"]) == ("output", '{"a": 1}')
    assert (wrapped["event"], wrapped["message"]) == ("output", "(raylet) something")


@pytest.mark.usefixtures("json_log")
def test_a_worker_keeps_its_newest_lines_for_the_driver() -> None:
    relay = LogRelay("json", "")
    relay.begin("night", 3)
    try:
        for number in range(MAX_LINES + 5):
            log.warning("line %d", number)
        lines = [json.loads(line) for line in relay.take()]
        assert len(lines) == MAX_LINES
        assert lines[-1]["message"] == f"line {MAX_LINES + 4}"
        assert {(line["run"], line["worker"]) for line in lines} == {("night", 3)}
        assert "5 lines" in json.loads(relay.take()[0])["message"]
        assert relay.take() == ()
    finally:
        logging.getLogger().removeHandler(relay)


def test_every_event_in_the_code_is_known_and_documented() -> None:
    import re

    from tests.support.paths import ROOT

    used: set[str] = set()
    for package in ("jobs", "pipeline"):
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            used |= set(re.findall(r'log_event\(\s*\w+(?:\.getLogger\([^)]*\))?,\s*"(\w+)"', text))
            used |= set(re.findall(r'\bnote\(\s*"(\w+)",', text))
    assert used
    assert used <= logs.EVENTS.keys()
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    missing = [name for name, kind in logs.EVENTS.items() if f"| `{name}` | {kind.level} | {kind.meaning}" not in page]
    assert not missing
