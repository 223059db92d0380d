"""`htc status`: the progress of a job or a run, as text and as JSON."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from jobs.cluster.job_state import JobState
from jobs.results.live_text import Page
from jobs.results.status import Driver, RunStatus, read_status
from jobs.results.top import report_top
from jobs.terminal.console import say, write_line, write_table
from pipeline.errors import InputError, StorageError
from pipeline.runs.bottleneck import shares_in_words, shares_of
from pipeline.runs.outcomes import in_words
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import has_scheme
from pipeline.text import count_of, format_duration

MAX_REASONS = 8
Line = tuple[str, str]


def report_status(
    target: str | None, *, run: str | None, address: str | None, storage_section: StorageSection, is_json: bool
) -> None:
    """Write the status of a job or a run to stdout.

    Args:
        target: a job's id or an output folder; None for the cluster's newest job.
        run: the run's name; by default the job's run, else the newest.
        storage_section: how an output folder is reached; for a job, its spec says so.

    Raises:
        HtcError: there is no such job or run, or the cluster or store cannot be reached.
    """
    if target is not None and is_output(target):
        _write(None, read_status(target, Storage(storage_section), run=run, report=say), is_json=is_json)
        return
    job = _find_job(target, address)
    _write(job, _status_of(job, run, is_json=is_json), is_json=is_json)


def watch_status(target: str | None, *, run: str | None, address: str | None, storage_section: StorageSection) -> int:
    """Show a run until it ends, as `htc top` does; the arguments are those of `report_status`.

    Returns:
        The exit code: 0, also of a run that failed; 130 after Ctrl-C.

    Raises:
        HtcError: there is no such job or run, or the cluster or store cannot be reached.
    """
    if target is not None and is_output(target):
        return report_top(target, Storage(storage_section), run=run, page=Page())
    job = _find_job(target, address)
    if not job.output_uri:
        raise InputError(f"The cluster does not know the output of job {job.job_id}; give htc status the folder.")
    return report_top(job.output_uri, Storage(StorageSection(**job.storage)), run=run or job.run or None, page=Page())


def _status_of(job: JobState, run: str | None, *, is_json: bool) -> RunStatus | None:
    if not job.output_uri:
        return None
    try:
        return read_status(
            job.output_uri, Storage(StorageSection(**job.storage)), run=run or job.run or None, report=say
        )
    except (InputError, StorageError) as error:
        # The cluster may reach storage that this machine cannot, and the run may not have begun.
        if not is_json:
            say(f"Its output cannot be read from this machine yet: {error}")
        return None


def is_output(target: str) -> bool:
    """Return whether the target is a folder or prefix, not a job's id, which has no slash."""
    return "/" in target or has_scheme(target) or Path(target).is_dir()


def _find_job(job_id: str | None, address: str | None) -> JobState:
    from jobs.cluster.client import connect, resolve_address
    from jobs.cluster.errors import ClusterError, NoSuchJobError

    if job_id is not None:
        try:
            return connect(address).state(job_id)
        except NoSuchJobError as error:
            raise NoSuchJobError(f"There is no folder {job_id} here. {error}") from error
        except ClusterError as error:
            if address is not None:
                raise ClusterError(f"There is no folder {job_id} here. {error}") from error
            raise ClusterError(
                f"There is no folder {job_id} here, and no cluster at {resolve_address(None)} that could know a job of "
                "this id; give an output folder, or the cluster with --address."
            ) from error
    client = connect(address)
    states = client.states()
    if not states:
        raise NoSuchJobError(f"The cluster at {client.url} has no job of htc; start one with: htc submit SPEC")
    return states[0]


def _write(job: JobState | None, status: RunStatus | None, *, is_json: bool) -> None:
    if is_json:
        both = {"job": job.to_dict() if job else None, "run": status.to_dict() if status else None}
        sys.stdout.write(json.dumps(both, indent=2) + "\n")
        return
    now = datetime.now(UTC)
    lines = [*(job_lines(job, now) if job else ()), *(run_lines(status, now) if status else ())]
    write_table(["", ""], lines, has_header=False)
    if status is not None and status.failure_reasons:
        _write_failures(status)
    if status is not None and status.reason:
        say(status.reason)


def job_lines(job: JobState, now: datetime) -> Iterator[Line]:
    """Yield what a cluster knows of a job, as rows of text."""
    code = "" if job.final_exit_code is None else f", exit code {job.final_exit_code}"
    yield "job", f"{job.job_id} ({job.phase}{code})"
    if job.started:
        took = format_duration(((job.ended or now) - job.started).total_seconds())
        yield "started", f"{job.started:%Y-%m-%d %H:%M:%S} UTC, {'took' if job.ended else 'since'} {took}"
    yield "output", job.output_uri or "unknown to the cluster; give htc status the folder"
    if job.phase == "failed" and job.exit_code is None and job.message:
        yield "message", " ".join(job.message.split())[:600]


def run_lines(status: RunStatus, now: datetime) -> Iterator[Line]:
    """Yield what an output folder shows of a run, as rows of text."""
    yield "run", f"{status.run} ({in_words(status.state)})"
    yield "images", _images(status)
    if status.instances is not None:
        yield "instances", f"{status.instances:,}"
    if status.images_per_s:
        eta = f", ETA {format_duration(status.eta_s)}" if status.eta_s and not status.is_listing else ""
        yield "speed", f"{status.images_per_s:.2f} images/s{eta}"
    if status.workers is not None:
        yield "workers", f"{status.workers}" if status.workers else "none yet: starting"
    if times := ", ".join(shares_in_words(shares_of(status.worker_time_s or {}))):
        yield "workers' time", times
    if status.bottleneck:
        yield "bottleneck", str(status.bottleneck.get("sentence", ""))
    if status.driver is not None:
        yield "driver", _driver(status.driver, now)
    if status.told is not None:
        yield "as of", f"{format_duration(max(0.0, (now - status.told).total_seconds()))} ago"
    yield "model", status.model


def _images(status: RunStatus) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(status.statuses.items()) if count)
    of = f"{status.images_done:,} of {count_of(status.images, 'image')}"
    if status.is_listing:
        of += " listed so far"
    elif status.images:
        of += f" ({status.images_done / status.images:.0%})"
    return f"{of}: {counts}" if counts else of


def _driver(driver: Driver, now: datetime) -> str:
    if driver.heard is None:
        return "its lease cannot be read"
    heard = format_duration(max(0.0, (now - driver.heard).total_seconds()))
    job = f"job {driver.job}, " if driver.job else ""
    end = "" if driver.is_alive else "; it is dead"
    return f"{job}process {driver.pid} on {driver.host}, last heartbeat {heard} ago{end}"


def _write_failures(status: RunStatus) -> None:
    reasons = list(status.failure_reasons.items())
    rows = [(f"{count:,}", reason) for reason, count in reasons[:MAX_REASONS]]
    write_table(["failed", "reason"], rows, alignments=["right", "left"])
    if len(reasons) > MAX_REASONS:
        write_line(f"... and {count_of(len(reasons) - MAX_REASONS, 'more reason')}")
