"""How a RayJob ended, and whether a new cluster could change that.

KubeRay repeats every failure alike (`backoffLimit`), except one by the deadline: its reason is AppFailed for a wrong
spec, for a run over its error budget and for a lost head. They differ by the exit code of `htc run`, which Ray writes
into the status' message, and which is missing where the machine went away.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.scheduling.endings import last_line
from pipeline.runs.outcomes import EXIT_FAILED, EXIT_INPUT_CHANGED, EXIT_INTERRUPTED, EXIT_USAGE

# ray.dashboard.modules.job.job_supervisor: "Job entrypoint command failed with exit code 2, last available logs ..."
_EXIT_CODE = re.compile(r"failed with exit code (-?\d+)")
# Shells report a process that a signal ended as 128 and the signal's number, Python as its negative number.
_FIRST_SIGNAL = 128
_MEANINGS = {
    EXIT_FAILED: "the run is incomplete or over its error budget",
    EXIT_USAGE: "the spec, the input or the output is wrong",
    EXIT_INPUT_CHANGED: "the run was complete, and its input has changed since",
    EXIT_INTERRUPTED: "it was interrupted",
}
# KubeRay's reasons (ray-operator/apis/ray/v1/rayjob_types.go) that a new cluster would only meet again.
_FINAL_REASONS = {
    "DeadlineExceeded": "its deadline is over",
    "ValidationFailed": "KubeRay finds its manifest wrong",
}
# ray.dashboard.modules.job.job_manager
_WRONG_ENVIRONMENT = "runtime_env setup failed"
ENDED_PHASES = ("Complete", "Failed")


@dataclass(frozen=True)
class RayJobEnd:
    """The end of a RayJob.

    is_success: the driver ended with exit code 0. is_infrastructure: the machine failed and not the run, so that the
    same command on a new cluster continues it. reason: what happened, as text. cluster: name of its RayCluster.
    """

    is_success: bool
    is_infrastructure: bool
    reason: str
    cluster: str = ""


def judge_end(status: Mapping[str, Any]) -> RayJobEnd | None:
    """Return how a RayJob ended, None while it has not.

    | status of the RayJob                                  | is                         |
    |-------------------------------------------------------|----------------------------|
    | SUCCEEDED                                             | a success                  |
    | STOPPED, DeadlineExceeded, ValidationFailed           | final                      |
    | the driver's exit code 1, 2, 3 or any other below 128 | final: the run's own end   |
    | the driver was killed by a signal                     | infrastructure             |
    | its runtime environment could not be set up           | final                      |
    | no exit code: head, submitter or API was lost         | infrastructure             |

    Args:
        status: as KubeRay writes it.
    """
    if status.get("jobDeploymentStatus") not in ENDED_PHASES:
        return None
    outcome = str(status.get("jobStatus") or "")
    message = str(status.get("message") or "")
    cluster = str(status.get("rayClusterName") or "")
    if outcome == "SUCCEEDED":
        return RayJobEnd(is_success=True, is_infrastructure=False, reason="it succeeded", cluster=cluster)
    is_infrastructure, reason = _judge_failure(outcome, str(status.get("reason") or ""), message)
    return RayJobEnd(is_success=False, is_infrastructure=is_infrastructure, reason=reason, cluster=cluster)


def _judge_failure(outcome: str, reason: str, message: str) -> tuple[bool, str]:
    if outcome == "STOPPED":
        return False, "it was stopped"
    if reason in _FINAL_REASONS:
        return False, f"{_FINAL_REASONS[reason]} ({reason})"
    match = _EXIT_CODE.search(message)
    if match is not None:
        return _judge_exit_code(int(match[1]), message)
    if _WRONG_ENVIRONMENT in message:
        return False, _one_line(message)
    return True, f"the cluster was lost ({reason or outcome or 'no reason'}: {_one_line(message) or 'no message'})"


def _judge_exit_code(code: int, message: str) -> tuple[bool, str]:
    if code < 0 or (code > _FIRST_SIGNAL and code != EXIT_INTERRUPTED):
        number = -code if code < 0 else code - _FIRST_SIGNAL
        return True, f"the driver was killed by signal {number} (memory, or the node)"
    meaning = _MEANINGS.get(code, "the command could not be run")
    # Ray's message ends with the job's last lines, and the last one of `htc run` is its verdict.
    last = last_line(message.partition("\n")[2])
    return False, f"exit code {code}: {meaning}{f' ({last})' if last else ''}"


def _one_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 300 else f"{line[:300]} ..."
