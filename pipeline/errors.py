"""The exceptions of this program; each message is one sentence that states the problem and the way out.

HtcError                      base of all; shown to the user without a traceback
├── SpecError                 a job spec or a command's arguments are wrong; exit code 2
│   ├── RunMismatchError      a run is resumed with another model or spec; the message names the difference
│   ├── OutputOccupiedError   the output folder holds files that this program did not write
│   └── ModelError            a model's factory is missing or fails, or its model does not keep to the protocol
├── InputError                the input is empty or cannot be listed; exit code 2
├── StorageError              a storage operation failed
│   ├── NotFoundError         the object does not exist (any more)
│   ├── AccessDeniedError     no permission, or invalid credentials
│   ├── WebHostError          one of several web hosts fails; only its images fail
│   ├── UnsupportedSchemeError  the scheme of the address cannot be opened; no retry helps
│   ├── PastEndError          a requested range begins after the object's end
│   ├── ObjectTooLargeError   the object is larger than its reader accepts
│   ├── DamagedFileError      a file of the output is damaged or missing; `htc doctor` finds all of them
│   └── TransientStorageError a timeout, 5xx or cut connection; worth another attempt elsewhere
│       ├── SlowDownError     the store asks for fewer requests
│       └── IncompleteReadError   the store did not return the whole object
├── ImageError                one bad image: it becomes a row with this status and reason, never a crash
├── WeightsUnavailableError   the weights file is not available (offline, unknown name); exit code 2
├── DamagedContainerError     a tar or Parquet file of the input is damaged
└── RunError                  the run cannot continue (cluster lost, disk full); committed shards stay
    └── StoppedError          a signal came before the run could begin
"""

from typing import Literal

ImageStatus = Literal["ok", "unreadable", "missing", "too_large", "failed"]


class HtcError(Exception):
    """Base of every error that a user sees as one sentence, without a traceback."""

    exit_code: int = 1


class SpecError(HtcError):
    """The job spec or the command line is wrong."""

    exit_code = 2


class RunMismatchError(SpecError):
    """The run exists and was started with another model or spec."""


class OutputOccupiedError(SpecError):
    """The output folder holds files that this program did not write."""


class ModelError(SpecError):
    """A model's factory cannot be found, fails, or returns what does not keep to the protocol of models."""


class InputError(HtcError):
    """The input is empty, missing or cannot be listed."""

    exit_code = 2


class StorageError(HtcError):
    """A storage operation failed; the message names the uri."""


class NotFoundError(StorageError):
    """The object does not exist."""


class AccessDeniedError(StorageError):
    """The object or folder exists but may not be read or written."""


class WebHostError(StorageError):
    """One web host fails while others answer: only the images of that host fail."""


class UnsupportedSchemeError(StorageError):
    """No client can be opened for the scheme of an address: it is unknown, or its package or options are missing."""

    exit_code = 2


class DamagedFileError(StorageError):
    """A file of the output is missing, damaged, or not from this program; the message names it and `htc doctor`."""


class PastEndError(StorageError):
    """The requested range begins after the end of the object."""


class TransientStorageError(StorageError):
    """Storage failed in a way that another attempt may cure; raised when the local retries are used up."""


class SlowDownError(TransientStorageError):
    """The store asks for fewer requests (HTTP 429 and 503)."""


class IncompleteReadError(TransientStorageError):
    """The store returned too few or too many bytes, or bytes of two versions."""


class ObjectTooLargeError(StorageError):
    """The object is larger than its reader accepts; `bytes` is its size."""

    def __init__(self, uri: str, size: int) -> None:
        super().__init__(f"{uri} is too large: {size} bytes.")
        self.uri = uri
        self.bytes = size

    def __reduce__(self) -> tuple[type["ObjectTooLargeError"], tuple[str, int]]:
        return ObjectTooLargeError, (self.uri, self.bytes)


class ImageError(HtcError):
    """One image cannot be segmented; it becomes a row of the images table.

    Attributes:
        status: the row's status, never "ok".
        reason: the row's error, on one line.
    """

    def __init__(self, status: ImageStatus, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status: ImageStatus = status
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[ImageStatus, str]]:
        # Exceptions with two arguments cannot be unpickled otherwise, and workers send them to the driver.
        return ImageError, (self.status, self.reason)


class WeightsUnavailableError(HtcError):
    """The weights file is not available."""

    exit_code = 2


class RunError(HtcError):
    """The run cannot continue; committed shards stay, and the same command resumes."""


class StoppedError(RunError):
    """Ctrl-C, SIGTERM or SIGHUP came before the run could begin, so there is no summary."""


class DamagedContainerError(HtcError):
    """A tar or Parquet file ends early or is not what its name says; images found before the damage still count."""
