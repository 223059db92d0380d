"""Commit arbitration: at most one of two concurrent attempts commits a shard, and none that lost its driver."""

import threading
from collections.abc import Callable
from typing import Literal

# As long as a driver relies on a lease that it cannot renew (pipeline.runs.lease.STALE_AFTER_S). A driver that waits
# for its store sends no heartbeats meanwhile; that time is added.
ORPHAN_AFTER_S = 120.0
# Whatever the store's patience: one heartbeat before another driver may work on the run (pipeline.runs.lease.WATCH_S).
ORPHANED_BY_S = 185.0


class AbandonedError(Exception):
    """Another attempt commits the shard; nothing was written."""


class OrphanedError(Exception):
    """The driver sent no heartbeat for so long that another worker may be doing the shard."""


class DriverLiveness:
    """The driver's heartbeats; used from all threads of a worker."""

    def __init__(self, patience_s: float, *, clock: Callable[[], float] | None = None) -> None:
        """`patience_s`: how long the driver may wait for its store. `clock`: also counts while the machine sleeps."""
        # Not at the top: the lease needs the libraries of stores, without which the model's part of a worker can run.
        from pipeline.runs.lease import awake_and_asleep_s

        self._limit_s = min(ORPHAN_AFTER_S + patience_s, ORPHANED_BY_S)
        self._clock = clock or awake_and_asleep_s
        self._last_s = self._clock()

    @property
    def has_timed_out(self) -> bool:
        """Whether the last heartbeat is too long ago."""
        return self._clock() - self._last_s > self._limit_s

    def heartbeat(self) -> bool:
        """Record a heartbeat; return whether the driver had timed out before."""
        had_timed_out = self.has_timed_out
        self._last_s = self._clock()
        return had_timed_out


class CommitClaim:
    """One attempt's right to commit its shard.

    It may be taken, or abandoned before that, never both, and it is revoked when the worker was cut off from the
    driver. So the parts of two attempts cannot mix.
    """

    def __init__(self, driver: DriverLiveness | None = None) -> None:
        """`driver`: its heartbeats; None for a worker that cannot be cut off from its driver."""
        self._driver = driver
        self._is_revoked = False
        self._lock = threading.Lock()
        self._state: Literal["open", "taken", "abandoned"] = "open"

    def abandon(self) -> bool:
        """Give up the right; return False when the commit has begun already."""
        with self._lock:
            if self._state == "open":
                self._state = "abandoned"
            return self._state == "abandoned"

    def revoke(self) -> None:
        """Withdraw the right, also from a commit that has begun: another worker has the shard by now."""
        self._is_revoked = True

    def check(self) -> None:
        """Check whether the attempt is still needed.

        Raises:
            AbandonedError: it is not.
        """
        if self._state == "abandoned":
            raise AbandonedError

    def take(self) -> None:
        """Begin the commit.

        Raises:
            AbandonedError: another attempt commits.
            OrphanedError: another attempt may commit.
        """
        self.confirm()
        with self._lock:
            if self._state == "abandoned":
                raise AbandonedError
            self._state = "taken"

    def confirm(self) -> None:
        """Check, before each of the two parts, that the driver still relies on this attempt.

        Raises:
            OrphanedError: it may not.
        """
        if self._is_revoked or (self._driver is not None and self._driver.has_timed_out):
            raise OrphanedError
