"""Client of a cluster's Jobs API: resolves the address, limits waiting times, translates errors."""

import asyncio
import contextlib
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from jobs.cluster.errors import ClusterError, NoSuchJobError, is_missing_token, translated_errors
from jobs.cluster.job_state import JobState, state_from_ray
from pipeline.cluster.connection import reread_ray_settings
from pipeline.errors import SpecError

DASHBOARD_PORT = 8265
# The first with token authentication; declared in pyproject.toml too.
OLDEST_RAY = (2, 52)
# Ray's ports of `ray start --head --port` and of Ray Client. An address with one of them means the same cluster.
_OTHER_PORTS = {6379, 10001}
# An address that does not answer is given up within ten seconds, for the connection and the version together.
CONNECT_TIMEOUT_S = 4.0
READ_TIMEOUT_S = 60.0
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# They log each upload as INFO, and that of the demo weights as a WARNING.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_environment_lock = threading.Lock()


class JobsClient(Protocol):
    """The requests to a cluster; every method raises ClusterError if the cluster cannot be reached."""

    @property
    def url(self) -> str:
        """The dashboard's URL."""

    @property
    def ray_version(self) -> str:
        """The cluster's version of Ray."""

    @property
    def note(self) -> str:
        """A sentence to show before a job is submitted, or ""; raises as `check_version` does."""

    def submit(
        self, *, entrypoint: str, job_id: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """Start a job."""

    def state(self, job_id: str) -> JobState:
        """Return the state of one job; NoSuchJobError if there is none of this id, or htc did not submit it."""

    def states(self) -> list[JobState]:
        """Return the states of all jobs of htc, newest first."""

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; return False if it had ended."""

    def logs(self, job_id: str) -> str:
        """Return a job's output so far."""

    def tail(self, job_id: str) -> Iterator[str]:
        """Yield a job's output from the beginning, in pieces, until it ends."""


def resolve_address(address: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the URL of a cluster's dashboard, with scheme and port.

    Args:
        address: a URL, `host`, `host:port`, or the address that `ray start` or Ray Client prints, of which only the
            host is used; None takes the address from the environment, else this machine's.

    Raises:
        SpecError: the address is invalid.
    """
    named = address or next((environment[name] for name in _ADDRESS_VARIABLES if environment.get(name)), None)
    if named is None or named in {"auto", "local"}:
        return f"http://127.0.0.1:{DASHBOARD_PORT}"
    parts = urlsplit(named if "://" in named else f"//{named}")
    scheme = parts.scheme if parts.scheme in {"http", "https"} else "http"
    try:
        port = parts.port
    except ValueError:
        port = -1
    if not parts.hostname or port == -1 or parts.scheme not in {"", "http", "https", "ray"}:
        raise SpecError(f"{named} is not a cluster's address; give the dashboard's URL, such as http://10.0.0.1:8265.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if parts.scheme in {"http", "https"}:
        # As written: a proxy may serve the dashboard on any port, and below any path.
        return named.rstrip("/")
    is_other = port in _OTHER_PORTS or parts.scheme == "ray"
    return f"{scheme}://{host}:{DASHBOARD_PORT if port is None or is_other else port}"


def is_this_machine(url: str) -> bool:
    """Return whether a URL is of this machine: the cluster runs here, or a tunnel to it begins here."""
    return urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}


def check_version(cluster: str, here: str, url: str) -> str:
    """Compare the cluster's version of Ray with this machine's; a job runs with the cluster's.

    Returns:
        One sentence if the versions differ and are compatible, else "".

    Raises:
        ClusterError: the cluster's version is too old, or is another major version.
    """
    if cluster == here:
        return ""
    both = f"The cluster at {url} runs Ray {cluster}, and this machine Ray {here}"
    theirs, ours = _numbers(cluster), _numbers(here)
    if theirs < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        raise ClusterError(f"{both}; htc-batch needs Ray {oldest} or later there: give the cluster a newer image.")
    if theirs[:1] != ours[:1]:
        raise ClusterError(f"{both}; install the same here (pip install 'ray[default]=={cluster}').")
    return f"{both}; the job runs with the cluster's."


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def connect(address: str | None = None, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> "RayJobsClient":
    """Open a connection; returns or raises within ten seconds.

    Args:
        address: see `resolve_address`. connect_timeout_s: for the connection, and again for the version.

    Raises:
        SpecError: the address is invalid.
        ClusterError: nothing answers there, it is not a Ray dashboard, or the token is wrong.
    """
    return RayJobsClient(resolve_address(address), connect_timeout_s)


class RayJobsClient:
    """A `JobsClient` that uses Ray's JobSubmissionClient."""

    def __init__(self, url: str, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        from ray.exceptions import AuthenticationError

        self._url = url
        with translated_errors(url), _address_in_environment(url):
            try:
                self._client = _timed_client(url, connect_timeout_s)
            except AuthenticationError as error:
                if not (is_missing_token(str(error)) and is_this_machine(url) and use_own_token()):
                    raise
                self._client = _timed_client(url, connect_timeout_s)

    @property
    def url(self) -> str:
        """See `JobsClient`."""
        return self._url

    @property
    def note(self) -> str:
        """See `JobsClient`."""
        import ray

        return check_version(self.ray_version, ray.__version__, self.url)

    @property
    def ray_version(self) -> str:
        """See `JobsClient`."""
        return str(self._client._server_ray_version or "unknown")

    def submit(
        self, *, entrypoint: str, job_id: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """See `JobsClient`."""
        with translated_errors(self.url):
            self._client.submit_job(
                entrypoint=entrypoint, submission_id=job_id, runtime_env=dict(runtime_env), metadata=dict(metadata)
            )

    def state(self, job_id: str) -> JobState:
        """See `JobsClient`."""
        with translated_errors(self.url, job_id):
            state = state_from_ray(self._client.get_job_info(job_id))
        if state is None:
            raise NoSuchJobError(f"The job {job_id} at {self.url} was not submitted by htc.")
        return state

    def states(self) -> list[JobState]:
        """See `JobsClient`."""
        with translated_errors(self.url):
            found = [state for details in self._client.list_jobs() if (state := state_from_ray(details))]
        return sorted(found, key=lambda state: (state.started is not None and state.started.timestamp()) or 0.0)[::-1]

    def stop(self, job_id: str) -> bool:
        """See `JobsClient`."""
        with translated_errors(self.url, job_id):
            return bool(self._client.stop_job(job_id))

    def logs(self, job_id: str) -> str:
        """See `JobsClient`."""
        with translated_errors(self.url, job_id):
            return str(self._client.get_job_logs(job_id))

    def tail(self, job_id: str) -> Iterator[str]:
        """See `JobsClient`."""
        # Ray has an asynchronous API only for this.
        pieces = cast("AsyncIterator[str]", self._client.tail_job_logs(job_id))

        async def next_piece() -> str | None:
            return await anext(pieces, None)

        # The runner also closes the connection cleanly after Ctrl-C.
        with asyncio.Runner() as runner:
            while True:
                with translated_errors(self.url, job_id):
                    piece = runner.run(next_piece())
                if piece is None:
                    return
                yield piece


def _timed_client(url: str, connect_timeout_s: float) -> Any:
    """Return Ray's client with time limits for all requests."""
    from ray.job_submission import JobSubmissionClient

    class TimedClient(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            limit_s = connect_timeout_s if endpoint == "/api/version" else READ_TIMEOUT_S
            options.setdefault("timeout", (connect_timeout_s, limit_s))
            return super()._do_request(method, endpoint, **options)

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    return TimedClient(url)


def use_own_token() -> bool:
    """Have Ray's client send the token in `~/.ray/auth_token`; return whether there is one.

    Ray does so only with RAY_AUTH_MODE=token, although the file is where `ray get-auth-token --generate` writes it. A
    choice that the user has made is not changed.
    """
    if os.environ.get("RAY_AUTH_MODE") or not (Path.home() / ".ray" / "auth_token").is_file():
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    reread_ray_settings()
    return True


@contextlib.contextmanager
def _address_in_environment(url: str) -> Iterator[None]:
    """Set the address in the environment for the block, because Ray prefers its variables to any argument."""
    name = _ADDRESS_VARIABLES[0]
    with _environment_lock:
        former = os.environ.get(name)
        os.environ[name] = url
        try:
            yield
        finally:
            if former is None:
                del os.environ[name]
            else:
                os.environ[name] = former
