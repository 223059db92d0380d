"""`htc logs`, `htc stop`, `htc list`: a cluster's jobs, as text and as JSON."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from jobs.cluster.client import JobsClient, connect
from jobs.cluster.job_state import JobState
from jobs.cluster.package import STOP_WAIT_S
from jobs.cluster.submit_command import ending
from jobs.terminal.console import say, write_line, write_table
from pipeline.text import format_duration

POLL_S = 0.5


def report_logs(
    job_id: str, *, address: str | None, is_followed: bool, is_json: bool, client: JobsClient | None = None
) -> None:
    """Write a job's output to stdout, as it is, or as one JSON object per line.

    Raises:
        HtcError: see `jobs.cluster.submit.tail_logs`.
    """
    client = client or connect(address)
    # Also when followed: raises for a job that does not exist, instead of waiting for it.
    client.state(job_id)
    pieces = client.tail(job_id) if is_followed else iter([client.logs(job_id)])
    lines = (json.dumps({"job": job_id, "text": line}) + "\n" for line in _lines(pieces))
    for piece in lines if is_json else pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in pieces, as soon as they are whole, without their ends."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest


def report_stop(
    job_id: str, *, address: str | None, is_waited_for: bool, is_json: bool, client: JobsClient | None = None
) -> int:
    """Stop a job and report how it ended; returns the exit code, 1 for a job that did not end in time.

    Raises:
        HtcError: see `jobs.cluster.submit.stop_job`.
    """
    client = client or connect(address)
    was_running = client.stop(job_id)
    state = client.state(job_id)
    end_s = time.monotonic() + STOP_WAIT_S + 10
    while is_waited_for and not state.is_ended and time.monotonic() < end_s:
        time.sleep(POLL_S)
        state = client.state(job_id)
    if is_json:
        write_line(json.dumps(state.to_dict()))
    elif not was_running:
        write_line(f"The job {job_id} had already ended ({state.phase}).")
    elif state.is_ended:
        write_line(ending(state))
    else:
        say(f"The job {job_id} was asked to stop and is {state.phase}.")
    return 0 if state.is_ended or not is_waited_for else 1


def report_list(*, address: str | None, is_json: bool, client: JobsClient | None = None) -> None:
    """Write a cluster's jobs to stdout.

    Raises:
        HtcError: see `jobs.cluster.submit.list_jobs`.
    """
    client = client or connect(address)
    states = client.states()
    if is_json:
        sys.stdout.write(json.dumps([state.to_dict() for state in states], indent=2) + "\n")
    elif not states:
        say(f"The cluster at {client.url} has no job of htc; start one with: htc submit SPEC")
    else:
        rows = job_rows(states, datetime.now(UTC))
        write_table(["job", "state", "exit code", "started (UTC)", "took", "output"], rows)


def job_rows(states: Sequence[JobState], now: datetime) -> list[list[str]]:
    """Return one row of text per job."""
    return [
        [
            state.job_id,
            state.phase,
            "" if state.final_exit_code is None else str(state.final_exit_code),
            f"{state.started:%Y-%m-%d %H:%M:%S}" if state.started else "",
            format_duration(((state.ended or now) - state.started).total_seconds()) if state.started else "",
            state.output_uri,
        ]
        for state in states
    ]
