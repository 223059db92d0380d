"""The lease on a run: one driver at a time, also when somebody starts a second one by mistake.

The holder's name lies in the run's folder and is written anew every BEAT_EVERY_S. A lease whose holder is a dead
process of this very machine is taken over at once; any other one when its heartbeat has stood still for
STALE_AFTER_S and is still standing still after another WATCH_S, so that a clock that is wrong takes nothing away.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from pipeline.errors import RunError, StorageError
from pipeline.lease_store import ContestedFile, Seen
from pipeline.process_identity import identify_process, is_dead_here
from pipeline.progress import format_duration
from pipeline.records import run_folder
from pipeline.storage import Storage, join

log = logging.getLogger(__name__)

BEAT_EVERY_S = 15.0
# Eight heartbeats: a store that is away for a minute costs nobody his run.
STALE_AFTER_S = 120.0
# Longer than the pause between two heartbeats.
WATCH_S = 20.0
# A lease that nobody competes for is removed without watching it: an hour is more than any two clocks are apart.
FORGOTTEN_AFTER_S = 3600.0
TRIES = 4


class RunHeldError(RunError):
    """Another driver works on the run."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    token: of one driver's session. host, pid: where it runs. process: see `process_identity`.
    since, beat: UTC, ISO 8601; when it took the lease, and when it last said that it lives.
    """

    token: str
    host: str
    pid: int
    process: str
    since: str
    beat: str

    def encode(self) -> bytes:
        """Return the file's content."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode("ascii")


class Lease:
    """A lease that this driver holds, renewed by a thread until it is released."""

    def __init__(self, file: ContestedFile, holder: Holder, clock: Callable[[], datetime]) -> None:
        self._file = file
        self._holder = holder
        self._clock = clock
        self._lock = threading.Lock()
        self._renewed_s = time.monotonic()
        self._loss: str | None = None
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)

    def start(self) -> None:
        """Renew it from now on."""
        self._thread.start()

    def check(self) -> None:
        """Make sure that it is still held.

        Raises:
            RunError: another driver has taken it over, or it could not be renewed for too long.
        """
        if self._loss is None and time.monotonic() - self._renewed_s > STALE_AFTER_S:
            # The whole process may have been asleep: the store knows whether that mattered.
            self.renew()
        if self._loss is not None:
            raise RunError(f"{self._loss} This driver stops; what is committed stays.")

    def renew(self) -> None:
        """Write a heartbeat, and notice a loss."""
        with self._lock:
            if self._loss is not None or self._is_ended.is_set():
                return
            holder = replace(self._holder, beat=self._clock().isoformat())
            try:
                seen = self._file.read()
                other = _holder_of(seen)
                if seen is None:
                    self._loss = f"The lease {self._file.uri} was removed."
                    return
                if other is None or other.token != self._holder.token:
                    self._loss = f"{_named(other)} has taken the run over ({self._file.uri})."
                    return
                version = self._file.replace(holder.encode(), seen.version)
            except StorageError as error:
                log.warning("the lease could not be renewed: %s", error)
                silence_s = time.monotonic() - self._renewed_s
                if silence_s > STALE_AFTER_S:
                    self._loss = f"The lease {self._file.uri} could not be renewed for {format_duration(silence_s)}."
                return
            if version is not None:
                self._holder, self._renewed_s = holder, time.monotonic()
            # Otherwise somebody wrote between our look and our write, or the answer to our own write was lost: the
            # next heartbeat tells which.

    def release(self) -> None:
        """Stop renewing and give it back; a lease that cannot be removed grows stale by itself."""
        self._is_ended.set()
        with self._lock:
            if self._loss is not None:
                return
            try:
                holder = _holder_of(self._file.read())
                if holder is not None and holder.token == self._holder.token:
                    self._file.delete()
            except StorageError as error:
                log.warning("the lease could not be removed: %s", error)

    def _keep_renewing(self) -> None:
        while not self._is_ended.wait(BEAT_EVERY_S):
            self.renew()


