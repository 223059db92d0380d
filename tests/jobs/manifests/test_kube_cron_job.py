"""The pod that creates a RayJob, against a fake API server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from jobs.entrypoints import kube_cron_job
from jobs.entrypoints.kube_cron_job import BusyServerError, RayJobs, build_own_job, follow

TEMPLATE = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "nightly", "namespace": "htc"},
    "spec": {"entrypoint": "htc run --spec /etc/htc/job.yaml", "backoffLimit": 3},
}


class ApiServer:
    """Answers with the given codes first, then as an API server; the statuses are KubeRay's."""

    def __init__(self) -> None:
        self.created: dict[str, Any] = {}
        self.codes: list[int] = []
        self.statuses: list[dict[str, str]] = []
        self.requests: list[tuple[str, str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = body["metadata"]["name"]
                code = outer.note(self, "POST") or (409 if name in outer.created else 201)
                if code == 201:
                    outer.created[name] = body
                outer.answer(self, code, body)

            def do_GET(self) -> None:
                code = outer.note(self, "GET") or 200
                status = outer.statuses.pop(0) if code == 200 and outer.statuses else {}
                outer.answer(self, code, {"status": status} if status else {})

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def note(self, handler: BaseHTTPRequestHandler, method: str) -> int:
        self.requests.append((method, handler.path, handler.headers["Authorization"]))
        return self.codes.pop(0) if self.codes else 0

    def answer(self, handler: BaseHTTPRequestHandler, code: int, body: object) -> None:
        handler.send_response(code)
        handler.end_headers()
        handler.wfile.write(json.dumps(body).encode())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer()
    yield made
    made.close()


@pytest.fixture
def jobs(server: ApiServer, tmp_path: Path) -> RayJobs:
    (tmp_path / "token").write_text("secret\n")
    return RayJobs(server.url, "htc", account=tmp_path, patience_s=5)


def test_the_ray_job_belongs_to_the_pods_job(server: ApiServer, jobs: RayJobs) -> None:
    jobs.create(build_own_job(TEMPLATE, name="nightly-29", uid="abc", has_own_run=False))
    created = server.created["nightly-29"]
    assert created["metadata"]["ownerReferences"][0] == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": "nightly-29",
        "uid": "abc",
        "controller": True,
    }
    assert created["spec"] == TEMPLATE["spec"]
    assert server.requests == [("POST", "/apis/ray.io/v1/namespaces/htc/rayjobs", "Bearer secret")]


def test_a_full_run_is_named_like_its_job() -> None:
    own = build_own_job(TEMPLATE, name="nightly-29", uid="abc", has_own_run=True)
    assert own["spec"] == {"entrypoint": "htc run --spec /etc/htc/job.yaml --run nightly-29", "backoffLimit": 3}


def test_a_second_pod_finds_the_ray_job_of_the_first(server: ApiServer, jobs: RayJobs) -> None:
    own = build_own_job(TEMPLATE, name="nightly-29", uid="abc", has_own_run=False)
    jobs.create(own)
    jobs.create(own)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("statuses", "exit_code"),
    [
        ([{}, {"jobDeploymentStatus": "Running"}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}], 0),
        ([{"jobDeploymentStatus": "Retrying"}, {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}], 1),
        ([{"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}], 1),
    ],
)
def test_it_waits_for_the_end(server: ApiServer, jobs: RayJobs, statuses: list[dict[str, str]], exit_code: int) -> None:
    server.statuses = statuses
    assert follow(jobs, "nightly-29", poll_s=0) == exit_code
    assert not server.statuses


def test_a_request_to_a_busy_server_is_repeated(server: ApiServer, jobs: RayJobs) -> None:
    server.codes = [503, 429]
    jobs.create(build_own_job(TEMPLATE, name="nightly-29", uid="abc", has_own_run=False))
    assert "nightly-29" in server.created


def test_a_refused_request_is_not_repeated(server: ApiServer, jobs: RayJobs) -> None:
    server.codes = [403]
    with pytest.raises(requests.HTTPError, match="403"):
        jobs.create(build_own_job(TEMPLATE, name="nightly-29", uid="abc", has_own_run=False))
    assert len(server.requests) == 1


def test_the_pod_creates_and_follows_its_ray_job(
    server: ApiServer, jobs: RayJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "rayjob.yaml"
    template.write_text(json.dumps(TEMPLATE))
    for name, value in {
        "JOB_NAME": "nightly-29",
        "JOB_UID": "abc",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    }.items():
        monkeypatch.setenv(name, value)
    connected: list[tuple[str, str]] = []

    def connect(url: str, namespace: str) -> RayJobs:
        connected.append((url, namespace))
        return jobs

    arguments = [str(template), "--run-of-its-own"]
    server.statuses = [{"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    assert kube_cron_job.main(arguments, connect=connect) == 0
    assert connected == [("https://10.0.0.1:443", "htc")]
    assert server.created["nightly-29"]["spec"]["entrypoint"].endswith("--run nightly-29")

    def unreachable(*_: object) -> None:
        raise BusyServerError("503")

    monkeypatch.setattr(jobs, "create", unreachable)
    assert kube_cron_job.main(arguments, connect=connect) == kube_cron_job.UNREACHABLE_EXIT_CODE
