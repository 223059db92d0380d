"""Notifications, with a real HTTP server and a real program."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs.scheduling.engine import plan_firing
from jobs.scheduling.firing import Ending
from jobs.scheduling.notifications import deliver_open_notifications
from jobs.scheduling.schedule import Event, build_schedule
from jobs.scheduling.store import Notification, ScheduleStore

SECRET = "T00000000/B00000000/very-secret"
COMPLETE = Ending(
    "complete", "", 0, {"images": 1200, "images_done": 1200, "instances": 3456, "failed": 3, "seconds": 61}
)
FAILED = Ending("over_error_budget", "90 of 1200 images failed (7.5%); allowed are 5.0%.", 1, {"images": 1200})


class Webhook:
    """A Slack of our own: answers with the codes it was given, then 200, and keeps what it was sent."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.bodies: list[dict[str, str]] = []
        self.types: list[str] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.bodies.append(json.loads(body))
                webhook.types.append(self.headers["Content-Type"])
                self.send_response(webhook.codes.pop(0) if webhook.codes else 200)
                self.send_header("Content-Length", "0")
                self.send_header("Location", webhook.url)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/services/{SECRET}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    """A webhook whose URL is in the variable NIGHT_HOOK; retries do not wait."""
    server = Webhook()
    monkeypatch.setenv("NIGHT_HOOK", server.url)
    yield server
    server.close()


@pytest.fixture
def notify(tmp_path: Path) -> Callable[..., list[Notification]]:
    """End a firing, deliver the open notifications, and return those that could not be delivered."""

    def end(
        notify: dict[str, object],
        *,
        event: Event = "end",
        ending: Ending | None = COMPLETE,
        hook_timeout_s: float = 60.0,
    ) -> list[Notification]:
        keys = {"name": "nightly", "spec": "/srv/job.yaml", "cron": "30 2 * * *", "deadline_s": 3600, "notify": notify}
        firing = plan_firing(build_schedule(keys), datetime(2026, 11, 23, 2, 30, tzinfo=UTC), "cron")
        with closing(ScheduleStore(tmp_path)) as store:
            store.insert(firing)
            store.update(replace(firing, state="ended" if ending else "running", ending=ending), event=event)
            deliver_open_notifications(tmp_path, longest_wait_s=0.0, hook_timeout_s=hook_timeout_s)
            assert store.open_notifications() == []
            return store.failed_notifications(firing.name)

    return end


def test_a_webhook_gets_slacks_json_with_run_status_and_counts(
    webhook: Webhook, notify: Callable[..., list[Notification]]
) -> None:
    assert notify({"webhook_url_env": "NIGHT_HOOK", "webhook_format": "slack"}) == []
    assert webhook.types == ["application/json"]
    assert webhook.bodies == [
        {
            "text": "htc schedule nightly: complete\nrun nightly-20261123-023000\n"
            "1,200 of 1,200 images, 3,456 instances, 3 images failed"
        }
    ]


def test_a_notification_of_a_run_without_images_has_no_counts(
    webhook: Webhook, notify: Callable[..., list[Notification]]
) -> None:
    notify({"webhook_url_env": "NIGHT_HOOK"}, ending=Ending("complete", "", 0, {"images": 0, "images_done": 0}))
    assert webhook.bodies[0]["text"].endswith("run nightly-20261123-023000\nno image to do")


def test_a_failure_notification_has_the_reason(webhook: Webhook, notify: Callable[..., list[Notification]]) -> None:
    notify({"webhook_url_env": "NIGHT_HOOK"}, event="failure", ending=FAILED)
    text = webhook.bodies[0]["text"]
    assert text.startswith("htc schedule nightly: FAILED (over error budget)\n")
    assert text.endswith("90 of 1200 images failed (7.5%); allowed are 5.0%.")


def test_another_webhook_gets_every_field(webhook: Webhook, notify: Callable[..., list[Notification]]) -> None:
    notify({"webhook_url_env": "NIGHT_HOOK"}, event="failure", ending=FAILED)
    (body,) = webhook.bodies
    wanted = {"event": "failure", "schedule": "nightly", "outcome": "over_error_budget", "exit_code": 1}
    assert wanted.items() <= body.items()
    assert body["text"].startswith("htc schedule nightly: FAILED")


