"""Web hosts: each is a store of its own, and a host that fails does not stop the run.

A listing of URLs may name thousands of hosts, some of which no longer exist. Retrying them for as long as the bucket of
a run would delay all others, so what such a host does not serve is a failure of that image. A process that reaches no
host at all blames none: then the network is more likely at fault, and another worker may reach them.
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

# For how long an answer of one host shows that the network works.
RECENT_S = 60.0
# For how long no request is made to a host that was given up.
PAUSE_S = 30.0


class WebHosts:
    """The last two web hosts that answered this process, and when; shared by its threads."""

    def __init__(self) -> None:
        self._last = self._other = ("", float("-inf"))
        self._lock = threading.Lock()

    def record_answer(self, host: str) -> None:
        """Record that a host answered, whatever the answer."""
        with self._lock:
            if self._last[0] != host:
                self._other = self._last
            self._last = (host, time.monotonic())

    def has_answered_recently(self, *, other_than: str | None = None) -> bool:
        """Return whether a host, other than the given one, answered recently: then the network works."""
        with self._lock:
            answers = (self._last, self._other)
        return any(host != other_than and time.monotonic() - moment < RECENT_S for host, moment in answers)


class WebStore(Store):
    """One web host."""

    def __init__(
        self, scheme: str, section: StorageSection, signed: SignedAddresses, host: str, hosts: WebHosts
    ) -> None:
        super().__init__(scheme, section, signed, is_known=False)
        self._host = host
        self._hosts = hosts
        self._patience_s = section.patience_s
        self._given_up = float("-inf")

    def call(self, action: Callable[[], T], uri: str, verb: Verb, *, is_expected: bool = False) -> T:
        """Make a request as `Store.call` does.

        Raises:
            WebHostError: the host fails while others answer.
            StorageError: all attempts are used up.
        """
        is_paused = time.monotonic() - self._given_up < PAUSE_S
        if is_paused and self._hosts.has_answered_recently():
            raise WebHostError(f"{self._host} did not answer a moment ago, so {uri} was not requested.")
        # While other hosts answer, this one is at fault, and waiting for it would delay their images.
        self.set_patience(0.0 if self._hosts.has_answered_recently(other_than=self._host) else self._patience_s)
        try:
            found = super().call(action, uri, verb, is_expected=is_expected)
        except TransientStorageError as error:
            if not self._hosts.has_answered_recently():
                raise
            if not self.has_answered_within(RECENT_S):
                self._given_up = time.monotonic()
            raise WebHostError(str(error)) from error
        except StorageError:
            self._hosts.record_answer(self._host)
            raise
        self._hosts.record_answer(self._host)
        return found

    def fetch(self, request: ReadRequest) -> ObjectData:
        """Read as `Store.fetch` does; a refusal is a failure of this URL only.

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
