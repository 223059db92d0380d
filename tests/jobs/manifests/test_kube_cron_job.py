"""The pod that creates RayJobs, against a fake API server."""

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.entrypoints import kube_cron_job
from jobs.entrypoints.kube_cron_job import (
    BusyServerError,
    RayJobs,
    RefusedError,
    build_own_job,
    follow,
    lease_holder,
    other_worker,
    run_attempts,
)
from jobs.manifests.cluster_shape import MAX_NAME
from jobs.manifests.pods import OUTPUT_ANNOTATION
from jobs.manifests.starter import HELD_EXIT_CODE, MAX_RETRIES, REFUSED_EXIT_CODE, attempt_name
from pipeline.runs.lease import take_lease
from pipeline.storage.storage import Storage
from tests.support.builders.outputs import Output

OUTPUT = "s3://bucket/masks/"
TEMPLATE: dict[str, Any] = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "nightly", "namespace": "htc"},
    "spec": {
        "entrypoint": "htc run --spec /etc/htc/job.yaml",
        "backoffLimit": 0,
        "rayClusterSpec": {"headGroupSpec": {"template": {"metadata": {"annotations": {OUTPUT_ANNOTATION: OUTPUT}}}}},
    },
}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def ended(message: str, *, reason: str = "AppFailed", cluster: str = "") -> dict[str, str]:
    """Return the status of a failed RayJob as KubeRay writes it."""
    return {
        "jobDeploymentStatus": "Failed",
        "jobStatus": "FAILED",
        "reason": reason,
        "message": message,
        "rayClusterName": cluster,
    }


def exit_code(code: int, last: str = "") -> dict[str, str]:
    message = f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 chars):"
    return ended(f"{message}\nlisting\n{last}\n")


LOST = ended("Job supervisor actor died: the node was lost", cluster="nightly-29-1-abcde")


