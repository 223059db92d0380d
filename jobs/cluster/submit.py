"""Jobs on a Ray cluster, through Ray's Jobs API (the dashboard's port, 8265): submit, list, follow, stop.

A job is one `htc run` on the cluster: its driver on the head node, its workers wherever Ray has room. The resolved spec
is uploaded as a file in the job's working folder, so that the cluster reads what was checked here.
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
from pipeline import logs
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
        address: URL of the dashboard, `http://host:8265`; by default RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else
            this machine.
        run: resume this run, or begin it; by default the newest run of the output is resumed.
        fresh: begin a new run. It has the job's name, so that the job begins it once, however often Ray starts it.
        runtime_env: what is uploaded: "code" (this htc-batch; the cluster has the libraries), "image" (the spec only;
            the cluster's image has htc-batch), or "pip" (the code, and Ray installs the libraries).
        env_vars: set for the driver and the workers; every user of the cluster's dashboard can read them.
        is_shared: all nodes see this machine's paths; otherwise a weights file of this machine is uploaded.
        client: a connection to use instead of opening one. now: the time in the job's name, UTC.

    Raises:
        SpecError: `fresh` with a run's name, a name that cannot be a folder's, or a weights file that is too large.
        WeightsUnavailableError: there is no such weights file.
        JobRunningError: a job that has not ended is working on the same run.
        RunHeldError: a driver that is not a job of this cluster is working on the run.
        ClusterError: the cluster cannot be reached, rejects the token, or refuses.
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
    variables = {JOB_VARIABLE: job_id, **logs.inherited(), **(env_vars or {})}
    has_json_log = variables.get(logs.FORMAT_VARIABLE) == "json"
    with runtime_env_for(spec, runtime_env, variables, is_shared=is_shared) as environment:
        client.submit(
            entrypoint=build_entrypoint(
                SPEC_FILE, run=run, is_installed=runtime_env == "image", has_json_log=has_json_log
            ),
            job_id=job_id,
            runtime_env=environment,
            metadata=job_metadata(spec, run),
        )
    _stop_unless_first(client, job_id, spec.output.uri, run)
    return job_id


def new_job_id(spec: JobSpec, run: str | None, moment: datetime) -> str:
    """Return a job's id: the spec's name, the time (UTC, to the second) and six digits of a hash of spec and run.

    The same submission twice within a second has one id, and the cluster accepts it once.
    """
    content = json.dumps([spec.to_dict(), run], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:6]
    return f"{spec.name or 'htc'}-{moment.astimezone(UTC):%Y%m%d-%H%M%S}-{digest}"


def job_state(job_id: str, *, address: str | None = None, client: JobsClient | None = None) -> JobState:
    """Return the state of one job.

    Raises:
        NoSuchJobError: the cluster does not know it.
        ClusterError: see `submit_job`.
    """
    return (client or connect(address)).state(job_id)


def list_jobs(*, address: str | None = None, client: JobsClient | None = None) -> list[JobState]:
    """Return the jobs of htc that the cluster knows, newest first.

    Raises:
        ClusterError: see `submit_job`.
    """
    return (client or connect(address)).states()


def stop_job(job_id: str, *, address: str | None = None, client: JobsClient | None = None) -> bool:
    """Ask a job to stop; committed results stay, and another job resumes the run. Does not wait for its end.

    Returns:
        Whether it was running.

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
    """Return the metadata that the cluster keeps with a job, so that the job and its output can be found."""
    storage = spec.storage.model_dump(mode="json", exclude_unset=True)
    return {
        "htc_output": spec.output.uri,
        "htc_input": spec.input.uri,
        "htc_run": run or "",
        "htc_storage": json.dumps(storage),
    }


def check_no_running_job(states: Iterable[JobState], output_uri: str, run: str | None) -> None:
    """Refuse a second job on one run; jobs that name no run work on the newest.

    Raises:
        JobRunningError: a job that has not ended is working on the same run.
    """
    for state in states:
        is_same = state.output_uri.rstrip("/") == output_uri.rstrip("/") and (not run or state.run in {"", run})
        if is_same and not state.is_ended:
            # A job that names no run resumes the newest, which may be this one.
            this = "this run" if state.run == (run or "") else "a run of this output, perhaps this one,"
            raise JobRunningError(
                state.job_id,
                f"The job {state.job_id} is already working on {this} ({state.phase}); follow it with: htc logs "
                f"{state.job_id} -f, or stop it with: htc stop {state.job_id}",
            )


def _check_not_held(spec: JobSpec, run: str | None) -> None:
    """Refuse a run whose lease another driver holds, if its output can be read from here."""
    try:
        held = find_live_driver(Storage(spec.storage), spec.output.uri, run)
    except StorageError as error:
        # The job checks again, from the cluster.
        log.info("this machine cannot check whether a driver works on the run: %s", error)
        return
    if held is not None:
        name, driver = held
        if not driver.host:
            raise RunHeldError(
                f"The lease of the run {name} cannot be read, so a driver may be working on it; "
                f"`htc doctor {spec.output.uri} --repair` removes the lease unless a driver renews it."
            )
        who = f"The job {driver.job}" if driver.job else "A driver"
        raise RunHeldError(
            f"{who} (host {driver.host}, process {driver.pid}) is working on the run {name}; wait for it, stop it, or "
            f"start another run with --fresh or --run NAME (the lease of a dead driver is taken over "
            f"{format_duration(WATCH_S)} after another driver asks for it)."
        )


def _stop_unless_first(client: JobsClient, job_id: str, output_uri: str, run: str | None) -> None:
    """Stop this job if another job on the same run was submitted at the same moment and came first."""
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
