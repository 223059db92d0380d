"""A run reports its own end: to a real HTTP server and by a real program."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from jobs.notifications.run_ending import RunEnding, ending_of_summary, notify_ending
from jobs.running import run as running
from pipeline.driver import run_job as driver
from pipeline.errors import InputError, SpecError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.runs.lease import RunHeldError
from pipeline.runs.summary import RunSummary
from tests.support.servers.http_server import serving

SECRET = "T00000000/B00000000/very-secret"
FAILED = RunEnding("r1", "over_error_budget", 1, "90 of 1,200 images failed.", {"images": 1200, "images_done": 1200})


def spec_with(tmp_path: Path, **notify: Any) -> JobSpec:
    keys = {"name": "street", "input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out")}
    return load_spec(None, {**keys, **{f"notify.{key}": value for key, value in notify.items()}})


def summary(**changes: Any) -> RunSummary:
    values: dict[str, Any] = {
        "run": "r1",
        "status": "complete",
        "exit_code": 0,
        "reason": "",
        "images": 1200,
        "images_done": 1200,
        "statuses": {"ok": 1197, "failed": 3},
        "error_rate": 0.0025,
        "max_error_rate": 0.05,
        "instances": 3456,
        "session_images": 1200,
        "seconds": 61.0,
        "images_per_s": 19.7,
    }
    return RunSummary(**{**values, **changes})


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """What a webhook, whose URL is in the variable RUN_HOOK, was sent; it answers 503 once."""
    found: list[dict[str, str]] = []
    answers = [503]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code = answers.pop() if answers else 200
            if code == 200:
                found.append(body)
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

    with serving(Handler) as url:
        monkeypatch.setenv("RUN_HOOK", f"{url}/services/{SECRET}")
        yield found


def test_a_failed_run_is_posted_with_its_reason(tmp_path: Path, bodies: list[dict[str, str]]) -> None:
    notify_ending(spec_with(tmp_path, webhook_url_env="RUN_HOOK"), FAILED, longest_wait_s=0.0)
    assert bodies == [
        {
            "text": "htc street: FAILED (over error budget)\nrun r1\n1,200 of 1,200 images, 0 instances\n"
            f"90 of 1,200 images failed.\n{tmp_path / 'out'}"
        }
    ]


def test_a_program_gets_the_end_in_its_environment(tmp_path: Path) -> None:
    sink = tmp_path / "seen"
    hook = ["sh", "-c", f'echo "$HTC_EVENT $HTC_RUN $HTC_STATUS $HTC_EXIT_CODE $HTC_IMAGES $HTC_FAILED" > {sink}']
    ending = ending_of_summary(summary())
    assert ending is not None
    notify_ending(spec_with(tmp_path, exit_hook=hook), ending)
    assert sink.read_text() == "end r1 complete 0 1200 3\n"


def test_only_chosen_events_are_reported(tmp_path: Path) -> None:
    sink = tmp_path / "seen"
    spec = spec_with(tmp_path, exit_hook=["touch", str(sink)], events=["failure"])
    ending = ending_of_summary(summary())
    assert ending is not None
    notify_ending(spec, ending)
    assert not sink.exists()
    notify_ending(spec, FAILED)
    assert sink.exists()


@pytest.mark.parametrize(
    ("notify", "reason"),
    [
        ({"webhook_url_env": "NOT_SET"}, "the environment variable NOT_SET is empty or not set"),
        ({"webhook_url_env": "CLOSED"}, "the webhook cannot be reached"),
        ({"exit_hook": ["/no/such/program"]}, "/no/such/program cannot be run: No such file or directory"),
        ({"exit_hook": ["sleep", "60"]}, "sleep did not end within 0.2 s"),
        ({"exit_hook": ["sh", "-c", "echo bad >&2; exit 4"]}, "sh ended with exit code 4: bad"),
    ],
)
def test_what_cannot_be_delivered_is_said_and_changes_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    notify: dict[str, Any],
    reason: str,
) -> None:
    monkeypatch.setenv("CLOSED", f"http://127.0.0.1:9/{SECRET}")
    notify_ending(spec_with(tmp_path, **notify), FAILED, longest_wait_s=0.0, hook_timeout_s=0.2)
    err = capsys.readouterr().err
    assert reason in err
    assert SECRET not in err


def test_a_run_that_was_complete_before_is_not_reported_again() -> None:
    assert ending_of_summary(summary(session_images=0)) is None
    assert ending_of_summary(summary(session_images=0, exit_code=3, reason="its input has changed")) is None
    nothing_new = ending_of_summary(summary(images=0, images_done=0, session_images=0, statuses={}))
    assert nothing_new is not None
    assert nothing_new.exit_code == 0


@pytest.mark.parametrize(
    ("error", "is_reported"), [(InputError("The input is empty."), True), (RunHeldError("Another driver."), False)]
)
def test_a_run_that_could_not_begin_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, is_reported: bool
) -> None:
    def fail(*arguments: object, **options: object) -> RunSummary:
        raise error

    monkeypatch.setattr(driver, "run", fail)
    sink = tmp_path / "seen"
    spec = spec_with(tmp_path, exit_hook=["sh", "-c", f'echo "$HTC_STATUS $HTC_EXIT_CODE $HTC_REASON" > {sink}'])
    with pytest.raises(type(error)):
        running.run_and_report(spec, run=None, fresh=False)
    assert sink.exists() == is_reported
    if is_reported:
        assert sink.read_text() == "failed 2 The input is empty.\n"


def test_a_url_in_the_spec_is_refused_and_not_quoted(tmp_path: Path) -> None:
    for key in ("webhook_url_env", "webhook_url_file", "webhook"):
        with pytest.raises(SpecError) as caught:
            spec_with(tmp_path, **{key: f"https://hooks.example/{SECRET}"})
        assert SECRET not in str(caught.value)