class ApiServer:
    """Answers with the given codes first, then as an API server; the statuses are KubeRay's, the last one stays."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.codes: list[int] = []
        self.statuses: dict[str, list[dict[str, str]]] = {}
        self.deleted: list[str] = []
        self.requests: list[tuple[str, str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = body["metadata"]["name"]
                code = outer.note(self) or (409 if name in outer.jobs else 201)
                if code == 201:
                    body["metadata"]["creationTimestamp"] = "2026-11-26T02:30:00Z"
                    outer.jobs[name] = body
                outer.answer(self, code, body)

            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                code = outer.note(self)
                if code:
                    outer.answer(self, code, {"message": "not allowed here"})
                elif name == "rayjobs":
                    outer.answer(self, 200, {"items": list(outer.jobs.values())})
                elif name in outer.jobs:
                    waiting = outer.statuses.get(name, [])
                    if waiting:
                        outer.jobs[name]["status"] = waiting.pop(0)
                    outer.answer(self, 200, outer.jobs[name])
                else:
                    outer.answer(self, 404, {"message": "not found"})

            def do_DELETE(self) -> None:
                outer.deleted.append(self.path.rpartition("namespaces/htc/")[2])
                outer.answer(self, outer.note(self) or 200, {})

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def note(self, handler: BaseHTTPRequestHandler) -> int:
        self.requests.append((handler.command, handler.path, handler.headers["Authorization"]))
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


def own_job(**options: Any) -> dict[str, Any]:
    return build_own_job(TEMPLATE, **{"job": "nightly-29", "uid": "abc", "has_own_run": False, **options})


def attempt(jobs: RayJobs, *, retries: int = 2, **options: Any) -> int:
    given = {"job": "nightly-29", "uid": "abc", "has_own_run": False, "poll_s": 0, "pause_s": 0, **options}
    return run_attempts(jobs, given.pop("template", TEMPLATE), retries=retries, **given)


def test_the_ray_job_belongs_to_the_pods_job_and_has_another_name(server: ApiServer, jobs: RayJobs) -> None:
    """KubeRay's submitter is a Job with the RayJob's name; a Job that is there already would be taken for it."""
    jobs.create(own_job())
    (created,) = server.jobs.values()
    assert created["metadata"]["name"] == "nightly-29-1"
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "nightly-29", "uid": "abc", "controller": True}
    assert created["metadata"]["ownerReferences"] == [owner]
    assert created["spec"] == TEMPLATE["spec"]
    assert server.requests == [("POST", "/apis/ray.io/v1/namespaces/htc/rayjobs", "Bearer secret")]


def test_the_longest_name_is_one_that_kuberay_accepts() -> None:
    # A CronJob's Job ends with the minutes since 1970.
    job = "a" * MAX_NAME + "-" + str(int(datetime(2100, 1, 1, tzinfo=UTC).timestamp() / 60))
    assert len(attempt_name(job, MAX_RETRIES + 1)) <= 47


def test_a_full_run_is_named_like_its_job() -> None:
    own = own_job(has_own_run=True, attempt=2)
    assert own["spec"]["entrypoint"] == "htc run --spec /etc/htc/job.yaml --run nightly-29"


def test_a_second_pod_finds_the_ray_jobs_of_the_first(server: ApiServer, jobs: RayJobs) -> None:
    for number in (1, 2):
        jobs.create(own_job(attempt=number))
    server.jobs["nightly-29-1"]["status"] = LOST
    server.jobs["nightly-29-2"]["status"] = SUCCEEDED
    assert attempt(jobs) == 0
    assert list(server.jobs) == ["nightly-29-1", "nightly-29-2"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (exit_code(1, "The run is over its error budget."), "exit code 1: .* over its error budget"),
        (exit_code(2, "job.yaml: compute.worker is no key."), "exit code 2: .*compute.worker is no key"),
        (exit_code(3), "exit code 3: .* its input has changed"),
        (exit_code(127), "could not be run"),
        (exit_code(130), "interrupted"),
        (ended("runtime_env setup failed: no such package"), "runtime_env setup failed"),
        (ended("", reason="DeadlineExceeded"), "deadline is over"),
        (ended("", reason="ValidationFailed"), "manifest wrong"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "it was stopped"),
    ],
)
def test_a_failed_run_is_not_repeated(
    server: ApiServer, jobs: RayJobs, status: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.statuses["nightly-29-1"] = [{}, {"jobDeploymentStatus": "Running"}, status]
    assert attempt(jobs) == 1
    assert list(server.jobs) == ["nightly-29-1"]
    assert not server.deleted
    assert any(re.search(words, record.getMessage()) for record in caplog.records)


@pytest.mark.parametrize(
    "status",
    [
        LOST,
        exit_code(137) | {"rayClusterName": "nightly-29-1-abcde"},
        exit_code(-9) | {"rayClusterName": "nightly-29-1-abcde"},
        ended("Submitter completed but Ray job not found in RayCluster.", cluster="nightly-29-1-abcde"),
        ended("", reason="SubmissionFailed", cluster="nightly-29-1-abcde"),
        ended("", reason="JobDeploymentStatusTransitionGracePeriodExceeded", cluster="nightly-29-1-abcde"),
        ended("", reason="JobStatusCheckTimeoutExceeded", cluster="nightly-29-1-abcde"),
    ],
)
def test_a_lost_cluster_is_replaced_and_its_nodes_are_freed(
    server: ApiServer, jobs: RayJobs, status: dict[str, str]
) -> None:
    server.statuses = {"nightly-29-1": [status], "nightly-29-2": [SUCCEEDED]}
    assert attempt(jobs) == 0
    assert list(server.jobs) == ["nightly-29-1", "nightly-29-2"]
    assert server.deleted == ["rayclusters/nightly-29-1-abcde"]


def test_lost_clusters_are_replaced_as_often_as_allowed(
    server: ApiServer, jobs: RayJobs, caplog: pytest.LogCaptureFixture
) -> None:
    server.statuses = {f"nightly-29-{number}": [LOST] for number in (1, 2, 3)}
    assert attempt(jobs, retries=1) == 1
    assert list(server.jobs) == ["nightly-29-1", "nightly-29-2"]
    assert "none of 2 clusters lasted" in caplog.text


def test_attempts_share_one_deadline(server: ApiServer, jobs: RayJobs) -> None:
    begun = datetime(2026, 11, 26, 2, 30, tzinfo=UTC)
    template = {**TEMPLATE, "spec": {**TEMPLATE["spec"], "activeDeadlineSeconds": 3600}}
    server.statuses = {"nightly-29-1": [LOST], "nightly-29-2": [LOST]}
    moments = iter([begun + timedelta(minutes=20), begun + timedelta(minutes=61)])
    assert attempt(jobs, template=template, now=lambda: next(moments)) == 1
    assert {name: job["spec"]["activeDeadlineSeconds"] for name, job in server.jobs.items()} == {
        "nightly-29-1": 3600,
        "nightly-29-2": 2400,
    }


def test_a_ray_job_that_is_deleted_or_never_noticed_is_not_repeated(server: ApiServer, jobs: RayJobs) -> None:
    assert follow(jobs, "nightly-29-1", poll_s=0).reason == "it was deleted"
    jobs.create(own_job())
    times = iter([0.0, 10.0, 2000.0])
    end = follow(jobs, "nightly-29-1", poll_s=0, clock=lambda: next(times))
    assert "KubeRay has not noticed it" in end.reason
    assert not end.is_infrastructure


def test_another_ray_job_with_the_same_output_is_found_until_it_ends(server: ApiServer, jobs: RayJobs) -> None:
    assert other_worker(jobs, TEMPLATE) is None
    jobs.create(own_job(job="manual"))
    assert other_worker(jobs, TEMPLATE) == "manual-1"
    other = {**TEMPLATE, "spec": {**TEMPLATE["spec"], "rayClusterSpec": {"headGroupSpec": {"template": {}}}}}
    assert other_worker(jobs, other) is None
    server.jobs["manual-1"]["status"] = SUCCEEDED
    assert other_worker(jobs, TEMPLATE) is None


def test_the_lease_of_a_run_elsewhere_is_found(output: Output, tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(f"input: {{uri: /mnt/in}}\noutput: {{uri: {output.uri}}}\n")
    assert lease_holder(spec) is None
    lease = take_lease(Storage(), output.uri, "night")
    holder = lease_holder(spec)
    lease.release()
    assert holder is not None
    assert holder.startswith("run night on ")
    assert lease_holder(spec) is None


def test_an_output_that_cannot_be_read_from_the_pod_is_left_to_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text("input: {uri: /mnt/in}\noutput: {uri: 'no-such-scheme://bucket/out/'}\n")
    with caplog.at_level("INFO"):
        assert lease_holder(spec) is None
    assert "which the run itself will find out" in caplog.text


def test_a_request_to_a_busy_server_is_repeated(server: ApiServer, jobs: RayJobs) -> None:
    server.codes = [503, 429]
    jobs.create(own_job())
    assert "nightly-29-1" in server.jobs


def test_a_refused_request_is_not_repeated(server: ApiServer, jobs: RayJobs) -> None:
    server.codes = [403]
    with pytest.raises(RefusedError, match="403"):
        jobs.create(own_job())
    assert len(server.requests) == 1


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Set the pod's environment and return the arguments of its command."""
    template = tmp_path / "rayjob.yaml"
    template.write_text(json.dumps(TEMPLATE))
    for name, value in {
        "JOB_NAME": "nightly-29",
        "JOB_UID": "abc",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    }.items():
        monkeypatch.setenv(name, value)
    return [str(template), "--run-of-its-own", "--retries", "2"]


