"""Delivers a notification: to a webhook that takes Slack's JSON, and to the operator's own program.

What cannot be delivered is returned as text, for the log; it never raises, because a run must not fail over it.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import requests
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from pipeline.job_spec.notify import NotifyTargets
from pipeline.redaction import redact

TIMEOUT_S = 10.0
ATTEMPTS = 5
LONGEST_WAIT_S = 20.0
HOOK_TIMEOUT_S = 300.0


class _WebhookError(Exception):
    """The webhook did not accept the notification; worth a retry."""


def send_webhook(notify: NotifyTargets, text: str, *, longest_wait_s: float = LONGEST_WAIT_S) -> str:
    """Post a text to the webhook, with retries; return why it was not accepted, "" if it was.

    Args:
        longest_wait_s: seconds between two attempts.
    """
    try:
        url = webhook_url(notify)
        Retrying(
            retry=retry_if_exception_type(_WebhookError),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.5, max=longest_wait_s),
            reraise=True,
        )(_post, url, {"text": text})
    except (_WebhookError, ValueError) as error:
        return str(error)
    return ""


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
    if done.returncode == 0:
        return ""
    said = redact(done.stderr.decode(errors="backslashreplace").strip().rpartition("\n")[2])
    return f"{command[0]} ended with exit code {done.returncode}" + (f": {said[:200]}" if said else "")


def webhook_url(notify: NotifyTargets) -> str:
    """Read the webhook's URL from the environment variable or file that is named.

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


def describe_counts(counts: Mapping[str, float]) -> str:
    """Return images, instances and failures as text; `counts` by name: images, images_done, instances, failed."""
    images, done = counts.get("images", 0), counts.get("images_done", 0)
    if not images:
        return "no image to do"
    parts = [f"{done:,.0f} of {images:,.0f} images", f"{counts.get('instances', 0):,.0f} instances"]
    if counts.get("failed"):
        parts.append(f"{counts['failed']:,.0f} images failed")
    return ", ".join(parts)
