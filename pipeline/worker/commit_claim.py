"""Who commits a shard that two workers are doing: asked once, answered once; and nobody whom the driver has lost."""

import threading
from collections.abc import Callable
from typing import Literal

from pipeline.runs.lease import awake_and_asleep_s

# As long as a driver counts on a lease that it cannot renew (pipeline.runs.lease.STALE_AFTER_S). A driver that waits
# for its store is silent meanwhile; that time comes on top.
ORPHAN_AFTER_S = 120.0
# Whatever the store's patience: a heartbeat before another driver may be at the run (pipeline.runs.lease.WATCH_S).
ORPHANED_BY_S = 185.0


class AbandonedError(Exception):
    """The attempt is left to another one; nothing was written."""


class OrphanedError(Exception):
    """The driver was not heard of for so long that the shard may be another worker's by now."""


class DriverLiveness:
    """When the driver was last heard of; used from all threads of a worker."""

    def __init__(self, patience_s: float, *, clock: Callable[[], float] = awake_and_asleep_s) -> None:
        """`patience_s`: how long the driver may wait for its store. `clock`: also counts a suspended machine's time."""
        self._limit_s = min(ORPHAN_AFTER_S + patience_s, ORPHANED_BY_S)
        self._clock = clock
        self._heard_s = clock()

    @property
    def is_lost(self) -> bool:
        """Whether it has been silent for too long."""
        return self._clock() - self._heard_s > self._limit_s

    def hear(self) -> bool:
        """Note that it speaks; returns whether it was lost until now."""
        was_lost = self.is_lost
        self._heard_s = self._clock()
        return was_lost


class CommitClaim:
    """One attempt's right to commit its shard.

    It may be taken, or abandoned before that, never both; and who was cut off from the driver has lost it: so the parts
    of two attempts cannot mix.
    """

    def __init__(self, contact: DriverLiveness | None = None) -> None:
        """`contact`: with the driver; None for a worker that cannot be cut off from it."""
        self._contact = contact
        self._is_lost = False
        self._lock = threading.Lock()
        self._state: Literal["open", "taken", "abandoned"] = "open"

    def abandon(self) -> bool:
        """Give the right up; returns False when the commit has begun already."""
        with self._lock:
            if self._state == "open":
                self._state = "abandoned"
            return self._state == "abandoned"

    def lose(self) -> None:
        """Lose the right whatever has begun: the driver was away, and has given the shard to somebody else."""
        self._is_lost = True

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
            OrphanedError: one may do so.
        """
        self.confirm()
        with self._lock:
            if self._state == "abandoned":
                raise AbandonedError
            self._state = "taken"

    def confirm(self) -> None:
        """Make sure, before each of the two parts, that the driver still counts on this attempt.

        Raises:
            OrphanedError: it may not.
        """
        if self._is_lost or (self._contact is not None and self._contact.is_lost):
            raise OrphanedError
