"""Hands the outcome of a run to a Prometheus Pushgateway, which keeps it after the run's process has ended."""

from dataclasses import replace
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit

from prometheus_client import push_to_gateway
from prometheus_client.exposition import basic_auth_handler, default_handler

from jobs.monitoring.exporter import output_registry
from jobs.monitoring.metrics import output_label
from jobs.monitoring.output_status import OutputStatus

JOB = "htc"
TIMEOUT_S = 10.0


def push_status(status: OutputStatus, url: str) -> str:
    """Push the metrics of an output, in place of those pushed before; return why it failed, "" if it did not.

    The driver's heartbeats are left out: a Pushgateway would show a number that stands still.

    Args:
        url: the gateway's, with `user:password@` where it asks for them.
    """
    if status.last is not None:
        status = replace(status, last=replace(status.last, heartbeats=None))
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]

    def handler(url, method, timeout, headers, data):  # type: ignore[no-untyped-def]  # prometheus_client's protocol
        if parts.username:
            return basic_auth_handler(url, method, timeout, headers, data, parts.username, parts.password or "")
        return default_handler(url, method, timeout, headers, data)

    try:
        push_to_gateway(
            urlunsplit(parts._replace(netloc=host)).rstrip("/"),
            job=JOB,
            registry=output_registry(status),
            grouping_key={"output": output_label(status)},
            timeout=TIMEOUT_S,
            handler=handler,
        )
    except HTTPError as error:
        return f"the Pushgateway answered {error.code}"
    except TimeoutError:
        return f"the Pushgateway did not answer within {TIMEOUT_S:g} s"
    except (URLError, OSError) as error:
        # Without the error's text, which may quote the URL.
        return f"the Pushgateway cannot be reached ({type(error).__name__})"
    return ""
