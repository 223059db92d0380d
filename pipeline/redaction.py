"""Secrets taken out of text before it reaches a log, a table, a record or a screen.

Specs cannot hold credentials, but error messages of storage clients can: in URLs, in signed query strings, or
by quoting a header. What is known to be secret is found by value, in the environment; the rest by its shape.
"""

import json
import logging
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote

REDACTED = "***"

# What names of settings, environment variables and query parameters hold a secret; one list for all of them.
# AWS_ACCESS_KEY_ID is half of a pair and hidden as well.
_TELLING_WORDS = (
    r"secret|token|passw|credential|authorization|cookie|signature|connection_?string|access_?key|account_?key|api_?key"
)
_SECRET_NAME = re.compile(rf"{_TELLING_WORDS}|_key$", re.I)
_SECRET_OPTION = re.compile(rf"{_TELLING_WORDS}|^sas|key$|key_id$|^username$|^user$|^auth$", re.I)
# X-Amz-Signature and X-Goog-Credential are caught by their words; what follows are the short names of Azure's shared
# access signatures, of CloudFront's signed URLs, and of common web services.
_SECRET_PARAMETER = re.compile(
    rf"{_TELLING_WORDS}|^(?:sig|sas|auth|jwt|hmac|pwd|pass|key-pair-id|policy|hdnts|hdnea|awsaccesskeyid|googleaccessid)$",
    re.I,
)
# Shorter values would blot out common words.
_MIN_SECRET_LENGTH = 8
_SHAPES = (
    # user:password@ and TOKEN@ of a URL. In abfs://CONTAINER@ACCOUNT the first is no secret.
    (
        re.compile(r"(?P<head>\b(?!(?:abfss?|az|adl|wasbs?)://[^:/@\s]*@)[A-Za-z][A-Za-z0-9+.-]*://)[^/@\s?#'\"]+@"),
        rf"\g<head>{REDACTED}@",
    ),
    (re.compile(r"(?P<head>\bAuthorization['\"]?\s*[:=]\s*b?['\"]?)[^'\"\r\n]+", re.I), rf"\g<head>{REDACTED}"),
    # Connection strings of Azure.
    (re.compile(r"(?P<head>\b(?:AccountKey|SharedAccessSignature)=)[^;\s'\"]+", re.I), rf"\g<head>{REDACTED}"),
    # AWS access key ids, as IAM makes them: a four-letter kind and sixteen characters.
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), REDACTED),
)

# A parameter of a URL; its name decides (`is_secret_parameter`).
_PARAMETER = re.compile(r"(?P<head>[?&#;](?:amp;)?(?P<name>[\w.%~-]{1,64})=)(?P<value>[^&;\s'\"<>#]+)")


def is_secret_option(name: str) -> bool:
    """Tell whether an option of a store's client holds a credential, by its name."""
    return _SECRET_OPTION.search(name) is not None


@lru_cache(maxsize=1024)
def is_secret_parameter(name: str) -> bool:
    """Tell whether a query parameter of a URL holds a credential or a signature, by its name."""
    return _SECRET_PARAMETER.search(name.replace("-", "_")) is not None or _SECRET_PARAMETER.search(name) is not None


def _hide_parameter(found: re.Match[str]) -> str:
    return f"{found['head']}{REDACTED}" if is_secret_parameter(unquote(found["name"])) else found[0]


def redact(text: str) -> str:
    """Return the text with every secret replaced by `***`.

    Secrets are the values of this process's environment variables that are named like one (8 characters or
    more), passwords, tokens and signatures in URLs, authorization headers, and AWS access key ids.
    """
    for secret in _known_secrets():
        text = text.replace(secret, REDACTED)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return _PARAMETER.sub(_hide_parameter, text) if "=" in text else text


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
