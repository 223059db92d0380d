"""One remote store as this process knows it: its client, how it fares, and how hard it may be worked."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import (
    NotFoundError,
    ObjectTooLargeError,
    PastEndError,
    SlowDownError,
    StorageError,
    TransientStorageError,
    WebHostError,
)
from pipeline.storage.client import open_client, read_concurrency
from pipeline.storage.config import StorageSection
from pipeline.storage.objects import ObjectData
from pipeline.storage.pacing import HedgePolicy, ReadLimiter, hedged
from pipeline.storage.read import ReadRequest, begin_read
from pipeline.storage.retry import StoreHealth
from pipeline.storage.translate import Verb, storage_error
from pipeline.storage.uris import WELL_KNOWN_SCHEMES

T = TypeVar("T")


class Store:
    """The client of a scheme, shared by a process's threads.

    client: the fsspec file system.
    """

    def __init__(self, scheme: str, section: StorageSection, *, is_known: bool) -> None:
        """`is_known`: another process has used it already."""
        self._is_well_known = scheme in WELL_KNOWN_SCHEMES
        self.client: Any = open_client(scheme, section)
        self._health = StoreHealth(section.patience_s, has_answered=is_known)
        self._limiter = ReadLimiter(read_concurrency(section, is_local=False))
        self._hedges = HedgePolicy(is_on=section.hedge_reads)

    def wait_for(self, patience_s: float) -> None:
        """Wait for the store so long from now on, when it is away."""
        self._health.patience_s = patience_s

    def has_answered_within(self, seconds: float) -> bool:
        """Whether the store granted a request so lately."""
        return time.monotonic() - self._health.last_success < seconds

    def call(self, action: Callable[[], T], uri: str, verb: Verb, *, is_expected: bool = False) -> T:
        """Make a request: translate its errors, and repeat it where that may help.

        Args:
            is_expected: whether the object was there before, so that "not found" is doubted.

        Raises:
            StorageError: in words, when all attempts are used up.
        """

        def attempt() -> T:
            began = time.monotonic()
            try:
                return translated_errors(action, uri, verb, is_local=False)
            except SlowDownError:
                self._limiter.note_slow_down(began)
                raise

        return self._health.call(attempt, is_expected=is_expected)

    def fetch(self, request: ReadRequest) -> ObjectData:
        """Read an object or a part of it; a slow read is asked for twice.

        Raises:
            ObjectTooLargeError: it is larger than the request allows.
            StorageError: it cannot be read.
        """
        is_listed = request.listed is not None and request.listed.etag is not None
        try:
            return self.call(lambda: self._read_once(request), request.uri, "read", is_expected=is_listed)
        except PastEndError:
            # Nothing, as of a local file.
            return ObjectData(b"", None)
        except (NotFoundError, ObjectTooLargeError, TransientStorageError):
            raise
        except StorageError as error:
            if self._is_well_known:
                raise
            # What a store that this program does not know refuses is that image's failure: nothing says that
            # another attempt at the whole shard would help.
            raise WebHostError(str(error)) from error

    def _read_once(self, request: ReadRequest) -> ObjectData:
        with self._limiter.slot():
            start = time.monotonic()
            found = hedged(
                lambda: begin_read(self.client, request),
                self._hedges.slow_s(request.expected_bytes),
                lambda: self._limiter.has_room() and self._hedges.take(),
            )
        self._hedges.note(time.monotonic() - start, len(found.payload))
        self._limiter.note_success()
        return found


def translated_errors(action: Callable[[], T], uri: str, verb: Verb, *, is_local: bool) -> T:
    """Do something with storage; what a library raises becomes one of `pipeline.errors`, our own bugs stay."""
    try:
        return action()
    except StorageError:
        raise
    except Exception as error:  # every library raises its own; what none of them raises is let through
        translated = storage_error(error, uri, verb, is_local=is_local)
        if translated is None:
            raise
        raise translated from error
