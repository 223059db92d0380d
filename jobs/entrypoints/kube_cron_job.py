"""In a pod of a Job: create a RayJob that belongs to it, wait for its end, and start another where the machine failed.

`python -m jobs.entrypoints.kube_cron_job TEMPLATE`, in the pod that `jobs.manifests.starter` describes. Exit codes: 0
the RayJob succeeded; 1 it failed; 2 the API server refused the request; 4 another run works on the output, and no
cluster was created; 3 the API server could not be reached, so that another pod may retry.
"""

import argparse
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
import yaml
from tenacity import before_sleep_log, retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from jobs.manifests.bundle import entrypoint_of
from jobs.manifests.pods import OUTPUT_ANNOTATION
from jobs.manifests.ray_job_end import ENDED_PHASES, RayJobEnd, judge_end
from jobs.manifests.starter import (
    FAILED_EXIT_CODE,
    HELD_EXIT_CODE,
    REFUSED_EXIT_CODE,
    UNREACHABLE_EXIT_CODE,
    attempt_name,
)
from pipeline import logs
from pipeline.errors import HtcError

log = logging.getLogger(__name__)

# Folder of a service account's credentials (kubernetes.io/docs/tasks/run-application/access-api-from-pod).
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 30.0
# An API server is unreachable for minutes while its cluster is upgraded.
PATIENCE_S = 1800.0
POLL_S = 20.0
# Between a lost cluster and the next one: the node is replaced meanwhile, and the lost driver's lease grows old.
RETRY_PAUSE_S = 60.0
# KubeRay writes a status within seconds; one that does not in this time does not watch the namespace, or is not there.
UNNOTICED_S = 1800.0


class BusyServerError(Exception):
    """The API server is busy; the request can be repeated."""


class RefusedError(Exception):
    """The API server refused a request, with its own reason."""


class RayJobs:
    """The RayJobs of a namespace; requests are repeated while the API server cannot be reached."""

    def __init__(self, server: str, namespace: str, *, account: Path = ACCOUNT, patience_s: float = PATIENCE_S) -> None:
        self._url = f"{server}/apis/ray.io/v1/namespaces/{namespace}"
        self._account = account
        self._patient = retry(
            retry=retry_if_exception_type((requests.ConnectionError, requests.Timeout, BusyServerError)),
            wait=wait_random_exponential(multiplier=0.5, max=60),
            stop=stop_after_delay(patience_s),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )

    def create(self, manifest: dict[str, Any]) -> None:
        """Create a RayJob; if the name exists, an earlier pod of this Job has created it."""
        self._request("POST", "rayjobs", manifest, allowed=requests.codes.conflict)

    def find(self, name: str) -> dict[str, Any] | None:
        """Return a RayJob; None if there is none of this name."""
        answer = self._request("GET", f"rayjobs/{name}", allowed=requests.codes.not_found)
        if answer.status_code == requests.codes.not_found:
            return None
        job: dict[str, Any] = answer.json()
        return job

    def all(self) -> list[dict[str, Any]]:
        """Return all RayJobs of the namespace."""
        jobs: list[dict[str, Any]] = self._request("GET", "rayjobs").json().get("items") or []
        return jobs

    def delete_cluster(self, name: str) -> None:
        """Delete a RayCluster, if it is still there."""
        self._request("DELETE", f"rayclusters/{name}", allowed=requests.codes.not_found)

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, allowed: int | None = None
    ) -> requests.Response:
        """Send a request and return the answer, which is a success or has the `allowed` status code.

        Raises:
            RefusedError: it has another one.
        """
        answer = self._patient(self._ask)(method, f"{self._url}/{path}", body)
        if answer.status_code >= 400 and answer.status_code != allowed:
            hint = " (is KubeRay installed?)" if answer.status_code == requests.codes.not_found else ""
            raise RefusedError(f"{method} {path}: {answer.status_code} {_reason_of(answer)}{hint}")
        return answer

    def _ask(self, method: str, url: str, body: dict[str, Any] | None) -> requests.Response:
        # Read for each request: Kubernetes changes the token about every hour.
        token = (self._account / "token").read_text(encoding="ascii").strip()
        answer = requests.request(
            method,
            url,
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            verify=str(self._account / "ca.crt") if url.startswith("https:") else True,
            timeout=TIMEOUT_S,
        )
        if answer.status_code == requests.codes.too_many_requests or answer.status_code >= 500:
            raise BusyServerError(f"{method} {url}: {answer.status_code} {answer.reason}")
        return answer


