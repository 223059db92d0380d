"""Hosts of the web: each is a store of its own, and one of many that fails is no reason to stop.

A listing of URLs may name thousands of hosts, some of which are gone for good. Waiting for them as one waits for the
bucket that a run lives on would hold up all others; so what such a host does not give is that image's failure. A
process that reaches no host at all, however, blames none: then it is more likely the network, and another worker's
may be better.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import (
    NotFoundError,
    ObjectTooLargeError,
    StorageError,
    TransientStorageError,
    WebHostError,
)
from pipeline.storage.config import StorageSection
from pipeline.storage.objects import ObjectData
from pipeline.storage.read import ReadRequest
from pipeline.storage.signed_urls import SignedAddresses
from pipeline.storage.store import Store
from pipeline.storage.translate import Verb

T = TypeVar("T")

# For how long one host's answer shows that the network is well.
LATELY_S = 60.0
# For how long a host that was given up is not asked again.
REST_S = 30.0


class WebHosts:
    """Which hosts of the web answered this process last, and when; shared by its threads."""

    def __init__(self) -> None:
        self._last = self._other = ("", float("-inf"))
        self._lock = threading.Lock()

    def note_answer(self, host: str) -> None:
        """Count an answer, whatever it said."""
        with self._lock:
            if self._last[0] != host:
                self._other = self._last
            self._last = (host, time.monotonic())

    def has_answered_lately(self, *, but: str | None = None) -> bool:
        """Whether there is a network, as far as one can tell without the host `but`."""
        with self._lock:
            return any(
                host != but and time.monotonic() - moment < LATELY_S for host, moment in (self._last, self._other)
            )


class WebStore(Store):
    """One host of the web."""

    def __init__(
        self, scheme: str, section: StorageSection, signed: SignedAddresses, host: str, hosts: WebHosts
    ) -> None:
        super().__init__(scheme, section, signed, is_known=False)
        self._host = host
        self._hosts = hosts
        self._patience_s = section.patience_s
        self._given_up = float("-inf")

    def call(self, action: Callable[[], T], uri: str, verb: Verb, *, is_expected: bool = False) -> T:
        """Make a request as any store does.

        Raises:
            WebHostError: the host fails while others answer.
            StorageError: in words, when all attempts are used up.
        """
        is_resting = time.monotonic() - self._given_up < REST_S
        if is_resting and self._hosts.has_answered_lately():
            raise WebHostError(f"{self._host} did not answer a moment ago, so {uri} was not asked for.")
        # While others answer there is nothing to wait for that they would have to wait for too.
        self.wait_for(0.0 if self._hosts.has_answered_lately(but=self._host) else self._patience_s)
        try:
            found = super().call(action, uri, verb, is_expected=is_expected)
        except TransientStorageError as error:
            if not self._hosts.has_answered_lately():
                raise
            if not self.has_answered_within(LATELY_S):
                self._given_up = time.monotonic()
            raise WebHostError(str(error)) from error
        except StorageError:
            self._hosts.note_answer(self._host)
            raise
        self._hosts.note_answer(self._host)
        return found

    def fetch(self, request: ReadRequest) -> ObjectData:
        """Read as from any store; a refusal is the URL's own.

        Raises:
            WebHostError: the host refuses, or fails while others answer.
            StorageError: it cannot be read.
        """
        try:
            return super().fetch(request)
        except (NotFoundError, ObjectTooLargeError, TransientStorageError, WebHostError):
            raise
        except StorageError as error:
            raise WebHostError(str(error)) from error
