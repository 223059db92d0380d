"""The errors of a run, each with an owner.

HtcError                      the message is one sentence for a person: what is wrong, and the way out
├── SpecError                 a job spec or a command's arguments; exit code 2
│   ├── RunMismatchError      resuming a run with another model or spec; names what differs
│   └── OutputOccupiedError   the output folder already holds something that is not ours
├── InputError                nothing to do, or the input cannot be listed; exit code 2
├── StorageError              storage said no
│   ├── NotFoundError         the object does not exist (any more)
│   ├── AccessDeniedError     no permission, bad credentials
│   ├── WebHostError          a host of the web among others fails; its images fail, and no others
│   ├── UnsupportedSchemeError  the address is of a kind that cannot be opened here; no retry helps
│   ├── PastEndError          a range was asked for that begins behind the object's end
│   ├── ObjectTooLargeError   the object is larger than its reader can take
│   ├── DamagedFileError      a file of the output is not as it was written; `htc doctor` finds all of them
│   └── TransientStorageError a time-out, 5xx, cut connection; worth another attempt elsewhere
│       ├── SlowDownError     the store asks for fewer requests
│       └── IncompleteReadError   it answered, and not with all of the object
├── ImageError                one bad image: it becomes a row with this status and reason, never a crash
├── WeightsUnavailableError   weights cannot be had (offline, unknown name); exit code 2
└── RunError                  the run cannot go on (cluster lost, disk full); what is committed stays
    └── StoppedError          a signal came before the run could begin
"""

from typing import Literal

ImageStatus = Literal["ok", "unreadable", "missing", "too_large", "failed"]


class HtcError(Exception):
    """Base of every error that is shown to a user as one sentence, without a traceback."""

    exit_code: int = 1


class SpecError(HtcError):
    """The job spec or the command line is wrong."""

    exit_code = 2


class RunMismatchError(SpecError):
    """The run exists and was started with another model or spec."""


class OutputOccupiedError(SpecError):
    """The output folder holds something that this program did not write."""


class InputError(HtcError):
    """The input is empty, missing or cannot be listed."""

    exit_code = 2


class StorageError(HtcError):
    """Storage refused; the message names the uri."""


class NotFoundError(StorageError):
    """The object does not exist."""


class AccessDeniedError(StorageError):
    """The object or folder exists but may not be read or written."""


class WebHostError(StorageError):
    """A host of the web does not give what it was asked for, while others answer: this image's trouble alone."""


class UnsupportedSchemeError(StorageError):
    """No client can be opened for the scheme of an address: unknown, its package missing, or its options."""

    exit_code = 2


class DamagedFileError(StorageError):
    """A file of the output is missing, truncated, or not of this program; the message names it and `htc doctor`."""


class PastEndError(StorageError):
    """A range was asked for that begins behind the end of the object."""


class TransientStorageError(StorageError):
    """Storage failed in a way that another attempt may cure; raised after the local retries are used up."""


class SlowDownError(TransientStorageError):
    """The store asks for fewer requests (HTTP 429 and 503)."""


class IncompleteReadError(TransientStorageError):
    """The store answered, but with fewer or more bytes than there are, or with those of two versions."""


class ObjectTooLargeError(StorageError):
    """The object is larger than its reader can take; `bytes` is its size."""

    def __init__(self, uri: str, size: int) -> None:
        super().__init__(f"{uri} is too large: {size} bytes.")
        self.uri = uri
        self.bytes = size

    def __reduce__(self) -> tuple[type["ObjectTooLargeError"], tuple[str, int]]:
        return ObjectTooLargeError, (self.uri, self.bytes)


class ImageError(HtcError):
    """One image cannot be segmented.

    Attributes:
        status: the row's status, never "ok".
        reason: the row's error, one line.
    """

    def __init__(self, status: ImageStatus, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status: ImageStatus = status
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[ImageStatus, str]]:
        # Exceptions with two arguments do not survive pickling otherwise, and workers send them to the driver.
        return ImageError, (self.status, self.reason)


class WeightsUnavailableError(HtcError):
    """The weights file cannot be had."""

    exit_code = 2


class RunError(HtcError):
    """The run cannot continue; committed shards stay and the same command resumes."""


class StoppedError(RunError):
    """Ctrl-C, SIGTERM or SIGHUP came before there was a run to give a summary of."""


class DamagedContainerError(HtcError):
    """A container ends early or is not what its name says; what was found before stands."""
