"""Notifications: a webhook that takes Slack's JSON, and the operator's own program.

A notification that cannot be delivered is reported in the history and in the log, and never blocks a run.
"""

import logging
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import requests
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from jobs.scheduling.schedule import NotifySection
from jobs.scheduling.store import Notification, ScheduleStore
from pipeline.redaction import redact
from pipeline.runs.outcomes import in_words

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
ATTEMPTS = 5
LONGEST_WAIT_S = 20.0
HOOK_TIMEOUT_S = 300.0
_HEADINGS = {"end": "complete", "failure": "FAILED", "deadline": "LATE"}


class _WebhookError(Exception):
    """The webhook did not accept the notification; worth a retry."""


def deliver_open_notifications(
    home: Path, *, longest_wait_s: float = LONGEST_WAIT_S, hook_timeout_s: float = HOOK_TIMEOUT_S
) -> None:
    """Deliver the open notifications, each at least once.

    Args:
        longest_wait_s: between two attempts at a webhook. hook_timeout_s: after which an exit hook is killed.
    """
    store = ScheduleStore(home)
    try:
        for notification in store.open_notifications():
            problem = (
                _send_webhook(notification, longest_wait_s)
                if notification.channel == "webhook"
                else _run_hook(notification, hook_timeout_s)
            )
            if problem:
                log.warning("%s: the %s was not notified: %s", notification.firing.name, notification.channel, problem)
            store.close_notification(replace(notification, problem=problem))
    finally:
        store.close()


def describe_notification(notification: Notification) -> str:
    """Return the notification's text: schedule and run, status, counts, reason."""
    firing, ending = notification.firing, notification.firing.ending
    outcome = in_words(ending.outcome) if ending and notification.event != "deadline" else ""
    heading = _HEADINGS[notification.event]
    if notification.event == "deadline":
        heading += f": not finished by {firing.deadline:%Y-%m-%d %H:%M} UTC"
    elif outcome and outcome != heading:
        heading += f" ({outcome})"
    lines = [f"htc schedule {firing.schedule.name}: {heading}", f"run {firing.name}"]
    if ending and ending.counts:
        lines.append(_describe_counts(ending.counts))
    if notification.reason:
        lines.append(notification.reason)
    return redact("\n".join(lines))


def webhook_url(notify: NotifySection) -> str:
    """Read the webhook's URL from the environment variable or file that the schedule names.

    Raises:
        ValueError: there is no URL; the message names the variable or file, never the URL.
    """
    if notify.webhook_url_env:
        url = os.environ.get(notify.webhook_url_env, "").strip()
        place = f"the environment variable {notify.webhook_url_env}"
    else:
        place = f"the file {notify.webhook_url_file}"
        try:
            url = Path(notify.webhook_url_file or "").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ValueError(f"{place} cannot be read") from None
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{place} does not hold a URL" if url else f"{place} is empty or not set")
    return url


def _describe_counts(counts: Mapping[str, float]) -> str:
    images, done = counts.get("images", 0), counts.get("images_done", 0)
    if not images:
        return "no image to do"
    parts = [f"{done:,.0f} of {images:,.0f} images", f"{counts.get('instances', 0):,.0f} instances"]
    if counts.get("failed"):
        parts.append(f"{counts['failed']:,.0f} images failed")
    return ", ".join(parts)


def _send_webhook(notification: Notification, longest_wait_s: float) -> str:
    try:
        url = webhook_url(notification.firing.schedule.notify)
        Retrying(
            retry=retry_if_exception_type(_WebhookError),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.5, max=longest_wait_s),
            reraise=True,
        )(_post, url, {"text": describe_notification(notification)})
    except (_WebhookError, ValueError) as error:
        return str(error)
    return ""


def _post(url: str, body: Mapping[str, str]) -> None:
    try:
        answer = requests.post(url, json=body, timeout=TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as error:
        # Without the error's text, which quotes the URL.
        raise _WebhookError(f"the webhook cannot be reached ({type(error).__name__})") from None
    if answer.status_code >= 500 or answer.status_code == 429:
        raise _WebhookError(f"the webhook answered {answer.status_code}")
    if not 200 <= answer.status_code < 300:
        raise ValueError(f"the webhook answered {answer.status_code}; is its URL still right?")


def _run_hook(notification: Notification, timeout_s: float) -> str:
    command = notification.firing.schedule.notify.exit_hook or []
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own program, without a shell
            command,
            env={**os.environ, **hook_environment(notification)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within {timeout_s:g} s"
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}"
    if done.returncode == 0:
        return ""
    said = redact(done.stderr.decode(errors="backslashreplace").strip().rpartition("\n")[2])
    return f"{command[0]} ended with exit code {done.returncode}" + (f": {said[:200]}" if said else "")


def hook_environment(notification: Notification) -> dict[str, str]:
    """Return the environment variables of the exit hook."""
    firing, ending = notification.firing, notification.firing.ending
    job = firing.schedule.spec
    variables = {
        "HTC_EVENT": notification.event,
        "HTC_SCHEDULE": firing.schedule.name,
        "HTC_RUN": firing.name,
        "HTC_SCHEDULED": firing.scheduled.isoformat(),
        "HTC_SPEC": job if isinstance(job, str) else "",
        "HTC_STATUS": ending.outcome if ending else firing.state,
        "HTC_EXIT_CODE": "" if ending is None or ending.exit_code is None else str(ending.exit_code),
        "HTC_REASON": redact(notification.reason),
        "HTC_TEXT": describe_notification(notification),
    }
    for name, count in (ending.counts if ending else {}).items():
        variables[f"HTC_{name.upper()}"] = f"{count:g}" if name == "seconds" else f"{count:.0f}"
    return variables
