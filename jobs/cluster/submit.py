"""Jobs on a Ray cluster, through Ray's Jobs API (the dashboard's port, 8265): submit, look at, follow, stop.

A job is one `htc run` that executes on the cluster: its driver on the head node, its workers wherever Ray has room.
The spec travels as a file in the job's working folder, resolved, so that the cluster reads what was checked here.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from jobs.cluster.client import JobsClient, connect
from jobs.cluster.errors import JobRunningError
from jobs.cluster.job_state import JobState
from jobs.cluster.package import SPEC_FILE, RuntimeEnvKind, build_entrypoint, runtime_env_for
from jobs.results.status import find_live_driver
from pipeline.driver.progress_file import JOB_VARIABLE
from pipeline.errors import SpecError, StorageError
from pipeline.job_spec.job import JobSpec
from pipeline.runs.lease import WATCH_S, RunHeldError
from pipeline.settings import NAME_PATTERN
from pipeline.storage.storage import Storage
from pipeline.text import format_duration

__all__ = [
    "JobState",
    "build_entrypoint",
    "job_state",
    "list_jobs",
    "new_job_id",
    "stop_job",
    "submit_job",
    "tail_logs",
]

log = logging.getLogger(__name__)


def submit_job(
    spec: JobSpec,
    *,
    address: str | None = None,
    run: str | None = None,
    fresh: bool = False,
    runtime_env: RuntimeEnvKind = "code",
    env_vars: Mapping[str, str] | None = None,
    is_shared: bool = False,
    client: JobsClient | None = None,
    now: datetime | None = None,
) -> str:
    """Start a job on a cluster and return its id, `<name>-<date>-<short hash>`; does not wait for it.

    Args:
        address: of the dashboard, `http://host:8265`; by default RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else this
            machine.
        run: go on with this run, or begin it; by default the newest one of the output goes on.
        fresh: begin a new run; it is named like the job, so that the job begins it once, however often Ray starts it.
        runtime_env: what the cluster gets: "code" (this very htc-batch; the cluster has the libraries), "image" (the
            spec only; the cluster's image has htc-batch), or "pip" (the code, and Ray installs the libraries).
        env_vars: set for the driver and the workers; whoever may see the cluster's dashboard may read them.
        is_shared: all nodes see this machine's paths; otherwise a weights file of this machine is uploaded.
        client: a connection to use instead of opening one. now: the time that names the job, UTC.

    Raises:
        SpecError: `fresh` with a run's name, a name that cannot be a folder's, or a weights file that is too large.
        WeightsUnavailableError: there is no such weights file.
        JobRunningError: a job that has not ended is at the same run.
        RunHeldError: a driver that is no job of this cluster is at it.
        ClusterError: the cluster cannot be reached, wants another token, or refuses.
    """
    if fresh and run:
        raise SpecError(f"--fresh begins a new run; leave it out to begin or resume the run {run}.")
    if run is not None and not re.fullmatch(NAME_PATTERN, run):
        raise SpecError(f"A run's name is made of letters, digits, dots, dashes and underscores, not {run!r}.")
    moment = now or datetime.now(UTC)
    job_id = new_job_id(spec, run, moment)
    run = job_id if fresh else run
    client = client or connect(address)
    if note := client.note:
        log.info("%s", note)
    check_no_running_job(client.states(), spec.output.uri, run)
    _check_not_held(spec, run)
    variables = {JOB_VARIABLE: job_id, **(env_vars or {})}
    with runtime_env_for(spec, runtime_env, variables, is_shared=is_shared) as environment:
        client.submit(
            entrypoint=build_entrypoint(SPEC_FILE, run=run, is_installed=runtime_env == "image"),
            job_id=job_id,
            runtime_env=environment,
            metadata=job_metadata(spec, run),
        )
    _stop_unless_first(client, job_id, spec.output.uri, run)
    return job_id


def new_job_id(spec: JobSpec, run: str | None, moment: datetime) -> str:
    """Name a job: the spec's name, the time (UTC, to the second) and six digits of a hash of spec and run.

    The same submission twice within a second has one id, and the cluster takes it once.
    """
    content = json.dumps([spec.to_dict(), run], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:6]
    return f"{spec.name or 'htc'}-{moment.astimezone(UTC):%Y%m%d-%H%M%S}-{digest}"


def job_state(job_id: str, *, address: str | None = None, client: JobsClient | None = None) -> JobState:
    """Look at one job.

    Raises:
        NoSuchJobError: the cluster does not know it.
        ClusterError: see `submit_job`.
    """
    return (client or connect(address)).state(job_id)


def list_jobs(*, address: str | None = None, client: JobsClient | None = None) -> list[JobState]:
    """Return the jobs of this program that the cluster remembers, the newest first.

    Raises:
        ClusterError: see `submit_job`.
    """
    return (client or connect(address)).states()


def stop_job(job_id: str, *, address: str | None = None, client: JobsClient | None = None) -> bool:
    """Ask a job to stop; what it has committed stays, and another job resumes the run. Does not wait for its end.

    Returns:
        Whether it was going.

    Raises:
        NoSuchJobError: the cluster does not know it.
        ClusterError: see `submit_job`.
    """
    return (client or connect(address)).stop(job_id)


def tail_logs(
    job_id: str, *, address: str | None = None, is_followed: bool = True, client: JobsClient | None = None
) -> Iterator[str]:
    """Yield a job's output in pieces, from its beginning; with `is_followed` until the job has ended.

    Raises:
        NoSuchJobError: the cluster does not know it.
        ClusterError: see `submit_job`.
    """
    connected = client or connect(address)
    if is_followed:
        yield from connected.tail(job_id)
    else:
        yield connected.logs(job_id)


def job_metadata(spec: JobSpec, run: str | None) -> dict[str, str]:
    """Return what the cluster keeps with a job, so that it can be listed, and its output found."""
    storage = spec.storage.model_dump(mode="json", exclude_unset=True)
    return {
        "htc_output": spec.output.uri,
        "htc_input": spec.input.uri,
        "htc_run": run or "",
        "htc_storage": json.dumps(storage),
    }


def check_no_running_job(states: Iterable[JobState], output_uri: str, run: str | None) -> None:
    """Refuse a second job at one run: two that name no run both mean the newest.

    Raises:
        JobRunningError: one of them has not ended and is at the same run.
    """
    for state in states:
        is_same = state.output_uri.rstrip("/") == output_uri.rstrip("/") and (not run or state.run in {"", run})
        if is_same and not state.is_ended:
            # A job that names no run goes on with the newest, which may be the one that is meant.
            this = "this run" if state.run == (run or "") else "a run of this output, perhaps this one,"
            raise JobRunningError(
                state.job_id,
                f"The job {state.job_id} is at {this} already ({state.phase}); follow it with: htc logs "
                f"{state.job_id} -f, or stop it with: htc stop {state.job_id}",
            )


def _check_not_held(spec: JobSpec, run: str | None) -> None:
    """Refuse a run that a driver somewhere else works on, if its output can be seen from here."""
    try:
        held = find_live_driver(Storage(spec.storage), spec.output.uri, run)
    except StorageError as error:
        # The job looks again, from the cluster.
        log.info("whether a driver works on the run cannot be seen from here: %s", error)
        return
    if held is not None:
        name, driver = held
        if not driver.host:
            raise RunHeldError(
                f"The lease of the run {name} cannot be read, so that a driver may work on it; "
                f"`htc doctor {spec.output.uri} --repair` removes the lease unless a driver renews it."
            )
        who = f"The job {driver.job}" if driver.job else "A driver"
        raise RunHeldError(
            f"{who} (host {driver.host}, process {driver.pid}) works on the run {name}; wait for it, stop it, or start "
            f"another run with --fresh or --run NAME (a driver that is dead loses the run "
            f"{format_duration(WATCH_S)} after another one asks for it)."
        )


def _stop_unless_first(client: JobsClient, job_id: str, output_uri: str, run: str | None) -> None:
    """Of two jobs at one run that were submitted in the same moment, stop the later one."""
    states = client.states()
    mine = next((state for state in states if state.job_id == job_id), None)
    if mine is None:
        return
    earlier = [state for state in states if (state.started or mine.started, state.job_id) < (mine.started, job_id)]
    try:
        check_no_running_job(earlier, output_uri, run)
    except JobRunningError:
        client.stop(job_id)
        raise
