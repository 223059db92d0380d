"""Translation of storage libraries' exceptions into those of `pipeline.errors`.

Operating systems, s3fs, gcsfs and HTTP clients raise different exceptions for the same problem. This module imports
none of the libraries; it recognises their exceptions by errno, by HTTP status and by class name.
"""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from pipeline.errors import (
    AccessDeniedError,
    NotFoundError,
    PastEndError,
    SlowDownError,
    StorageError,
    TransientStorageError,
)
from pipeline.redaction import redact
from pipeline.storage.damage import UNKNOWN_OUTPUT, damaged, output_of
from pipeline.storage.uris import WEB_SCHEMES, WELL_KNOWN_SCHEMES, local_path, scheme_of
from pipeline.text import one_line

T = TypeVar("T")
Verb = Literal["read", "write", "list", "delete"]

# A link to itself leads nowhere (ELOOP).
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "the disk is full or over quota; free some and run again"),
    errno.EFBIG: "files may not grow so large here (see `ulimit -f`)",
}
# Transient on a local disk: network file systems raise these. On a remote store every errno is transient that is not
# in _PERMANENT.
_LOCAL_TRANSIENT = {
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.EINTR,
}
_PERMANENT = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.EEXIST,
    errno.EMSGSIZE,
}

# Errors of botocore, google-auth and azure that are not OSErrors: the credentials are missing, wrong or expired.
_CREDENTIAL_ERRORS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "SSOTokenLoadError",
    "UnauthorizedSSOTokenError",
    "DefaultCredentialsError",
    "RefreshError",
    "ClientAuthenticationError",
}
# Errors of botocore, aiohttp, urllib3, gcsfs and azure that a retry may cure.
_TRANSIENT_ERRORS = {
    "EndpointConnectionError",
    "ConnectionClosedError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "HTTPClientError",
    "ResponseStreamingError",
    "IncompleteReadError",
    "ChecksumError",
    "FlexibleChecksumError",
    "ClientError",
    "ClientPayloadError",
    "ClientConnectionError",
    "ServerDisconnectedError",
    "ServerTimeoutError",
    "FSTimeoutError",
    "HttpError",
    "ServiceRequestError",
    "ServiceResponseError",
    "IncompleteRead",
}
# S3's error codes (API reference, "Error responses") that come with HTTP 400 and that a retry may cure.
_TRANSIENT_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}


def translated_errors(action: Callable[[], T], uri: str, verb: Verb, *, is_local: bool) -> T:
    """Run a storage operation; a library's exception becomes a StorageError, a bug of this program stays as it is."""
    try:
        return action()
    except StorageError:
        raise
    except Exception as error:  # libraries share no base class; what none of them raises is re-raised
        translated = storage_error(error, uri, verb, is_local=is_local)
        if translated is None:
            raise
        raise translated from error


def storage_error(error: BaseException, uri: str, verb: Verb, *, is_local: bool) -> StorageError | None:
    """Translate a file system's exception.

    Args:
        error: what was raised.
        uri: the object or folder that was accessed.
        verb: what was being done.
        is_local: whether the uri is a path on this machine.

    Returns:
        the error to raise instead, or None when the exception is a bug and must be raised as it is.
    """
    if isinstance(error, FileNotFoundError) and scheme_of(uri) in WEB_SCHEMES and error.__cause__ is not None:
        # fsspec raises "not found" for a URL whatever went wrong when it asked for its length.
        error = error.__cause__
    names = {kind.__name__ for kind in type(error).__mro__}
    uri = redact(uri)
    status = _http_status(error)
    refusal = _refusal(error, names, status, uri, verb, is_local=is_local)
    if refusal is not None:
        return refusal
    reason = one_line(error, max_chars=300)
    if _is_slow_down(error, status):
        return SlowDownError(f"Storage asked for fewer requests and did not {verb} {uri} ({reason}).")
    if _is_transient(error, names, status, is_local=is_local):
        return TransientStorageError(f"Storage could not {verb} {uri} just now ({reason}).")
    if status == 416:
        return PastEndError(f"{uri} ends before the range that was read.")
    is_foreign = not is_local and scheme_of(uri) not in WELL_KNOWN_SCHEMES
    if is_foreign or isinstance(error, OSError) or status is not None or "BotoCoreError" in names:
        return StorageError(f"Storage could not {verb} {uri} ({reason}).")
    return None


