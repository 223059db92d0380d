"""`htc submit`: check, submit, print the next commands, and wait if asked to."""

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence

from jobs.cluster.client import JobsClient, connect, is_this_machine
from jobs.cluster.errors import ClusterError
from jobs.cluster.job_state import JobState
from jobs.cluster.package import RuntimeEnvKind
from jobs.cluster.submit import submit_job
from jobs.terminal.console import say, write_line
from pipeline import logs
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec
from pipeline.runs.outcomes import EXIT_INTERRUPTED
from pipeline.storage.uris import is_local

POLL_S = 0.5
# Enough to replace a head node or to reopen a tunnel.
PATIENCE_S = 60.0


def submit_and_report(
    spec: JobSpec,
    *,
    address: str | None,
    run: str | None,
    fresh: bool,
    runtime_env: RuntimeEnvKind,
    env: Sequence[str],
    is_shared: bool,
    is_waited_for: bool,
    is_json: bool,
    client: JobsClient | None = None,
) -> int:
    """Submit a job, and write its id and the next commands to stdout.

    Args:
        env: each NAME or NAME=VALUE.
        is_shared: all nodes see this machine's paths.
        is_waited_for: follow the job to its end.
        client: a connection to use instead of opening one.

    Returns:
        The exit code of the job if it was waited for (130 after Ctrl-C, which does not stop the job), else 0.

    Raises:
        HtcError: see `jobs.cluster.submit.submit_job`; SpecError also for paths that only this machine has.
    """
    env_vars = read_env_vars(env, os.environ)
    client = client or connect(address)
    if client.note and not is_json:
        say(client.note)
    check_paths_are_shared(spec, client.url, is_shared=is_shared)
    job_id = submit_job(
        spec,
        run=run,
        fresh=fresh,
        runtime_env=runtime_env,
        env_vars=env_vars,
        is_shared=is_shared,
        client=client,
    )
    if is_json and not is_waited_for:
        write_line(json.dumps(client.state(job_id).to_dict()))
        return 0
    if not is_json:
        write_line(f"Submitted {job_id} to {client.url} (Ray {client.ray_version}).")
        for command in next_commands(job_id, spec.output.uri, address):
            write_line(command)
    if not is_waited_for:
        return 0
    return _wait(client, job_id, address, is_json=is_json)


def read_env_vars(words: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Parse NAME=VALUE, and NAME with its value in `environment`.

    Raises:
        SpecError: the name is invalid, or has no value in `environment`.
    """
    values = {}
    for word in words:
        name, is_given, value = word.partition("=")
        if not name.isidentifier() or not name.isascii():
            raise SpecError(f"--env {word}: {name!r} is not a variable's name; give NAME or NAME=VALUE.")
        if not is_given and name not in environment:
            raise SpecError(f"--env {name}: it is not set here; set it, or give NAME=VALUE.")
        values[name] = value if is_given else environment[name]
    return values


def check_paths_are_shared(spec: JobSpec, url: str, *, is_shared: bool) -> None:
    """Refuse paths of this machine for a cluster on other machines.

    A cluster at this machine's own address may run here or at the other end of a tunnel: the job's preflight check
    finds out.

    Raises:
        SpecError: the input or the output is a path of this machine.
    """
    if is_shared or is_this_machine(url):
        return
    for key, place in {"input.uri": spec.input.uri, "output.uri": spec.output.uri}.items():
        if is_local(place):
            raise SpecError(
                f"{key} is {place}, a path of this machine, and the cluster at {url} runs on others: use storage that "
                "both reach (s3://...), or add --shared-paths if all its nodes have that path."
            )


def next_commands(job_id: str, output_uri: str, address: str | None) -> Iterator[str]:
    """Yield the next commands, with what they do."""
    where = f" --address {shlex.quote(address)}" if address else ""
    yield f"Next: htc status {job_id}{where}    its progress"
    yield f"      htc logs {job_id} -f{where}   its output"
    yield f"      htc stop {job_id}{where}      stop it; submit it again to resume"
    yield f"      htc status {shlex.quote(output_uri)}    its progress, without the cluster"


def _wait(client: JobsClient, job_id: str, address: str | None, *, is_json: bool) -> int:
    try:
        state = follow(client, job_id)
    except KeyboardInterrupt:
        where = f" --address {shlex.quote(address)}" if address else ""
        say(f"No longer waiting; the job {job_id} continues. To stop it: htc stop {job_id}{where}")
        return EXIT_INTERRUPTED
    if is_json:
        write_line(json.dumps(state.to_dict()))
    elif state.exit_code is None and state.phase != "succeeded":
        say(ending(state))
    else:
        write_line(ending(state))
    return state.final_exit_code or 0


def follow(client: JobsClient, job_id: str, *, patience_s: float = PATIENCE_S) -> JobState:
    """Print a job's output until it has ended, and return its last state.

    Raises:
        ClusterError: the cluster has not answered for `patience_s`; the job may still be running.
    """
    shown = 0
    last_answer = time.monotonic()
    while True:
        try:
            received = 0
            for piece in client.tail(job_id):
                # After a broken connection the log starts from its beginning.
                fresh = piece[max(0, shown - received) :]
                received += len(piece)
                shown = max(shown, received)
                for line in fresh.splitlines():
                    if logs.is_json():
                        logs.relay_line(line)
                    else:
                        say(line.expandtabs())
                last_answer = time.monotonic()
            state = client.state(job_id)
            last_answer = time.monotonic()
            if state.is_ended:
                return state
        except ClusterError as error:
            if time.monotonic() - last_answer > patience_s:
                raise ClusterError(f"{error} The job {job_id} may still be running.") from error
        time.sleep(POLL_S)


def ending(state: JobState) -> str:
    """Return one sentence on how a job ended."""
    if state.phase == "succeeded":
        return f"The job {state.job_id} is complete."
    if state.phase == "stopped":
        return f"The job {state.job_id} was stopped; submit it again to resume."
    if state.exit_code is not None:
        return f"The job {state.job_id} failed with exit code {state.exit_code}; its last lines say why."
    reason = " ".join(state.message.split())[:600] or "Ray gives no reason."
    return f"The job {state.job_id} failed without an exit code: {reason}"
