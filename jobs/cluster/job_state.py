"""The state of a job on a cluster."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

Phase = Literal["pending", "running", "succeeded", "failed", "stopped"]
ENDED: frozenset[Phase] = frozenset({"succeeded", "failed", "stopped"})


@dataclass(frozen=True)
class JobState:
    """One job.

    phase: Ray's status in lower case. message: Ray's sentence about it.
    exit_code: of `htc run` on the cluster; None while it runs, and if it never began.
    output_uri, input_uri: of its spec, "" if the cluster does not know them.
    run: the run's name; "" for a new run that the job names, or for the newest run.
    storage: the values that are set in its storage section.
    started, ended: UTC.
    """

    job_id: str
    phase: Phase
    message: str = ""
    exit_code: int | None = None
    output_uri: str = ""
    input_uri: str = ""
    run: str = ""
    storage: Mapping[str, Any] = field(default_factory=dict)
    started: datetime | None = None
    ended: datetime | None = None

    @property
    def is_ended(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.phase in ENDED

    @property
    def final_exit_code(self) -> int | None:
        """The exit code that `htc run` would have had; None while the job runs.

        A job that was stopped, or that Ray could not start, is incomplete: 1.
        """
        if not self.is_ended:
            return None
        if self.phase == "succeeded":
            return 0
        return self.exit_code or 1

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON-able values."""
        return {
            "job": self.job_id,
            "phase": self.phase,
            "message": self.message,
            "exit_code": self.final_exit_code,
            "input": self.input_uri,
            "output": self.output_uri,
            "run": self.run or None,
            "started": self.started.isoformat() if self.started else None,
            "ended": self.ended.isoformat() if self.ended else None,
        }


def state_from_ray(details: Any) -> JobState | None:
    """Read Ray's JobDetails; None for a job that is not one of htc.

    A job that KubeRay submitted is recognised by its command, and its output is not known.
    """
    metadata: Mapping[str, str] = details.metadata or {}
    is_ours = "htc_output" in metadata or details.entrypoint.startswith("htc run ")
    if not details.submission_id or not is_ours:
        return None
    return JobState(
        job_id=details.submission_id,
        phase=details.status.value.lower(),
        message=_first_words(details.message or ""),
        exit_code=details.driver_exit_code,
        output_uri=metadata.get("htc_output", ""),
        input_uri=metadata.get("htc_input", ""),
        run=metadata.get("htc_run", ""),
        storage=json.loads(metadata.get("htc_storage", "{}")),
        started=_moment(details.start_time),
        ended=_moment(details.end_time),
    )


def _first_words(message: str) -> str:
    # Ray appends the last lines of the job's log, which `htc logs` shows.
    return message.split("last available logs", 1)[0].strip().rstrip(",")


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