def test_apprise_is_a_channel_of_a_schedule(
    notify: Callable[..., list[Notification]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_MAIL", raising=False)
    (failed,) = notify({"apprise_url_env": "NO_MAIL"})
    assert (failed.channel, failed.problem) == ("apprise", "the environment variable NO_MAIL is empty or not set")


def test_a_deadline_notification_names_the_deadline(
    webhook: Webhook, notify: Callable[..., list[Notification]]
) -> None:
    notify({"webhook_url_env": "NIGHT_HOOK"}, event="deadline", ending=None)
    assert webhook.bodies[0]["text"].startswith("htc schedule nightly: LATE: not finished by 2026-11-23 03:30 UTC")


def test_the_url_can_be_in_a_file(webhook: Webhook, notify: Callable[..., list[Notification]], tmp_path: Path) -> None:
    (tmp_path / "url").write_text(webhook.url + "\n")
    assert notify({"webhook_url_file": str(tmp_path / "url")}) == []
    assert len(webhook.bodies) == 1


def test_a_notification_to_a_failing_webhook_is_retried(
    webhook: Webhook, notify: Callable[..., list[Notification]]
) -> None:
    webhook.codes = [503, 429, 500]
    assert notify({"webhook_url_env": "NIGHT_HOOK"}) == []
    assert len(webhook.bodies) == 4


@pytest.mark.parametrize(
    ("codes", "sent", "problem"),
    [
        ([500] * 9, 5, "the webhook answered 500"),
        ([404], 1, "the webhook answered 404; is its URL still right?"),
        ([302], 1, "the webhook answered 302; is its URL still right?"),
    ],
)
def test_a_webhook_that_refuses_is_recorded_without_its_url(
    webhook: Webhook, notify: Callable[..., list[Notification]], *, codes: list[int], sent: int, problem: str
) -> None:
    webhook.codes = codes
    (failed,) = notify({"webhook_url_env": "NIGHT_HOOK"})
    assert failed.problem == problem
    assert len(webhook.bodies) == sent


def test_an_unreachable_webhook_is_recorded_without_its_url(
    webhook: Webhook, notify: Callable[..., list[Notification]], caplog: pytest.LogCaptureFixture
) -> None:
    webhook.close()
    (failed,) = notify({"webhook_url_env": "NIGHT_HOOK"})
    assert failed.problem == "the webhook cannot be reached (ConnectionError)"
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("value", "problem"),
    [(None, "is empty or not set"), ("  ", "is empty or not set"), ("not-a-url-but-secret", "does not hold a URL")],
)
def test_a_variable_without_a_url_is_named(
    notify: Callable[..., list[Notification]], monkeypatch: pytest.MonkeyPatch, value: str | None, problem: str
) -> None:
    if value is not None:
        monkeypatch.setenv("NIGHT_HOOK", value)
    (failed,) = notify({"webhook_url_env": "NIGHT_HOOK"})
    assert failed.problem == f"the environment variable NIGHT_HOOK {problem}"


def test_only_the_requested_events_are_notified(webhook: Webhook, notify: Callable[..., list[Notification]]) -> None:
    notify({"webhook_url_env": "NIGHT_HOOK", "events": ["failure", "deadline"]})
    assert webhook.bodies == []


def test_the_exit_hook_gets_the_event_in_its_environment(
    notify: Callable[..., list[Notification]], tmp_path: Path
) -> None:
    hook = tmp_path / "hook with a space"
    hook.write_text(f'#!/bin/sh\nenv | grep ^HTC_ | sort > "{tmp_path}/received"\necho "$1" >> "{tmp_path}/received"\n')
    hook.chmod(0o755)
    assert notify({"exit_hook": [str(hook), "$(no shell)"]}, event="failure", ending=FAILED) == []
    received = (tmp_path / "received").read_text()
    for line in (
        "HTC_EVENT=failure",
        "HTC_SCHEDULE=nightly",
        "HTC_RUN=nightly-20261123-023000",
        "HTC_SCHEDULED=2026-11-23T02:30:00+00:00",
        "HTC_SPEC=/srv/job.yaml",
        "HTC_STATUS=over_error_budget",
        "HTC_EXIT_CODE=1",
        "HTC_REASON=90 of 1200 images failed (7.5%); allowed are 5.0%.",
        "HTC_IMAGES=1200",
        "$(no shell)",
    ):
        assert line in received.split("\n")


def test_a_failed_hook_is_recorded(notify: Callable[..., list[Notification]]) -> None:
    (failed,) = notify({"exit_hook": ["sh", "-c", "echo the pager is full >&2; exit 3"]})
    assert failed.problem == "sh ended with exit code 3: the pager is full"


def test_a_missing_hook_is_recorded(notify: Callable[..., list[Notification]]) -> None:
    (failed,) = notify({"exit_hook": ["/nowhere/page-me"]})
    assert failed.problem == "/nowhere/page-me cannot be run: No such file or directory"


def test_a_hook_that_hangs_is_killed(notify: Callable[..., list[Notification]]) -> None:
    (failed,) = notify({"exit_hook": ["sleep", "60"]}, hook_timeout_s=0.2)
    assert failed.problem == "sleep did not end within 0.2 s"
