"""Delivers a notification: to a webhook, by apprise (e-mail and many services), and to the operator's own program.

What cannot be delivered is returned as text, for the log; it never raises, because a run must not fail over it. And it
never takes longer than a bound: a server that hangs must not hold up the end of a run.
"""

import importlib.util
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import requests
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from jobs.notifications.bodies import Report, build_body
from pipeline.job_spec.notify import Channel, NotifyTargets
from pipeline.redaction import redact
from pipeline.text import one_line

TIMEOUT_S = 10.0
ATTEMPTS = 5
LONGEST_WAIT_S = 20.0
HOOK_TIMEOUT_S = 300.0
# For all attempts at one channel; channels are served side by side.
DELIVERY_BOUND_S = 60.0
# After a signal, because Kubernetes kills 30 s after its SIGTERM.
BOUND_AFTER_SIGNAL_S = 10.0
APPRISE_MISSING = "apprise is not installed here (pip install 'htc-batch[notify]')"

Delivery = Callable[[], str]
"""Delivers by one channel; returns why it could not, "" if it could."""


class _BusyServerError(Exception):
    """The server did not accept the request; worth a retry."""


def send_webhook(
    notify: NotifyTargets,
    report: Report,
    *,
    longest_wait_s: float = LONGEST_WAIT_S,
    bound_s: float = DELIVERY_BOUND_S,
) -> str:
    """Post a report to the webhook, with retries; return why it was not accepted, "" if it was.

    Args:
        longest_wait_s: seconds between two attempts. bound_s: no attempt begins later than this.
    """
    try:
        url = channel_url(notify, "webhook")
        body = build_body(report, url, notify.webhook_format)
        _retried(lambda: _post(url, json=body, name="webhook"), longest_wait_s, bound_s)
    except (_BusyServerError, ValueError) as error:
        return str(error)
    return ""


def send_ping(
    notify: NotifyTargets,
    suffix: str,
    text: str,
    *,
    longest_wait_s: float = LONGEST_WAIT_S,
    bound_s: float = DELIVERY_BOUND_S,
) -> str:
    """Give a sign of life to a service such as healthchecks.io; return why it was not accepted, "" if it was.

    Args:
        suffix: of the URL's path: "/start", "" for success, "/fail". text: shown there beside the event.
    """
    try:
        parts = urlsplit(channel_url(notify, "ping"))
        url = urlunsplit(parts._replace(path=parts.path.rstrip("/") + suffix))
        _retried(lambda: _post(url, data=text.encode(), name="ping service"), longest_wait_s, bound_s)
    except (_BusyServerError, ValueError) as error:
        return str(error)
    return ""


def send_apprise(notify: NotifyTargets, report: Report) -> str:
    """Deliver a report to every URL of apprise; return why some did not accept it, "" if all did.

    The text names the kinds of the URLs only: the rest of them may be secret.
    """
    try:
        urls = channel_url(notify, "apprise").split()
    except ValueError as error:
        return str(error)
    if importlib.util.find_spec("apprise") is None:
        return APPRISE_MISSING
    import apprise

    # Its own messages would go to stderr, with parts of the URLs.
    messages = logging.getLogger("apprise")
    messages.addHandler(logging.NullHandler())
    messages.propagate = False
    problems = []
    for number, url in enumerate(urls, 1):
        scheme = url.partition("://")[0] if "://" in url else f"number {number}"
        sender = apprise.Apprise()
        if not sender.add(url):
            problems.append(f"apprise does not understand the URL {scheme}")
        elif not sender.notify(body=report.text, title=report.title, body_format=apprise.NotifyFormat.TEXT):
            problems.append(f"apprise could not deliver by {scheme}")
    return "; ".join(problems)


