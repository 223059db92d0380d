"""`htc submit`: check here what can be checked, submit, say what to do next, and wait if asked to."""

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
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec
from pipeline.storage.uris import is_local

POLL_S = 0.5
# A head node that is being replaced, or a tunnel that is being opened again.
PATIENCE_S = 60.0
EXIT_INTERRUPTED = 130


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
) -> int:
    """Submit a job, and write its id and the next commands to stdout.

    Args:
        env: NAME or NAME=VALUE each.
        is_shared: all nodes see this machine's paths.
        is_waited_for: follow the job to its end.

    Returns:
        The exit code: of the job when it was waited for (130 after Ctrl-C, which leaves it going), else 0.

    Raises:
        HtcError: see `jobs.cluster.submit.submit_job`; SpecError also for paths that only this machine has.
    """
    env_vars = read_env_vars(env, os.environ)
    client = connect(address)
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
    """Read NAME=VALUE as it is, and NAME with its value here.

    Raises:
        SpecError: a name that is none, or has no value here.
    """
    values = {}
    for word in words:
        name, is_given, value = word.partition("=")
        if not name.isidentifier() or not name.isascii():
            raise SpecError(f"--env {word}: {name!r} is no variable's name; give NAME or NAME=VALUE.")
        if not is_given and name not in environment:
            raise SpecError(f"--env {name}: it is not set here; set it, or give NAME=VALUE.")
        values[name] = value if is_given else environment[name]
    return values


def check_paths_are_shared(spec: JobSpec, url: str, *, is_shared: bool) -> None:
    """Refuse paths of this machine for a cluster that is elsewhere.

    One that is reached by this machine's own address may run here, or at the other end of a tunnel: the job's first
    look from a worker's node tells.
    """
    if is_shared or is_this_machine(url):
        return
    for key, place in {"input.uri": spec.input.uri, "output.uri": spec.output.uri}.items():
        if is_local(place):
            raise SpecError(
                f"{key} is {place}, a path of this machine, and the cluster at {url} is another: put it into storage "
                "that both reach (s3://...), or add --shared-paths if all its nodes have that path."
            )


def next_commands(job_id: str, output_uri: str, address: str | None) -> Iterator[str]:
    """The commands that one wants next, with what they do."""
    where = f" --address {shlex.quote(address)}" if address else ""
    yield f"Next: htc status {job_id}{where}    how far it is"
    yield f"      htc logs {job_id} -f{where}   what it says"
    yield f"      htc stop {job_id}{where}      end it; the same submission resumes"
    yield f"      htc status {shlex.quote(output_uri)}    the same without the cluster"


def _wait(client: JobsClient, job_id: str, address: str | None, *, is_json: bool) -> int:
    try:
        state = follow(client, job_id)
    except KeyboardInterrupt:
        where = f" --address {shlex.quote(address)}" if address else ""
        say(f"Not waiting any more; the job {job_id} goes on. To end it: htc stop {job_id}{where}")
        return EXIT_INTERRUPTED
    if is_json:
        write_line(json.dumps(state.to_dict()))
    elif state.exit_code is None and state.phase != "succeeded":
        say(ending(state))
    else:
        write_line(ending(state))
    return state.final_exit_code or 0


def follow(client: JobsClient, job_id: str, *, patience_s: float = PATIENCE_S) -> JobState:
    """Pass on what a job says until it has ended.

    Raises:
        ClusterError: the cluster has not answered for `patience_s`; the job may go on.
    """
    shown = 0
    last_answer = time.monotonic()
    while True:
        try:
            seen = 0
            for piece in client.tail(job_id):
                # After a broken connection the log is told from its beginning.
                fresh = piece[max(0, shown - seen) :]
                seen += len(piece)
                shown = max(shown, seen)
                for line in fresh.splitlines():
                    say(line.expandtabs())
                last_answer = time.monotonic()
            state = client.state(job_id)
            last_answer = time.monotonic()
            if state.is_ended:
                return state
        except ClusterError as error:
            if time.monotonic() - last_answer > patience_s:
                raise ClusterError(f"{error} The job {job_id} may go on all the same.") from error
        time.sleep(POLL_S)


def ending(state: JobState) -> str:
    """One sentence on how a job ended."""
    if state.phase == "succeeded":
        return f"The job {state.job_id} is complete."
    if state.phase == "stopped":
        return f"The job {state.job_id} was stopped; the same submission resumes."
    if state.exit_code is not None:
        return f"The job {state.job_id} failed with exit code {state.exit_code}; its last lines say why."
    reason = " ".join(state.message.split())[:600] or "Ray does not say why."
    return f"The job {state.job_id} failed before its end: {reason}"
