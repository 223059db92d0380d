"""In a pod of a CronJob: create a RayJob that belongs to this pod's Job, and wait for its end.

`python -m jobs.entrypoints.kube_cron_job TEMPLATE`, in the pod that `cron_job` describes. Exit codes: 0 the RayJob
succeeded, 1 it failed, 3 the API server could not be reached, so that another pod may retry.
"""

import argparse
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests
import yaml
from tenacity import before_sleep_log, retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from jobs.manifests.bundle import entrypoint_of
from jobs.manifests.cron_job import FAILED_EXIT_CODE
from pipeline import logs

log = logging.getLogger(__name__)

# Folder of a service account's credentials (kubernetes.io/docs/tasks/run-application/access-api-from-pod).
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
UNREACHABLE_EXIT_CODE = 3
TIMEOUT_S = 30.0
# An API server is unreachable for minutes while its cluster is upgraded.
PATIENCE_S = 1800.0
POLL_S = 20.0
ENDED = {"Complete", "Failed"}


class BusyServerError(Exception):
    """The API server is busy; the request can be repeated."""


class RayJobs:
    """The RayJobs of a namespace; requests are repeated while the API server cannot be reached."""

    def __init__(self, server: str, namespace: str, *, account: Path = ACCOUNT, patience_s: float = PATIENCE_S) -> None:
        self._url = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
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
        answer = self._patient(self._ask)("POST", self._url, manifest)
        if answer.status_code != requests.codes.conflict:
            answer.raise_for_status()

    def status(self, name: str) -> dict[str, Any]:
        """Return a RayJob's status as KubeRay writes it."""
        answer = self._patient(self._ask)("GET", f"{self._url}/{name}", None)
        answer.raise_for_status()
        status: dict[str, Any] = answer.json().get("status") or {}
        return status

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


def build_own_job(template: dict[str, Any], *, name: str, uid: str, has_own_run: bool) -> dict[str, Any]:
    """Return the RayJob of one firing.

    Args:
        name, uid: of the Job that owns it; it has the same name.
        has_own_run: give its run that name too; else the output's newest run is resumed, or a new one begins.
    """
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
    spec = {**template["spec"], "entrypoint": entrypoint_of(name)} if has_own_run else template["spec"]
    return {**template, "metadata": {**template["metadata"], "name": name, "ownerReferences": [owner]}, "spec": spec}


def follow(jobs: RayJobs, name: str, *, poll_s: float = POLL_S) -> int:
    """Wait for a RayJob's end and return this process's exit code."""
    shown = ""
    while True:
        status = jobs.status(name)
        phase, outcome = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
        if f"{phase} {outcome}" != shown:
            shown = f"{phase} {outcome}"
            log.info("RayJob %s: %s %s", name, shown, status.get("message", ""))
        if phase in ENDED:
            return 0 if outcome == "SUCCEEDED" else FAILED_EXIT_CODE
        time.sleep(poll_s)


def main(arguments: Sequence[str] | None = None, *, connect: Callable[[str, str], RayJobs] = RayJobs) -> int:
    """Start the RayJob of this pod's Job and wait for it; return the exit code.

    Args:
        arguments: None takes those of the process. connect: makes the client of an API server's URL and a namespace.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("template", type=Path)
    parser.add_argument("--run-of-its-own", action="store_true")
    parser.add_argument("--jitter-s", type=float, default=0.0)
    given = parser.parse_args(arguments)
    logs.configure(is_service=True)
    if logs.is_json():
        logs.capture_output()
    template = yaml.safe_load(given.template.read_text(encoding="utf-8"))
    name = os.environ["JOB_NAME"]
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    jobs = connect(server, template["metadata"]["namespace"])
    time.sleep(random.uniform(0, given.jitter_s))  # noqa: S311 - spreads load, keeps no secret
    try:
        jobs.create(build_own_job(template, name=name, uid=os.environ["JOB_UID"], has_own_run=given.run_of_its_own))
        return follow(jobs, name)
    except (requests.RequestException, BusyServerError):
        log.exception("the API server could not be reached for the RayJob %s", name)
        return UNREACHABLE_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
