"""A firing's ending, from the run's summary and exit code."""

import json
import math
from typing import Any

from jobs.scheduling.firing import Ending, Outcome
from pipeline.errors import StorageError
from pipeline.job_spec.job import JobSpec
from pipeline.logs import parse_line
from pipeline.runs.outcomes import EXIT_COMPLETE, EXIT_INPUT_CHANGED, OUTCOMES
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

_COUNTS = ("images", "images_done", "instances", "seconds")


def ending_of(job: JobSpec, run: str, exit_code: int, otherwise: str) -> Ending:
    """Return how a run ended, from its exit code and, if it wrote one, its summary.

    Args:
        otherwise: the reason if the summary gives none.
    """
    try:
        # May be the summary of an earlier attempt of the same run; its status is compared with the exit code below.
        summary: dict[str, Any] = json.loads(
            Storage(job.storage).read(join(job.output.uri, "runs", run, "summary.json"))
        )
    except (StorageError, ValueError, RecursionError):
        summary = {}
    if not isinstance(summary, dict):
        summary = {}
    status = summary.get("status")
    if exit_code == EXIT_INPUT_CHANGED:
        # Its process vanished when it was complete, and it was started again: later input is the next firing's.
        exit_code = EXIT_COMPLETE
    if status not in OUTCOMES or (status == "complete") != (exit_code == 0):
        return Ending("complete" if exit_code == 0 else "failed", "" if exit_code == 0 else otherwise, exit_code)
    counts = {key: summary[key] for key in _COUNTS if _is_count(summary.get(key))}
    statuses = summary.get("statuses")
    if isinstance(statuses, dict):
        counts["failed"] = sum(count for name, count in statuses.items() if name != "ok" and _is_count(count))
    outcome: Outcome = "stopped" if summary.get("stopped_by") == "deadline" else status
    return Ending(outcome, str(summary.get("reason") or ""), exit_code, counts)


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def last_line(text: str) -> str:
    """Return the last line that is not empty, which says why a run ended; 500 characters at most.

    Of lines of the JSON log, the message of the last one that is an error, or of the last one.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parsed = [value for line in lines if (value := parse_line(line))]
    if not parsed:
        return (lines or [""])[-1][:500]
    chosen = next((value for value in reversed(parsed) if value["level"] == "error"), parsed[-1])
    return str(chosen["message"])[:500]
