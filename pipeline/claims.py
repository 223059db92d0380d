"""Who commits a shard that two workers are doing: asked once, answered once."""

import threading
from typing import Literal


class AbandonedError(Exception):
    """The attempt is left to another one; nothing was written."""


class Claim:
    """One attempt's right to commit its shard.

    It may be taken, or abandoned before that, never both: so the parts of two attempts cannot mix.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: Literal["open", "taken", "abandoned"] = "open"

    def abandon(self) -> bool:
        """Give the right up; returns False when the commit has begun already."""
        with self._lock:
            if self._state == "open":
                self._state = "abandoned"
            return self._state == "abandoned"

    def check(self) -> None:
        """Find out early that the work is for nothing.

        Raises:
            AbandonedError: it is.
        """
        if self._state == "abandoned":
            raise AbandonedError

    def take(self) -> None:
        """Begin the commit.

        Raises:
            AbandonedError: another attempt commits.
        """
        with self._lock:
            if self._state == "abandoned":
                raise AbandonedError
            self._state = "taken"
