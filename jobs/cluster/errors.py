"""Errors between this machine and a cluster, each with one sentence and the way out."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from pipeline.errors import HtcError, RunError, SpecError
from pipeline.runs.lease import RunHeldError

# How a Ray dashboard refuses (ray._private.authentication): "Missing authentication token", "Invalid ...".
_ANSWER = re.compile(r"^Authentication \w+: (?:Unauthorized|Forbidden): \w+ authentication token")


# To find out what is at an address that did not answer.
PROBE_S = 1.0


class ClusterError(RunError):
    """The cluster cannot be reached, or refuses."""


class NoSuchJobError(SpecError):
    """The cluster knows no job of this id."""


class JobRunningError(RunHeldError):
    """A job of this cluster is working on the same run; `job_id` names it."""

    def __init__(self, job_id: str, message: str) -> None:
        super().__init__(message)
        self.job_id = job_id

    def __reduce__(self) -> tuple[type["JobRunningError"], tuple[str, str]]:
        return JobRunningError, (self.job_id, str(self))


@contextmanager
def translated_errors(url: str, job_id: str | None = None) -> Iterator[None]:
    """Translate the errors of Ray and its HTTP clients into one sentence with the way out.

    Raises:
        NoSuchJobError, ClusterError: instead of the libraries' errors.
    """
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(_refused_access(url, str(error))) from error
    except aiohttp.WSServerHandshakeError as error:
        raise _error_for_status(error.status, url, job_id) from error
    except (requests.exceptions.HTTPError, requests.exceptions.JSONDecodeError, KeyError) as error:
        raise ClusterError(_not_a_dashboard(url)) from error
    except (requests.exceptions.RequestException, aiohttp.ClientError, OSError) as error:
        raise ClusterError(_no_answer(url)) from error
    except (RuntimeError, ValueError) as error:
        raise _error_for_refusal(str(error), url, job_id) from error


def _no_answer(url: str) -> str:
    """Return the sentence for a cluster that does not answer; what is there instead, where that can be found out."""
    place = urlsplit(url)
    try:
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname or "", port), PROBE_S).close()
    except socket.gaierror:
        return f"The host {place.hostname} of {url} is not known here; check its name, and the network's DNS or VPN."
    except (OSError, ValueError):
        return _nothing_there(url)
    return (
        f"Something accepts connections at {url}, and does not answer as a Ray dashboard does; check the port, usually "
        "8265, and the scheme, http or https."
    )


def _nothing_there(url: str) -> str:
    return (
        f"No cluster answers at {url}. Check the address and the port (the dashboard's, usually 8265), that the head "
        "node was started with `ray start --head --dashboard-host 0.0.0.0` and no firewall is between; on Kubernetes: "
        "kubectl port-forward service/NAME-head-svc 8265:8265, then --address http://127.0.0.1:8265"
    )


def _not_a_dashboard(url: str) -> str:
    from requests.utils import get_environ_proxies

    proxy = next(iter(get_environ_proxies(url).values()), None)
    asked = f", asked through the proxy {proxy} (NO_PROXY makes an exception)" if proxy else ""
    return f"The server at {url} is not a Ray dashboard{asked}; check the address and the port, usually 8265."


def is_missing_token(refusal: str) -> bool:
    """Return whether Ray's AuthenticationError is a Ray dashboard's that asks for a token."""
    return _ANSWER.search(refusal) is not None and "Missing" in refusal


def _refused_access(url: str, refusal: str) -> str:
    # Ray's client takes every 401 and 403 for its own; the answer itself is the first paragraph of its message.
    return _token_problem(url, refusal) if _ANSWER.search(refusal) else _not_a_dashboard(url)


def _token_problem(url: str, reason: str) -> str:
    where = "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or in ~/.ray/auth_token"
    if "Missing" in reason:
        return f"The cluster at {url} asks for a token: {where}."
    return f"The cluster at {url} does not accept this machine's token: {where}."


def _error_for_status(status: int, url: str, job_id: str | None) -> HtcError:
    if status in {401, 403}:
        return ClusterError(_token_problem(url, "Missing" if status == 401 else "Invalid"))
    return _error_for_refusal(f"status code {status}", url, job_id)


def _error_for_refusal(reason: str, url: str, job_id: str | None) -> HtcError:
    if job_id is not None and ("does not exist" in reason or "status code 404" in reason):
        return NoSuchJobError(f"The cluster at {url} knows no job {job_id}; htc list names those it knows.")
    if taken := re.search(r"submission_id (\S+) already exists", reason):
        # Ids contain the second: the same job was submitted just now.
        there = f"The job {taken[1]} is already working on this run; follow it with: htc logs {taken[1]} -f"
        return JobRunningError(taken[1], there)
    if "status code 404" in reason or "Version check" in reason:
        return ClusterError(_not_a_dashboard(url))
    first = next((line.strip() for line in reason.splitlines() if line.strip()), "without a reason")
    if "No available agent" in reason:
        return ClusterError(f"The cluster at {url} is still starting; try again in a minute.")
    return ClusterError(f"The cluster at {url} refuses: {first[:500].rstrip('.')}.")
