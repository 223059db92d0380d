"""A run announces its start, end and lateness: to real servers on 127.0.0.1, and by real programs."""

import asyncio
import json
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli.program import main
from jobs.notifications import announcer as announcing
from jobs.notifications.announcer import Patience, RunAnnouncer
from jobs.running import run as running
from pipeline.driver import run_job as driver
from pipeline.errors import HtcError, InputError, SpecError, StoppedError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.messages import ImageFailure
from pipeline.output.json_files import write_json
from pipeline.runs.last_failure import last_failure_uri
from pipeline.runs.lease import RunHeldError
from pipeline.runs.summary import RunSummary, summary_uri
from pipeline.storage.storage import Storage
from tests.support.servers.http_server import serving

needs_apprise = pytest.mark.skipif(
    find_spec("apprise") is None or find_spec("aiosmtpd") is None, reason="apprise or aiosmtpd is not installed"
)
# Of apprise, when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

SECRET = "T00000000/B00000000/very-secret"
QUICK = Patience(bound_s=5.0, hook_timeout_s=5.0, longest_wait_s=0.0)


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


OVER = summary(
    status="over_error_budget",
    exit_code=1,
    reason="90 of 1,200 images failed.",
    statuses={"ok": 1110, "unreadable": 90},
    failure_examples=(ImageFailure("s3://b/x.jpg", "unreadable", "not an image"),),
)


