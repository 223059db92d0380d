"""Secrets taken out of text before it reaches a log, a table, a record or a screen.

Specs cannot hold credentials, but error messages of storage clients can: in URLs, in signed query strings, or
by quoting a header. What is known to be secret is found by value, in the environment; the rest by its shape.
"""

import json
import logging
import os
import re
from collections.abc import Iterator

REDACTED = "***"

# Names of environment variables whose values are secrets; AWS_ACCESS_KEY_ID is half of a pair and hidden as well.
_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|_KEY$|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING", re.I
)
# Shorter values would blot out common words.
_MIN_SECRET_LENGTH = 8
_SHAPES = (
    # user:password@ of a URL.
    (re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.-]*://)[^/@\s:]*:[^/@\s]+@"), rf"\g<head>{REDACTED}@"),
    # Signed URLs: AWS signature versions 2 and 4, Google, Azure SAS.
    (
        re.compile(
            r"(?P<head>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|Signature|"
            r"AWSAccessKeyId|sig)=)[^&\s'\"]+",
            re.I,
        ),
        rf"\g<head>{REDACTED}",
    ),
    (re.compile(r"(?P<head>\bAuthorization['\"]?\s*[:=]\s*b?['\"]?)[^'\"\r\n]+", re.I), rf"\g<head>{REDACTED}"),
    # Connection strings of Azure.
    (re.compile(r"(?P<head>\b(?:AccountKey|SharedAccessSignature)=)[^;\s'\"]+", re.I), rf"\g<head>{REDACTED}"),
    # AWS access key ids, as IAM makes them: a four-letter kind and sixteen characters.
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), REDACTED),
)


def redact(text: str) -> str:
    """Return the text with every secret replaced by `***`.

    Secrets are the values of this process's environment variables that are named like one (8 characters or
    more), passwords and signatures in URLs, authorization headers, and AWS access key ids.
    """
    for secret in _known_secrets():
        text = text.replace(secret, REDACTED)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text


def _known_secrets() -> list[str]:
    # Asked anew each time: a driver may take its credentials from a file long after it started.
    values = {
        value
        for name, value in os.environ.items()
        # A path to a secret (AWS_WEB_IDENTITY_TOKEN_FILE, GOOGLE_APPLICATION_CREDENTIALS) is none itself.
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET_LENGTH and not value.startswith(("/", "~"))
    }
    values |= set(_fsspec_secrets())
    # The longest first, in case one secret is part of another.
    return sorted(values, key=len, reverse=True)


def _fsspec_secrets() -> Iterator[str]:
    # FSSPEC_S3='{"key": ..., "secret": ...}' holds several settings at once.
    for name, text in os.environ.items():
        if not (name.startswith("FSSPEC_") and text.startswith("{")):
            continue
        try:
            settings = json.loads(text)
        except ValueError:
            continue
        for key, value in settings.items():
            is_secret = key == "key" or _SECRET_NAME.search(key)
            if is_secret and isinstance(value, str) and len(value) >= _MIN_SECRET_LENGTH:
                yield value


class RedactingFormatter(logging.Formatter):
    """A log formatter whose lines, tracebacks included, hold no secret."""

    def format(self, record: logging.LogRecord) -> str:
        """Format as usual, then redact."""
        return redact(super().format(record))


def log_without_secrets(level: int = logging.INFO) -> None:
    """Send this process's log to stderr, redacted; nothing happens where logging is set up already."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