def _refusal(
    error: BaseException, names: set[str], status: int | None, uri: str, verb: Verb, *, is_local: bool
) -> StorageError | None:
    """Return the error for a failure that no retry cures; None for all others."""
    code = error.errno if isinstance(error, OSError) else None
    # A name with a null byte or a lone surrogate, or one that is too long, belongs to no file.
    is_null = isinstance(error, ValueError) and "embedded null" in str(error)
    is_too_long = is_local and verb == "read" and code == errno.ENAMETOOLONG
    is_no_name = is_null or is_too_long or isinstance(error, UnicodeEncodeError)
    if (
        is_no_name
        or isinstance(error, FileNotFoundError | NotADirectoryError)
        or code in _MISSING
        or status in (404, 410)
    ):
        return _not_there(uri, is_local=is_local)
    if isinstance(error, PermissionError) or code in _FORBIDDEN or status in (401, 403):
        place = "the permissions" if is_local else "the credentials and the bucket's policy"
        place = "that the URL is public, or signed" if scheme_of(uri) in WEB_SCHEMES else place
        return AccessDeniedError(f"No permission to {verb} {uri}; check {place}.")
    if names & _CREDENTIAL_ERRORS:
        return AccessDeniedError(
            f"No valid credentials to {verb} {uri}; set them in the environment or a profile, "
            "or set `storage: {anonymous: true}` for a public bucket."
        )
    if code in _FULL:
        return StorageError(f"No space left to {verb} {uri}: {_FULL[code]}.")
    return _folder_in_place(uri, verb) if isinstance(error, IsADirectoryError) else None


def _not_there(uri: str, *, is_local: bool) -> StorageError:
    if is_local and output_of(uri) != UNKNOWN_OUTPUT and Path(local_path(uri)).is_symlink():
        return damaged(uri, "it is a link that leads nowhere")
    return NotFoundError(f"{uri} does not exist.")


def _folder_in_place(uri: str, verb: Verb) -> StorageError:
    if output_of(uri) != UNKNOWN_OUTPUT:
        return damaged(uri, "a folder is in its place")
    if verb == "write":
        return StorageError(f"{uri} cannot be written, because there is a folder of that name; move the folder away.")
    return NotFoundError(f"{uri} is a folder, not a file.")


def _is_transient(error: BaseException, names: set[str], status: int | None, *, is_local: bool) -> bool:
    code = error.errno if isinstance(error, OSError) else None
    if "ClientPayloadError" in names:
        # A body that was cut short: the code 400 of aiohttp's cause did not come from the store.
        return True
    if _s3_code(error) in _TRANSIENT_CODES:
        return True
    if status is not None:
        return status in (408, 409, 425, 429) or status >= 500
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if is_local:
        return code in _LOCAL_TRANSIENT
    return bool(names & _TRANSIENT_ERRORS) or (isinstance(error, OSError) and code not in _PERMANENT)


def _is_slow_down(error: BaseException, status: int | None) -> bool:
    if status in (429, 503):
        return True
    return isinstance(error, OSError) and error.errno == errno.EBUSY and "reduce your request rate" in str(error)


def _s3_code(error: BaseException) -> str | None:
    """Return S3's error code, from an exception of botocore or one that s3fs raised for it."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            return code if isinstance(code, str) else None
    return None


def _http_status(error: BaseException) -> int | None:
    """Return the HTTP status of an exception of aiohttp (`status`), gcsfs (`code`) or, as its cause, botocore."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(status, int):
                return status
        for name in ("status", "code", "status_code"):
            value = getattr(candidate, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None