class Server:
    """A receiver on 127.0.0.1: what it got, and how it answers (codes, then 200)."""

    def __init__(self) -> None:
        self.url = ""
        self.codes: list[int] = []
        self.requests: list[tuple[str, bytes]] = []
        self.is_hanging = threading.Event()

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.requests]

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose URL, with a secret, is in the variable RUN_HOOK."""
    found = Server()
    is_over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            if found.is_hanging.is_set():
                is_over.wait(30)
                return
            code = found.codes.pop(0) if found.codes else 200
            self.send_response(code)
            if code == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_PUT(self) -> None:
            self.do_POST()

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

    with serving(Handler) as url:
        found.url = url
        monkeypatch.setenv("RUN_HOOK", f"{url}/services/{SECRET}")
        yield found
        is_over.set()


def announce_end(spec: JobSpec, ended: RunSummary, patience: Patience = QUICK) -> None:
    RunAnnouncer(spec, patience=patience).ended(ended)


def test_a_failed_run_is_posted_with_all_that_an_operator_asks(tmp_path: Path, server: Server) -> None:
    server.codes = [503]
    announce_end(spec_with(tmp_path, webhook_url_env="RUN_HOOK"), OVER)
    assert len(server.requests) == 2
    body = server.bodies[1]
    output = str(tmp_path / "out")
    wanted = {
        "event": "failure",
        "job": "street",
        "run": "r1",
        "output": output,
        "outcome": "over_error_budget",
        "exit_code": 1,
        "reason": "90 of 1,200 images failed.",
        "images_per_s": 19.7,
        "seconds": 61.0,
        "first_failure": {"uri": "s3://b/x.jpg", "status": "unreadable", "reason": "not an image"},
    }
    assert {key: body[key] for key in wanted} == wanted
    assert body["counts"] == {"images": 1200, "images_done": 1200, "instances": 3456, "failed": 90, "seconds": 61.0}
    assert body["next_command"].startswith(f"htc query {output} ")
    assert body["text"].splitlines() == [
        "htc street: FAILED (over error budget)",
        "run r1",
        "1,200 of 1,200 images, 3,456 instances, 90 images failed",
        "90 of 1,200 images failed.",
        "19.70 images/s, 1 min 01 s",
        "for example s3://b/x.jpg: unreadable, not an image",
        f"look further: {body['next_command']}",
        output,
    ]


def test_slack_and_teams_get_their_own_bodies(tmp_path: Path, server: Server) -> None:
    announce_end(spec_with(tmp_path, webhook_url_env="RUN_HOOK", webhook_format="slack"), OVER)
    announce_end(spec_with(tmp_path, webhook_url_env="RUN_HOOK", webhook_format="teams"), OVER)
    slack, teams = server.bodies
    assert list(slack) == ["text"]
    # `<` begins a link there.
    assert "status &lt;&gt; 'ok'" in slack["text"]
    (card,) = teams["attachments"]
    assert card["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert card["content"]["body"][0]["text"] == "htc street: FAILED (over error budget)"


def test_a_program_gets_the_end_in_its_environment(tmp_path: Path) -> None:
    sink = tmp_path / "seen"
    hook = ["sh", "-c", f'echo "$HTC_EVENT $HTC_RUN $HTC_STATUS $HTC_EXIT_CODE $HTC_IMAGES $HTC_FAILED" > {sink}']
    announce_end(spec_with(tmp_path, exit_hook=hook), summary())
    assert sink.read_text() == "end r1 complete 0 1200 3\n"


@pytest.mark.parametrize(
    ("events", "ended", "seen"),
    [
        (["failure"], summary(), ""),
        (["failure"], OVER, "failure\n"),
        # Stopped early: a failure of its own name.
        (["failure"], summary(status="over_error_budget", exit_code=1, images_done=300), "early_stop\n"),
        (["early_stop"], summary(status="over_error_budget", exit_code=1, images_done=300), "early_stop\n"),
        (["early_stop"], OVER, ""),
        (["end"], OVER, ""),
    ],
)
def test_only_chosen_events_are_reported(tmp_path: Path, events: list[str], ended: RunSummary, seen: str) -> None:
    sink = tmp_path / "seen"
    sink.touch()
    spec = spec_with(tmp_path, exit_hook=["sh", "-c", f'echo "$HTC_EVENT" >> {sink}'], events=events)
    announce_end(spec, ended)
    assert sink.read_text() == seen


@pytest.mark.parametrize(
    ("notify", "reason"),
    [
        ({"webhook_url_env": "NOT_SET"}, "the environment variable NOT_SET is empty or not set"),
        ({"webhook_url_env": "CLOSED"}, "the webhook cannot be reached"),
        ({"ping_url_env": "CLOSED"}, "the ping service cannot be reached"),
        ({"pushgateway_url_env": "CLOSED"}, "the Pushgateway cannot be reached"),
        pytest.param({"apprise_url_env": "CLOSED_MAIL"}, "apprise could not deliver by mailto", marks=needs_apprise),
        pytest.param(
            {"apprise_url_env": "NONSENSE"}, "does not understand the URL no-such-service", marks=needs_apprise
        ),
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
    monkeypatch.setenv("CLOSED_MAIL", "mailto://night:very-secret@127.0.0.1:9?from=a@example.org&to=b@example.org")
    monkeypatch.setenv("NONSENSE", "no-such-service://very-secret")
    announce_end(spec_with(tmp_path, **notify), OVER, Patience(bound_s=5.0, hook_timeout_s=0.2, longest_wait_s=0.0))
    err = capsys.readouterr().err
    assert reason in err
    assert "very-secret" not in err


def test_what_cannot_work_is_said_when_the_run_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunAnnouncer(spec_with(tmp_path, webhook_url_env="NOT_SET", exit_hook=["no-such-program"]))
    err = capsys.readouterr().err
    assert "The webhook of notify cannot be used: the environment variable NOT_SET is empty or not set." in err
    assert "no-such-program is no program of this machine" in err


def test_a_webhook_that_hangs_holds_the_run_up_no_longer_than_the_bound(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.is_hanging.set()
    spec = spec_with(tmp_path, webhook_url_env="RUN_HOOK", ping_url_env="RUN_HOOK")
    ended = summary(ended="2026-11-26T03:00:00+00:00")
    write_json(Storage(), summary_uri(spec.output.uri, "r1"), ended.to_dict())
    announce_end(spec, ended, Patience(bound_s=0.3, longest_wait_s=0.0))
    assert "The webhook of notify was not reached: there was no answer within 0.3 s." in capsys.readouterr().err
    noted = json.loads(Storage().read(summary_uri(spec.output.uri, "r1")))
    assert noted["status"] == "complete"
    assert noted["notifications"] == dict.fromkeys(("webhook", "ping"), "there was no answer within 0.3 s")


@pytest.mark.parametrize(
    ("codes", "sent", "problem"),
    [
        ([500] * 9, 5, "the webhook answered 500"),
        ([429, 500], 3, "delivered"),
        ([404], 1, "the webhook answered 404; is its URL still right?"),
        ([302], 1, "the webhook answered 302; is its URL still right?"),
    ],
)
def test_answers_of_a_webhook_are_noted_in_the_summary(
    tmp_path: Path, server: Server, codes: list[int], sent: int, problem: str
) -> None:
    server.codes = codes
    spec = spec_with(tmp_path, webhook_url_env="RUN_HOOK")
    ended = summary(ended="2026-11-26T03:00:00+00:00")
    write_json(Storage(), summary_uri(spec.output.uri, "r1"), ended.to_dict())
    announce_end(spec, ended)
    assert len(server.requests) == sent
    assert json.loads(Storage().read(summary_uri(spec.output.uri, "r1")))["notifications"] == {"webhook": problem}


def test_the_summary_of_a_later_session_is_left_alone(tmp_path: Path, server: Server) -> None:
    spec = spec_with(tmp_path, webhook_url_env="RUN_HOOK")
    later = summary(ended="2026-11-26T04:00:00+00:00").to_dict()
    write_json(Storage(), summary_uri(spec.output.uri, "r1"), later)
    announce_end(spec, summary(ended="2026-11-26T03:00:00+00:00"))
    assert len(server.requests) == 1
    assert json.loads(Storage().read(summary_uri(spec.output.uri, "r1")))["notifications"] == {}


def test_after_a_signal_it_waits_a_shorter_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Patience().now().bound_s == 60.0
    monkeypatch.setattr(announcing, "was_stopped", lambda: True)
    assert (Patience().now().bound_s, Patience().now().hook_timeout_s) == (10.0, 10.0)


def test_a_command_that_is_stopped_before_its_run_begins_waits_a_second(tmp_path: Path, server: Server) -> None:
    server.is_hanging.set()
    announcer = RunAnnouncer(spec_with(tmp_path, webhook_url_env="RUN_HOOK"))
    began = time.monotonic()
    announcer.failed(StoppedError("Stopped by SIGTERM."), None)
    # Not a minute.
    assert time.monotonic() - began < 30
    assert len(server.requests) == 1


def test_an_outside_service_gets_start_success_and_failure(tmp_path: Path, server: Server) -> None:
    spec = spec_with(tmp_path, ping_url_env="RUN_HOOK", events=[])
    first = RunAnnouncer(spec, patience=QUICK)
    first.begun(NamedRun("r1"))
    first.ended(summary())
    # A run that was complete before is a sign of life, too.
    announce_end(spec, summary(session_images=0))
    announce_end(spec, OVER)
    RunAnnouncer(spec, patience=QUICK).failed(InputError("The input is empty."), None)
    start, end, same, fail, never_begun = server.requests
    place = f"/services/{SECRET}"
    assert [start[0], end[0], same[0], fail[0], never_begun[0]] == [
        f"{place}/start",
        place,
        place,
        f"{place}/fail",
        f"{place}/fail",
    ]
    assert never_begun[1] == b"The input is empty."


class NamedRun:
    """What the announcer asks of an open run."""

    def __init__(self, name: str) -> None:
        self.name = name


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_start_that_hangs_shares_the_bound_of_the_end(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.is_hanging.set()
    spec = spec_with(tmp_path, webhook_url_env="RUN_HOOK", events=["start", "end"])
    announcer = RunAnnouncer(spec, patience=Patience(bound_s=0.6, longest_wait_s=0.0))
    announcer.begun(NamedRun("r1"))
    announcer.ended(summary())
    # Half of the bound for the start, the other half for the end.
    assert "The webhook of notify was not reached: there was no answer within 0.3 s." in capsys.readouterr().err


def test_ctrl_c_ends_the_waiting_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(announcing, "deliver_side_by_side", interrupt)
    announce_end(spec_with(tmp_path, exit_hook=["true"]), summary())
    assert "No longer waiting for the notifications" in capsys.readouterr().err


def test_the_start_is_announced_with_the_name_of_the_run(tmp_path: Path, server: Server) -> None:
    announcer = RunAnnouncer(spec_with(tmp_path, webhook_url_env="RUN_HOOK", events=["start"]), patience=QUICK)
    announcer.begun(NamedRun("r7"))
    announcer.ended(summary(run="r7"))
    (body,) = server.bodies
    assert (body["event"], body["run"]) == ("start", "r7")


def test_a_run_that_has_not_ended_in_time_is_announced_once(tmp_path: Path, server: Server) -> None:
    spec = spec_with(tmp_path, webhook_url_env="RUN_HOOK", overdue_after_s=0.05, events=["overdue"])
    announcer = RunAnnouncer(spec, patience=QUICK)
    announcer.begun(NamedRun("r1"))
    wait_until(lambda: bool(server.requests))
    announcer.ended(summary())
    (body,) = server.bodies
    assert body["event"] == "overdue"
    assert body["text"].startswith("htc street: LATE: not ended")


def test_a_run_that_has_ended_is_never_overdue(tmp_path: Path, server: Server) -> None:
    spec = spec_with(tmp_path, webhook_url_env="RUN_HOOK", overdue_after_s=0.5, events=["overdue"])
    announcer = RunAnnouncer(spec, patience=QUICK)
    announcer.begun(NamedRun("r1"))
    announcer.ended(summary())
    time.sleep(0.8)
    assert server.requests == []


def test_the_pushgateway_gets_the_outcome(tmp_path: Path, server: Server) -> None:
    spec = spec_with(tmp_path, pushgateway_url_env="RUN_HOOK")
    keep_run(spec, OVER)
    announce_end(spec, OVER)
    ((path, body),) = server.requests
    assert path.startswith(f"/services/{SECRET}/metrics/job/htc/output@base64/")
    output = tmp_path / "out"
    assert f'htc_last_run_state{{output="{output}",run="r1",state="over_error_budget"}} 1.0' in body.decode()


def keep_run(spec: JobSpec, ended: RunSummary) -> None:
    """Write what a run leaves: its record and its summary."""
    record = {
        "run": ended.run,
        "created": datetime.now(UTC).isoformat(),
        "spec": spec.to_dict(),
        "identity": {},
        "fingerprint": {},
        "versions": {},
        "manifest": {"image_count": ended.images, "shard_count": 1},
        "schema_version": 1,
    }
    write_json(Storage(), f"{spec.output.uri}/runs/{ended.run}/run.json", record)
    write_json(Storage(), summary_uri(spec.output.uri, ended.run), ended.to_dict())


@needs_apprise
def test_mail_is_sent_to_a_mail_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiosmtpd.controller import Controller

    received: list[bytes] = []

    class Keeper:
        async def handle_DATA(  # noqa: N802 - aiosmtpd's name
            self, server: object, session: object, envelope: Any
        ) -> str:
            await asyncio.sleep(0)
            received.append(envelope.content)
            return "250 OK"

    mail = Controller(Keeper(), hostname="127.0.0.1", port=free_port())
    mail.start()
    try:
        url = f"mailto://127.0.0.1:{mail.port}?from=htc@example.org&to=night@example.org&format=text"
        monkeypatch.setenv("NIGHT_MAIL", url)
        announce_end(spec_with(tmp_path, apprise_url_env="NIGHT_MAIL"), OVER)
    finally:
        mail.stop()
    (content,) = received
    message = message_from_bytes(content)
    assert message["Subject"] == "htc street: FAILED (over error budget)"
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    assert b"90 of 1,200 images failed." in bytes(parts[0].get_payload(decode=True))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("error", "is_reported"), [(InputError("The input is empty."), True), (RunHeldError("Another driver."), False)]
)
def test_a_run_that_could_not_begin_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: HtcError, is_reported: bool
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
    for channel in ("webhook", "apprise", "ping", "pushgateway"):
        for key in (f"{channel}_url_env", f"{channel}_url_file", f"{channel}_url", channel):
            with pytest.raises(SpecError) as caught:
                spec_with(tmp_path, **{key: f"https://hooks.example/{SECRET}"})
            assert SECRET not in str(caught.value)


def test_a_failure_is_left_for_monitoring_unless_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_with(tmp_path)
    keep_run(spec, summary())
    note = Path(last_failure_uri(spec.output.uri))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    RunAnnouncer(spec, patience=QUICK).failed(InputError("The input is empty."), None)
    assert not note.exists()
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    RunAnnouncer(spec, patience=QUICK).failed(InputError("The input is empty."), None)
    assert json.loads(note.read_text())["reason"] == "The input is empty."


def test_the_driver_of_a_rayjob_speaks_as_well(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    spec = tmp_path / "job.yaml"
    spec.write_text(
        "input: {uri: 's3://bucket/in/'}\noutput: {uri: 's3://bucket/out/'}\nnotify: {webhook_url_env: RUN_HOOK}\n"
    )
    with pytest.raises(SystemExit) as left:
        main(["manifests", str(spec), "--image", "registry.example/htc:1", "--to", str(tmp_path / "k8s")])
    assert left.value.code == 0, capsys.readouterr().err
    documents = [
        document
        for file in sorted((tmp_path / "k8s").rglob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
        if document
    ]
    (job,) = [document for document in documents if document.get("kind") == "RayJob"]
    (mounted,) = [
        text for document in documents if document.get("kind") == "ConfigMap" for text in document["data"].values()
    ]
    there = tmp_path / "there.yaml"
    there.write_text(mounted.replace("s3://bucket", str(tmp_path)))
    program, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "htc"
    with pytest.raises(SystemExit) as left:
        main([str(there) if word.endswith(".yaml") else word for word in words])
    assert left.value.code == 2
    (body,) = server.bodies
    assert (body["event"], body["outcome"], body["exit_code"]) == ("failure", "failed", 2)