def build_own_job(
    template: dict[str, Any], *, job: str, uid: str, has_own_run: bool, attempt: int = 1, deadline_s: int | None = None
) -> dict[str, Any]:
    """Return the RayJob of one attempt.

    Args:
        job, uid: of the Job that owns it.
        has_own_run: name its run after the Job; else the output's newest run is resumed, or a new one begins.
        deadline_s: what is left of the template's deadline; None leaves that one.
    """
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid, "controller": True}
    metadata = {**template["metadata"], "name": attempt_name(job, attempt), "ownerReferences": [owner]}
    spec = dict(template["spec"])
    if has_own_run:
        spec["entrypoint"] = entrypoint_of(job)
    if deadline_s is not None:
        spec["activeDeadlineSeconds"] = deadline_s
    return {**template, "metadata": metadata, "spec": spec}


def other_worker(jobs: RayJobs, template: dict[str, Any]) -> str | None:
    """Return the name of a RayJob in progress that writes the template's output, None without one."""
    output = _output_of(template)
    for other in jobs.all():
        is_ended = (other.get("status") or {}).get("jobDeploymentStatus") in ENDED_PHASES
        if output and not is_ended and _output_of(other) == output:
            return str(other["metadata"]["name"])
    return None


def lease_holder(spec_path: Path) -> str | None:
    """Return who works on the spec's output, as text, None without a live driver, or where storage cannot be read.

    The run's own lease decides in the end; this only saves a cluster that would be refused.
    """
    from jobs.results.status import find_live_driver
    from pipeline.job_spec.job import load_spec
    from pipeline.storage.storage import Storage

    try:
        spec = load_spec(spec_path)
        found = find_live_driver(Storage(spec.storage), spec.output.uri, None)
    except HtcError as error:
        log.info("not known from here whether a run is in progress, which the run itself will find out: %s", error)
        return None
    if found is None:
        return None
    run, driver = found
    return f"run {run} on {driver.host or 'an unknown machine'}"


def follow(
    jobs: RayJobs,
    name: str,
    *,
    poll_s: float = POLL_S,
    unnoticed_s: float = UNNOTICED_S,
    clock: Callable[[], float] = time.monotonic,
) -> RayJobEnd:
    """Wait for a RayJob's end."""
    shown = ""
    begun = clock()
    while True:
        found = jobs.find(name)
        if found is None:
            return RayJobEnd(is_success=False, is_infrastructure=False, reason="it was deleted")
        status = found.get("status") or {}
        state = f"{status.get('jobDeploymentStatus', '')} {status.get('jobStatus', '')}".strip()
        if state != shown:
            shown = state
            log.info("RayJob %s: %s", name, state)
        end = judge_end(status)
        if end is not None:
            return end
        if not shown and clock() - begun > unnoticed_s:
            reason = "KubeRay has not noticed it; is its operator running, and does it watch this namespace?"
            return RayJobEnd(is_success=False, is_infrastructure=False, reason=reason)
        time.sleep(poll_s)