def take_lease(
    storage: Storage,
    output_uri: str,
    run: str,
    *,
    tell: Callable[[str], None] = log.info,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Lease:
    """Take the lease on a run and renew it until it is released.

    Args:
        tell: is told why taking it takes a while.

    Raises:
        RunHeldError: another driver has it.
        StorageError: storage failed.
    """
    file = ContestedFile(storage, join(run_folder(output_uri, run), "lease.json"))
    mine = _mine(clock())
    for _ in range(TRIES):
        seen = file.read()
        if seen is None:
            version = file.create(mine.encode())
        else:
            _refuse_held(file, seen, run, clock, tell, sleep)
            version = file.replace(mine.encode(), seen.version)
        if version is None:
            # Somebody was quicker, or the answer to our own write was lost on the way.
            now = file.read()
            holder = _holder_of(now)
            version = now.version if now and holder and holder.token == mine.token else None
        if version is not None:
            lease = Lease(file, mine, clock)
            lease.start()
            return lease
    raise RunHeldError(f"Several drivers want the run {run} at once; start one of them again.")


def clear_dead_lease(
    storage: Storage,
    output_uri: str,
    run: str,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> bool:
    """Remove the lease of a driver that died before its run was begun or after it was complete.

    Returns:
        Whether the run has no lease now; False when its holder may be alive.

    Raises:
        StorageError: storage failed.
    """
    file = ContestedFile(storage, join(run_folder(output_uri, run), "lease.json"))
    seen = file.read()
    if seen is None:
        return True
    holder = _holder_of(seen)
    if holder is None:
        return False
    silence_s = (clock() - datetime.fromisoformat(holder.beat)).total_seconds()
    if not is_dead_here(holder.host, holder.process) and silence_s <= FORGOTTEN_AFTER_S:
        return False
    # Taken over first: whoever else has seen it too finds it changed, and nobody's new lease is removed.
    if file.replace(_mine(clock()).encode(), seen.version) is None:
        return False
    file.delete()
    return True


def _mine(moment: datetime) -> Holder:
    now = moment.isoformat()
    return Holder(secrets.token_hex(8), socket.gethostname(), os.getpid(), identify_process(), now, now)


def _refuse_held(  # noqa: PLR0917 - what was seen, then how to look at it
    file: ContestedFile,
    seen: Seen,
    run: str,
    clock: Callable[[], datetime],
    tell: Callable[[str], None],
    sleep: Callable[[float], None],
) -> None:
    """Return when a lease may be taken over."""
    holder = _holder_of(seen)
    if holder is None:
        raise RunHeldError(
            f"{file.uri} cannot be read as a lease; if no other driver works on the run {run}, remove that file, or "
            f"let `htc doctor OUTPUT --repair` do it."
        )
    if is_dead_here(holder.host, holder.process):
        tell(f"{_named(holder)} is dead and leaves the run {run} to this one.")
        return
    silence_s = (clock() - datetime.fromisoformat(holder.beat)).total_seconds()
    if silence_s > STALE_AFTER_S:
        tell(
            f"{_named(holder)} has not been heard of for {format_duration(silence_s)}; watching its lease for "
            f"{WATCH_S:.0f} s before this one takes over the run {run}."
        )
        sleep(WATCH_S)
        now = file.read()
        if now is not None and now.version == seen.version:
            return
        silence_s = 0.0
    heard = format_duration(max(0.0, silence_s))
    raise RunHeldError(
        f"{_named(holder)} works on the run {run} since {holder.since[:19]} UTC and was heard of {heard} ago; wait for "
        f"it, stop it, or start another run with --fresh or --run NAME (a driver that is dead loses the run "
        f"{format_duration(STALE_AFTER_S)} after it was last heard of)."
    )


def _holder_of(seen: Seen | None) -> Holder | None:
    """Read a lease; None when there is none, or it is not ours to understand."""
    if seen is None:
        return None
    try:
        holder = Holder(**json.loads(seen.payload))
        datetime.fromisoformat(holder.beat).astimezone(UTC)
    except (ValueError, TypeError):
        return None
    return holder


def _named(holder: Holder | None) -> str:
    return "Another driver" if holder is None else f"Another driver (host {holder.host}, process {holder.pid})"
