"""`htc browse` as a program: its address, its end, and what it says when it cannot begin."""

import html
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from jobs.results.browse import command
from jobs.results.browse.access import Access
from jobs.results.browse.app import build_app
from jobs.results.browse.command import serving
from jobs.results.browse.tables import Tables
from pipeline.storage.storage import Storage
from tests.support.htc import Htc
from tests.support.paths import ROOT
from tests.support.without_torch import BLOCKER


@pytest.fixture
def process(two_runs: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The program, in a folder of its own, on a machine without torch and Ray."""
    arguments = ["browse", str(two_runs), "--port", "0", "--no-open"]
    words = [sys.executable, "-c", f"{BLOCKER}\nfrom jobs import cli\ncli.main({arguments!r})"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    started = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path, env=environment)
    yield started
    started.kill()
    started.communicate()


@pytest.mark.slow
def test_it_prints_its_address_and_ends_at_ctrl_c(process: subprocess.Popen[str], tmp_path: Path) -> None:
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address)
    session = requests.Session()
    answer = session.get(address, timeout=30)
    assert answer.status_code == 200
    base = address.split("/?")[0]
    for page in ("/facets", "/compare", "/compare/whole?a=monday&b=tuesday", "/runs", "/run", "/failures"):
        assert session.get(base + page, timeout=60).status_code == 200
    (picture, *_) = re.findall(r'src="(/picture[^"]*)"', answer.text)
    assert session.get(base + html.unescape(picture), timeout=60).headers["content-type"] == "image/jpeg"
    assert "?token" not in answer.url
    assert "uvicorn" not in str(answer.headers).lower()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stderr is not None
    said = process.stderr.read()
    assert "Ctrl-C ends it" in said
    assert "Ended." in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_it_ends_while_a_query_runs(two_runs: Path) -> None:
    access = Access()
    app, browser = build_app(Tables(str(two_runs), Storage()), access)
    endless = "SELECT count(*) FROM range(10000000000) AS a, range(10000000000) AS b"
    with serving(app, 0) as served:
        session = requests.Session()
        session.get(f"{served.address}/?token={access.token}", timeout=30)
        asked = threading.Thread(
            target=lambda: session.get(f"{served.address}/sql/answer", params={"sql": endless}, timeout=60), daemon=True
        )
        asked.start()
        _wait_until(lambda: browser.busy() == 1)
        browser.close()
    _wait_until(lambda: browser.busy() == 0)
    assert not served.is_alive()


def test_a_query_stops_when_its_reader_leaves(two_runs: Path) -> None:
    access = Access()
    app, browser = build_app(Tables(str(two_runs), Storage()), access)
    with serving(app, 0) as served:
        session = requests.Session()
        session.get(f"{served.address}/?token={access.token}", timeout=30)
        cookie = "; ".join(f"{name}={value}" for name, value in session.cookies.items())
        connection = http.client.HTTPConnection(served.address.removeprefix("http://"), timeout=30)
        endless = "SELECT+count(*)+FROM+range(10000000000)+AS+a,+range(10000000000)+AS+b"
        connection.request("GET", f"/sql/answer?sql={endless}", headers={"Cookie": cookie})
        _wait_until(lambda: browser.busy() == 1)
        connection.close()
        _wait_until(lambda: browser.busy() == 0)
        assert session.get(f"{served.address}/runs", timeout=30).status_code == 200
    browser.close()


def _wait_until(is_so: object) -> None:
    deadline = time.monotonic() + 60
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come about within a minute"
        time.sleep(0.02)


def test_it_listens_on_the_loopback_address_only() -> None:
    listening = command._listen(0)
    try:
        assert listening.getsockname()[0] == "127.0.0.1"
        # Else asyncio leaves Nagle's algorithm on, and each answer waits 40 ms.
        assert listening.proto == socket.IPPROTO_TCP
    finally:
        listening.close()


def test_a_port_that_is_taken_is_named(htc: Htc, two_runs: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, said = htc("browse", str(two_runs), "--port", str(port), "--no-open")
        assert code == 2
        assert f"--port {port} cannot be used" in said
        # Without the flag, another one is taken.
        command_port, command.DEFAULT_PORT = command.DEFAULT_PORT, port
        try:
            listening = command._listen(None)
        finally:
            command.DEFAULT_PORT = command_port
        assert listening.getsockname()[1] != port
        listening.close()


def test_without_the_extra_it_says_what_to_install(htc: Htc, two_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    code, _, said = htc("browse", str(two_runs))
    assert code == 2
    assert said.count("\n") == 1
    assert "pip install 'htc-batch[web]'" in said


def test_an_output_without_a_run_is_refused(htc: Htc, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, said = htc("browse", str(tmp_path / "empty"), "--no-open")
    assert code == 2
    assert "holds no run" in said


@pytest.mark.parametrize("port", ["70000", "-1", "x"])
def test_a_wrong_port_is_refused(htc: Htc, two_runs: Path, port: str) -> None:
    assert htc("browse", str(two_runs), "--port", port)[0] == 2


def test_the_browser_is_opened_where_there_is_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not command.has_screen()
    monkeypatch.setenv("DISPLAY", ":0")
    assert command.has_screen()
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4")
    assert not command.has_screen()