def run_attempts(
    jobs: RayJobs,
    template: dict[str, Any],
    *,
    job: str,
    uid: str,
    has_own_run: bool,
    retries: int,
    poll_s: float = POLL_S,
    pause_s: float = RETRY_PAUSE_S,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> int:
    """Create RayJobs, one after the other, until one was not lost; return this process's exit code.

    A pod that replaces another one finds the RayJobs of that one, and continues with the last.

    Args:
        retries: how many more RayJobs, after infrastructure failures only.
    """
    for attempt in range(1, retries + 2):
        name = attempt_name(job, attempt)
        left_s = _left_s(jobs, template, job, now()) if attempt > 1 else None
        if left_s is not None and left_s < 1:
            log.error("RayJob %s is not started: the deadline is over", name)
            return FAILED_EXIT_CODE
        jobs.create(
            build_own_job(template, job=job, uid=uid, has_own_run=has_own_run, attempt=attempt, deadline_s=left_s)
        )
        end = follow(jobs, name, poll_s=poll_s)
        if end.is_success:
            return 0
        log.error("RayJob %s failed: %s", name, end.reason)
        if not end.is_infrastructure:
            log.error("another cluster would meet the same, so none is started")
            return FAILED_EXIT_CODE
        if attempt <= retries:
            log.warning("a new cluster continues the run (%d of %d)", attempt, retries)
            if end.cluster:
                jobs.delete_cluster(end.cluster)
            time.sleep(pause_s)
    log.error("none of %d clusters lasted; --retries allows more", retries + 1)
    return FAILED_EXIT_CODE


def main(
    arguments: Sequence[str] | None = None,
    *,
    connect: Callable[[str, str], RayJobs] = RayJobs,
    pause_s: float = RETRY_PAUSE_S,
) -> int:
    """Start the RayJob of this pod's Job and wait for it; return the exit code.

    Args:
        arguments: None takes those of the process. connect: makes the client of an API server's URL and a namespace.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("template", type=Path)
    parser.add_argument("--spec", type=Path)
    parser.add_argument("--retries", type=int, default=0)
    parser.add_argument("--run-of-its-own", action="store_true")
    parser.add_argument("--jitter-s", type=float, default=0.0)
    given = parser.parse_args(arguments)
    logs.configure(is_service=True)
    if logs.is_json():
        logs.capture_output()
    template = yaml.safe_load(given.template.read_text(encoding="utf-8"))
    job = os.environ["JOB_NAME"]
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    template["metadata"]["namespace"] = os.environ.get("JOB_NAMESPACE") or template["metadata"]["namespace"]
    jobs = connect(server, template["metadata"]["namespace"])
    try:
        if jobs.find(attempt_name(job, 1)) is None:
            time.sleep(random.uniform(0, given.jitter_s))  # noqa: S311 - spreads load, keeps no secret
            holder = other_worker(jobs, template)
            holder = f"the RayJob {holder}" if holder else (lease_holder(given.spec) if given.spec else None)
            if holder:
                log.error("not started: %s works on the same output", holder)
                return HELD_EXIT_CODE
        return run_attempts(
            jobs,
            template,
            job=job,
            uid=os.environ["JOB_UID"],
            has_own_run=given.run_of_its_own,
            retries=given.retries,
            pause_s=pause_s,
        )
    except RefusedError as error:
        log.error("the API server refused a request for the RayJobs of %s: %s", job, error)
        return REFUSED_EXIT_CODE
    except (requests.RequestException, BusyServerError):
        log.exception("the API server could not be reached for the RayJobs of %s", job)
        return UNREACHABLE_EXIT_CODE


def _left_s(jobs: RayJobs, template: dict[str, Any], job: str, now: datetime) -> int | None:
    """Return what is left of the deadline since the first attempt was created, in seconds; None without a deadline."""
    deadline_s = template["spec"].get("activeDeadlineSeconds")
    first = jobs.find(attempt_name(job, 1))
    if deadline_s is None or first is None:
        return None
    begun = datetime.fromisoformat(first["metadata"]["creationTimestamp"])
    return int(deadline_s - (now - begun).total_seconds())


def _output_of(job: dict[str, Any]) -> str | None:
    """Return the output that a RayJob writes: of its head's pod, as a RayCronJob's RayJobs have no annotations."""
    cluster = (job.get("spec") or {}).get("rayClusterSpec") or {}
    head = (cluster.get("headGroupSpec") or {}).get("template") or {}
    output: str | None = ((head.get("metadata") or {}).get("annotations") or {}).get(OUTPUT_ANNOTATION)
    return output


def _reason_of(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return str(answer.reason)


if __name__ == "__main__":
    sys.exit(main())
