"""Connecting to a cluster: addresses in all spellings, and an error within seconds if nothing answers."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cluster.client import (
    CONNECT_TIMEOUT_S,
    check_version,
    connect,
    is_this_machine,
    resolve_address,
    use_own_token,
)
from jobs.cluster.errors import ClusterError, JobRunningError, NoSuchJobError, translated_errors
from pipeline.cluster.connection import reread_ray_settings
from pipeline.errors import SpecError
from tests.support.servers.fake_jobs import dashboard
from tests.support.without_torch import BLOCKER


@pytest.mark.parametrize(
    ("given", "environment", "url"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        ("auto", {}, "http://127.0.0.1:8265"),
        ("10.0.0.1", {}, "http://10.0.0.1:8265"),
        ("head.example:8265", {}, "http://head.example:8265"),
        ("http://head.example:8265/", {}, "http://head.example:8265"),
        ("https://ray.example/cluster-7", {}, "https://ray.example/cluster-7"),
        ("ray://10.0.0.1:10001", {}, "http://10.0.0.1:8265"),
        ("10.0.0.1:6379", {}, "http://10.0.0.1:8265"),
        ("[::1]:9000", {}, "http://[::1]:9000"),
        (None, {"RAY_ADDRESS": "10.0.0.2:6379"}, "http://10.0.0.2:8265"),
        (None, {"RAY_ADDRESS": "10.0.0.2:6379", "RAY_API_SERVER_ADDRESS": "http://h:1"}, "http://h:1"),
        ("10.0.0.1", {"RAY_API_SERVER_ADDRESS": "http://h:1"}, "http://10.0.0.1:8265"),
    ],
)
def test_addresses_in_all_spellings(given: str | None, environment: dict[str, str], url: str) -> None:
    assert resolve_address(given, environment) == url


@pytest.mark.parametrize("given", ["http://", "head:port", "s3://bucket", "://x"])
def test_an_invalid_address_is_refused(given: str) -> None:
    with pytest.raises(SpecError, match=r"is not a cluster's address.*http://10"):
        resolve_address(given, {})


def test_a_tunnel_begins_on_this_machine() -> None:
    assert is_this_machine("http://127.0.0.1:8265")
    assert is_this_machine("http://localhost:9000")
    assert not is_this_machine("http://10.0.0.1:8265")


def test_nothing_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterError) as caught:
            connect(url)
    said = str(caught.value)
    for hint in (url, "8265", "ray start --head --dashboard-host", "kubectl port-forward"):
        assert hint in said


def test_a_host_that_is_not_known_is_named() -> None:
    with pytest.raises(ClusterError, match=r"The host nowhere\.invalid of http://nowhere\.invalid:8265 is not known"):
        connect("nowhere.invalid")


def test_a_server_that_speaks_something_else_is_not_missing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                with one:
                    one.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(ClusterError, match=r"accepts connections at .*, and does not answer as a Ray dashboard"):
            connect(f"http://127.0.0.1:{server.getsockname()[1]}", connect_timeout_s=0.5)


def test_a_server_that_never_answers_is_an_error() -> None:
    # Connection and answer together: ten seconds are promised, with the import of Ray.
    assert 2 * CONNECT_TIMEOUT_S < 9
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(8)
        with pytest.raises(ClusterError, match=r"accepts connections at .*, and does not answer"):
            connect(f"http://127.0.0.1:{mute.getsockname()[1]}", connect_timeout_s=0.3)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, None),
        (500, None),
        (200, "<html>a shop</html>"),
        (200, "{}"),
        (401, "<html>please log in</html>"),
        (403, "Forbidden"),
    ],
)
def test_another_server_at_the_address_is_an_error(status: int, body: str | None) -> None:
    with dashboard(status=status, body=body) as url, pytest.raises(ClusterError) as caught:
        connect(url)
    assert f"{url} is not a Ray dashboard" in str(caught.value)
    assert "8265" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, "Unauthorized: Missing authentication token", "asks for a token: set RAY_AUTH_MODE=token, and"),
        (
            403,
            "Forbidden: Invalid authentication token",
            "does not accept this machine's token: set RAY_AUTH_MODE=token",
        ),
    ],
)
def test_a_cluster_that_asks_for_a_token(status: int, body: str, sentence: str) -> None:
    with dashboard(status=status, body=body) as url, pytest.raises(ClusterError, match=sentence) as caught:
        connect(url)
    assert "RAY_AUTH_TOKEN or in ~/.ray/auth_token" in str(caught.value)


def test_an_explicit_address_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    with dashboard() as url:
        client = connect(url)
        assert client.url == url
        assert client.states() == []
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:2"


def test_another_version_of_ray_is_reported() -> None:
    import ray

    with dashboard(ray_version="2.44.1") as url:
        client = connect(url)
        # Listing works with any version.
        assert client.states() == []
        with pytest.raises(ClusterError) as caught:
            _ = client.note
    assert str(caught.value) == (
        f"The cluster at {url} runs Ray 2.44.1, and this machine Ray {ray.__version__}; htc-batch needs Ray 2.52 or "
        "later there: give the cluster a newer image."
    )
    assert check_version("2.60.0", "2.60.0", "u") == ""
    assert check_version("2.55.1", "2.60.0", "u") == (
        "The cluster at u runs Ray 2.55.1, and this machine Ray 2.60.0; the job runs with the cluster's."
    )
    with pytest.raises(ClusterError, match=r"Ray 3\.1\.0, and this machine Ray 2\.60\.0; install the same here"):
        check_version("3.1.0", "2.60.0", "u")


def test_what_ray_refuses_is_one_sentence() -> None:
    with pytest.raises(NoSuchJobError, match="knows no job a-1; htc list"), translated_errors("http://u", "a-1"):
        raise RuntimeError("Request failed with status code 404: Job a-1 does not exist")
    trace = "Request failed with status code 500: Traceback (most recent call last):\n  File ...\nValueError: no\n."
    with pytest.raises(ClusterError) as caught, translated_errors("http://u"):
        raise RuntimeError(trace)
    assert "\n" not in str(caught.value)
    taken = "Request failed with status code 400: Job with submission_id a-1 already exists. Please use another."
    with pytest.raises(JobRunningError, match="The job a-1 is already working"), translated_errors("http://u"):
        raise RuntimeError(taken)
    # Errors of this package, and bugs, pass unchanged.
    with pytest.raises(ZeroDivisionError), translated_errors("http://u"):
        raise ZeroDivisionError


@pytest.mark.parametrize("runtime_env", ["code", "image", "pip"])
def test_submitting_needs_no_torch(tmp_path: Path, runtime_env: str) -> None:
    blocker = BLOCKER.replace('"ray", ', "")
    places = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), "--runtime-env", runtime_env]
    with dashboard() as url:
        script = f"{blocker}\nfrom jobs import cli\ncli.main({['submit', '--address', url, *places]!r})"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^Submitted htc-\d{8}-\d{6}-[0-9a-f]{6} to ", done.stdout)


def test_a_wrong_spec_is_reported_before_the_cluster_is_contacted() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "submit", "--input", "s3://b/in", "--address", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "output" in done.stderr
    assert "No cluster" not in done.stderr


@pytest.fixture
def own_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A token where `ray get-auth-token --generate` writes it; Ray's settings are restored afterwards."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    token = "0123456789abcdef" * 4
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(token)
    yield token
    os.environ.pop("RAY_AUTH_MODE", None)
    reread_ray_settings()


def test_a_cluster_on_this_machine_gets_this_machines_token(own_token: str) -> None:
    with dashboard(token=own_token) as url:
        assert connect(url).states() == []


def test_another_token_is_not_tried_twice(own_token: str) -> None:
    with dashboard(token="f" * 64) as url, pytest.raises(ClusterError, match="token"):
        connect(url)


def test_a_choice_of_the_user_is_kept(own_token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with dashboard(token=own_token) as url, pytest.raises(ClusterError, match="asks for a token"):
        connect(url)
    assert not use_own_token()
