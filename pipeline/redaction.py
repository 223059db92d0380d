"""Removes secrets from text before it reaches a log, a table, a record or a screen.

Specs cannot hold credentials, but error messages of storage clients can: in URLs, in signed query strings, or in a
quoted header. Secrets of the environment are found by their value, others by their shape.
"""

import json
import logging
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote

REDACTED = "***"

# Parts of names that mark a secret, in settings, environment variables and query parameters alike. AWS_ACCESS_KEY_ID
# is half of a pair and hidden as well.
_SENSITIVE_WORDS = (
    r"secret|token|passw|credential|authorization|cookie|signature|connection_?string|access_?key|account_?key|api_?key"
)
# Beside these words, each place has short names of its own, which are harmless elsewhere: USER, `policy`, `pass`.
_SECRET_VARIABLE = re.compile(rf"{_SENSITIVE_WORDS}|_key$", re.I)
_SECRET_OPTION = re.compile(rf"{_SENSITIVE_WORDS}|^sas|key$|key_id$|^username$|^user$|^auth$", re.I)
# X-Amz-Signature and X-Goog-Credential match by their words; the short names are those of Azure's shared access
# signatures, of CloudFront's signed URLs, and of common web services.
_SECRET_PARAMETER = re.compile(
    rf"{_SENSITIVE_WORDS}|^(?:sig|sas|auth|jwt|hmac|pwd|pass|key-pair-id|policy|hdnts|hdnea|awsaccesskeyid|googleaccessid)$",
    re.I,
)
# Shorter values could be part of common words.
_MIN_SECRET_LENGTH = 8
_SHAPES = (
    # user:password@ and TOKEN@ of a URL. In abfs://CONTAINER@ACCOUNT the part before @ is no secret.
    (
        re.compile(r"(?P<head>\b(?!(?:abfss?|az|adl|wasbs?)://[^:/@\s]*@)[A-Za-z][A-Za-z0-9+.-]*://)[^/@\s?#'\"]+@"),
        rf"\g<head>{REDACTED}@",
    ),
    (re.compile(r"(?P<head>\bAuthorization['\"]?\s*[:=]\s*b?['\"]?)[^'\"\r\n]+", re.I), rf"\g<head>{REDACTED}"),
    # Connection strings of Azure.
    (re.compile(r"(?P<head>\b(?:AccountKey|SharedAccessSignature)=)[^;\s'\"]+", re.I), rf"\g<head>{REDACTED}"),
    # AWS access key ids as IAM creates them: four letters for the kind and sixteen characters.
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), REDACTED),
)

# A parameter of a URL; `is_secret_parameter` decides by its name.
_PARAMETER = re.compile(r"(?P<head>[?&#;](?:amp;)?(?P<name>[\w.%~-]{1,64})=)(?P<value>[^&;\s'\"<>#]+)")


def is_secret_option(name: str) -> bool:
    """Return whether an option of a storage client holds a credential, judged by its name."""
    return _SECRET_OPTION.search(name) is not None


@lru_cache(maxsize=1024)
def is_secret_parameter(name: str) -> bool:
    """Return whether a query parameter of a URL holds a credential or a signature, judged by its name."""
    return _SECRET_PARAMETER.search(name.replace("-", "_")) is not None or _SECRET_PARAMETER.search(name) is not None


def _hide_parameter(found: re.Match[str]) -> str:
    return f"{found['head']}{REDACTED}" if is_secret_parameter(unquote(found["name"])) else found[0]


def redact(text: str) -> str:
    """Return the text with every secret replaced by `***`.

    Secrets are values of at least 8 characters of environment variables with a secret's name; passwords, tokens and
    signatures in URLs; authorization headers; and AWS access key ids.
    """
    for secret in _known_secrets():
        text = text.replace(secret, REDACTED)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return _PARAMETER.sub(_hide_parameter, text) if "=" in text else text


def _known_secrets() -> list[str]:
    # Read each time: a driver may load its credentials from a file long after it started.
    values = {
        value
        for name, value in os.environ.items()
        # A path to a secret (AWS_WEB_IDENTITY_TOKEN_FILE, GOOGLE_APPLICATION_CREDENTIALS) is not a secret.
        if _SECRET_VARIABLE.search(name) and len(value) >= _MIN_SECRET_LENGTH and not value.startswith(("/", "~"))
    }
    values |= set(_fsspec_secrets())
    # Longest first, as one secret may be part of another.
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
            is_secret = key == "key" or _SECRET_VARIABLE.search(key)
            if is_secret and isinstance(value, str) and len(value) >= _MIN_SECRET_LENGTH:
                yield value


class RedactingFormatter(logging.Formatter):
    """A log formatter that redacts every line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """Format as usual, then redact."""
        return redact(super().format(record))


def log_without_secrets(level: int = logging.INFO) -> None:
    """Send this process's log to stderr, redacted; does nothing if logging is already configured."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