def run_hook(command: Sequence[str], variables: Mapping[str, str], *, timeout_s: float = HOOK_TIMEOUT_S) -> str:
    """Run the operator's program without a shell; return why it failed, "" if it did not.

    Args:
        variables: added to the environment. timeout_s: after which it is killed.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own program, without a shell
            list(command),
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within {timeout_s:g} s"
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}"
    except ValueError:
        return f"{command[0]} cannot be run: an argument or variable holds a zero byte"
    if done.returncode == 0:
        return ""
    said = redact(done.stderr.decode(errors="backslashreplace").strip().rpartition("\n")[2])
    return f"{command[0]} ended with exit code {done.returncode}" + (f": {said[:200]}" if said else "")


def deliver_side_by_side(deliveries: Mapping[str, Delivery], bounds_s: Mapping[str, float]) -> dict[str, str]:
    """Deliver by several channels at once, and wait no longer than each one's bound.

    A delivery that takes longer continues in its thread, which does not keep the process alive.

    Returns:
        by channel, why it could not be delivered, "" if it was.
    """
    outcomes: dict[str, str] = {}

    def deliver(channel: str, delivery: Delivery) -> None:
        try:
            problem = delivery()
        except Exception as error:  # noqa: BLE001 - the boundary to libraries and their plugins; a run must not fail
            problem = one_line(error, max_chars=200)
        outcomes.setdefault(channel, problem)

    began = time.monotonic()
    threads = {
        channel: threading.Thread(target=deliver, args=(channel, delivery), name=f"notify {channel}", daemon=True)
        for channel, delivery in deliveries.items()
    }
    for thread in threads.values():
        thread.start()
    for channel, thread in threads.items():
        thread.join(max(0.0, began + bounds_s[channel] - time.monotonic()))
        outcomes.setdefault(channel, f"there was no answer within {bounds_s[channel]:.2g} s")
    return {channel: outcomes[channel] for channel in deliveries}


def channel_url(notify: NotifyTargets, channel: Channel) -> str:
    """Read a channel's URL (of apprise: its URLs) from the environment variable or file that is named.

    Raises:
        ValueError: there is no URL; the message names the variable or file, never the URL.
    """
    variable, file = notify.url_source(channel)
    if variable:
        url = os.environ.get(variable, "").strip()
        place = f"the environment variable {variable}"
    else:
        place = f"the file {file}"
        try:
            url = Path(file or "").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ValueError(f"{place} cannot be read") from None
    is_url = "://" in url if channel == "apprise" else url.startswith(("https://", "http://"))
    if not is_url:
        raise ValueError(f"{place} does not hold a URL" if url else f"{place} is empty or not set")
    return url


def find_problems(notify: NotifyTargets, channels: Sequence[Channel]) -> dict[str, str]:
    """Return by channel why it cannot be used, as far as that shows without sending anything."""
    problems: dict[str, str] = {}
    for channel in channels:
        if not notify.has_url(channel):
            continue
        try:
            channel_url(notify, channel)
        except ValueError as error:
            problems[channel] = str(error)
        if channel == "apprise" and importlib.util.find_spec("apprise") is None:
            problems[channel] = APPRISE_MISSING
    if notify.exit_hook and shutil.which(notify.exit_hook[0]) is None:
        problems["exit hook"] = f"{notify.exit_hook[0]} is no program of this machine"
    return problems


def _retried(send: Callable[[], None], longest_wait_s: float, bound_s: float) -> None:
    Retrying(
        retry=retry_if_exception_type(_BusyServerError),
        stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(bound_s),
        wait=wait_random_exponential(multiplier=0.5, max=longest_wait_s),
        reraise=True,
    )(send)


def _post(url: str, *, name: str, json: object = None, data: bytes | None = None) -> None:
    try:
        # The body of the answer is not read: it may have no end.
        with requests.post(url, json=json, data=data, timeout=TIMEOUT_S, allow_redirects=False, stream=True) as answer:
            code = answer.status_code
    except requests.Timeout:
        raise _BusyServerError(f"the {name} did not answer within {TIMEOUT_S:g} s") from None
    except requests.ConnectionError as error:
        # Without the error's text, which quotes the URL.
        raise _BusyServerError(f"the {name} cannot be reached ({type(error).__name__})") from None
    except requests.RequestException as error:
        raise ValueError(f"the {name}'s URL cannot be used ({type(error).__name__})") from None
    if code >= 500 or code == requests.codes.too_many_requests:
        raise _BusyServerError(f"the {name} answered {code}")
    if not 200 <= code < 300:
        raise ValueError(f"the {name} answered {code}; is its URL still right?")


def describe_counts(counts: Mapping[str, float]) -> str:
    """Return images, instances and failures as text; `counts` by name: images, images_done, instances, failed."""
    images, done = counts.get("images", 0), counts.get("images_done", 0)
    if not images:
        return "no image to do"
    parts = [f"{done:,.0f} of {images:,.0f} images", f"{counts.get('instances', 0):,.0f} instances"]
    if counts.get("failed"):
        parts.append(f"{counts['failed']:,.0f} images failed")
    return ", ".join(parts)
