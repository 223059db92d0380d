"""What went wrong in storage, in the words of `pipeline.errors`.

Operating systems, s3fs, gcsfs and HTTP clients raise different exceptions for the same trouble. Which library
is installed is nobody's business here, so theirs are recognised by errno, by HTTP status and by class name.
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

# A link that leads back to itself leads nowhere.
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "the disk is full or over quota; free some and run again"),
    errno.EFBIG: "files may not grow so large here (see `ulimit -f`)",
}
# Worth another attempt on a local disk: network file systems hiccup with these. A remote store gets the
# benefit of the doubt for every errno that is not listed in _LASTING.
_LOCAL_HICCUPS = {
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.EINTR,
}
_LASTING = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.EEXIST,
    errno.EMSGSIZE,
}

# Errors of botocore and google-auth that are no OSError: the credentials are absent, wrong or expired.
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
# Errors of botocore, aiohttp, urllib3, gcsfs and azure that a second try may cure.
_HICCUP_ERRORS = {
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
# S3's words (API reference, "Error responses") for what comes with HTTP 400 and a second try may cure.
_HICCUP_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}


def translated_errors(action: Callable[[], T], uri: str, verb: Verb, *, is_local: bool) -> T:
    """Do something with storage; what a library raises becomes a StorageError, our own bugs stay."""
    try:
        return action()
    except StorageError:
        raise
    except Exception as error:  # every library raises its own; what none of them raises is let through
        translated = storage_error(error, uri, verb, is_local=is_local)
        if translated is None:
            raise
        raise translated from error


def storage_error(error: BaseException, uri: str, verb: Verb, *, is_local: bool) -> StorageError | None:
    """Translate an exception of a file system into one of ours.

    Args:
        error: what was raised.
        uri: the object or folder it was about.
        verb: what was being done.
        is_local: whether the uri is a path on this machine.

    Returns:
        the error to raise instead, or None when the exception is a bug and should travel as it is.
    """
    if isinstance(error, FileNotFoundError) and scheme_of(uri) in WEB_SCHEMES and error.__cause__ is not None:
        # fsspec says "not found" of a URL whatever went wrong when it asked how long it is.
        error = error.__cause__
    names = {kind.__name__ for kind in type(error).__mro__}
    uri = redact(uri)
    status = _http_status(error)
    refusal = _refusal(error, names, status, uri, verb, is_local=is_local)
    if refusal is not None:
        return refusal
    reason = one_line(error, max_chars=300)
    if _is_slow_down(error, status):
        return SlowDownError(f"Storage asked for fewer requests when it was to {verb} {uri} ({reason}).")
    if _is_hiccup(error, names, status, is_local=is_local):
        return TransientStorageError(f"Storage could not {verb} {uri} just now ({reason}).")
    if status == 416:
        return PastEndError(f"{uri} ends before what was to be read of it.")
    is_foreign = not is_local and scheme_of(uri) not in WELL_KNOWN_SCHEMES
    if is_foreign or isinstance(error, OSError) or status is not None or "BotoCoreError" in names:
        return StorageError(f"Storage could not {verb} {uri} ({reason}).")
    return None


def _refusal(
    error: BaseException, names: set[str], status: int | None, uri: str, verb: Verb, *, is_local: bool
) -> StorageError | None:
    """Name the failures that no second try cures; None for all others."""
    code = error.errno if isinstance(error, OSError) else None
    # No file can have a name with a null byte or half a character in it, or one so long, so none is there.
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
            "or say `storage: {anonymous: true}` for a public bucket."
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
        return StorageError(f"{uri} cannot be written, because a folder of that name is there; move it away.")
    return NotFoundError(f"{uri} is a folder, not a file.")


def _is_hiccup(error: BaseException, names: set[str], status: int | None, *, is_local: bool) -> bool:
    code = error.errno if isinstance(error, OSError) else None
    if "ClientPayloadError" in names:
        # A body that was cut off: aiohttp's cause carries the code 400, which the store never said.
        return True
    if _s3_code(error) in _HICCUP_CODES:
        return True
    if status is not None:
        return status in (408, 409, 425, 429) or status >= 500
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if is_local:
        return code in _LOCAL_HICCUPS
    return bool(names & _HICCUP_ERRORS) or (isinstance(error, OSError) and code not in _LASTING)


def _is_slow_down(error: BaseException, status: int | None) -> bool:
    if status in (429, 503):
        return True
    return isinstance(error, OSError) and error.errno == errno.EBUSY and "reduce your request rate" in str(error)


def _s3_code(error: BaseException) -> str | None:
    """Find S3's own word for an error, in an exception of botocore or one that s3fs made of it."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            return code if isinstance(code, str) else None
    return None


def _http_status(error: BaseException) -> int | None:
    """Find the HTTP status in an exception of aiohttp (`status`), gcsfs (`code`) or, as its cause,
    botocore."""
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