def test_the_pod_creates_and_follows_its_ray_job(
    server: ApiServer, jobs: RayJobs, pod: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[tuple[str, str]] = []

    def connect(url: str, namespace: str) -> RayJobs:
        connected.append((url, namespace))
        return jobs

    server.statuses["nightly-29-1"] = [SUCCEEDED]
    assert kube_cron_job.main(pod, connect=connect, pause_s=0) == 0
    assert connected == [("https://10.0.0.1:443", "htc")]
    assert server.jobs["nightly-29-1"]["spec"]["entrypoint"].endswith("--run nightly-29")

    def unreachable(*_: object) -> None:
        raise BusyServerError("503")

    monkeypatch.setattr(jobs, "create", unreachable)
    assert kube_cron_job.main(pod, connect=connect) == kube_cron_job.UNREACHABLE_EXIT_CODE


def test_an_output_in_use_costs_no_cluster(
    server: ApiServer, jobs: RayJobs, pod: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    jobs.create(own_job(job="manual"))
    assert kube_cron_job.main(pod, connect=lambda *_: jobs) == HELD_EXIT_CODE
    assert list(server.jobs) == ["manual-1"]
    assert "not started: the RayJob manual-1 works on the same output" in caplog.text


def test_a_pod_without_permission_says_so(
    server: ApiServer, jobs: RayJobs, pod: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    server.codes = [403]
    assert kube_cron_job.main(pod, connect=lambda *_: jobs) == REFUSED_EXIT_CODE
    assert "403 not allowed here" in caplog.text
