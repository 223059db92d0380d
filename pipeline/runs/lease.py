"""The lease on a run: one driver at a time, also when a second one is started by mistake.

The holder's name lies in the run's folder and is written anew every BEAT_EVERY_S. A lease whose holder is a dead
process of this very machine is taken over at once; any other one when the file has not changed for WATCH_S, measured
by the clock of the driver that watches it. What the file says of the time is shown to people and decides nothing, since
two machines' clocks may be years apart. A holder that could not renew its lease for STALE_AFTER_S, by a clock that
goes on while the machine is suspended, commits nothing before it has renewed it.
"""

import json
import logging
import os
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from pipeline.errors import DamagedFileError, RunError, StorageError
from pipeline.output.layout import run_folder
from pipeline.runs.process_id import identify_process, is_alive_here, is_dead_here
from pipeline.storage.cas_file import CasFile, Versioned
from pipeline.storage.damage import output_of
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from pipeline.text import format_duration

log = logging.getLogger(__name__)

BEAT_EVERY_S = 15.0
# Eight heartbeats: a store that is away for a minute costs no driver its run.
STALE_AFTER_S = 120.0
# So long after a holder's last heartbeat, neither it nor a worker that it can no longer reach commits anything
# (STALE_AFTER_S, and pipeline.worker.commit_claim.ORPHANED_BY_S), with a heartbeat and some to spare. A run
# whose driver has died is locked for no longer than this after another driver asks for it.
WATCH_S = 200.0
# A change is seen soon after it was made, so that a driver too many is refused within a heartbeat.
LOOK_EVERY_S = 5.0
# Whether a holder lives is shown to people after watching it for longer than the pause between two heartbeats.
GLANCE_S = 20.0
# A lease without a competitor is worth watching for removal only when its clock is so far off, in either direction.
FORGOTTEN_AFTER_S = 3600.0
TRIES = 4
# A write whose answer was lost is found out by the next one.
CHECK_TRIES = 2


def awake_and_asleep_s() -> float:
    """Return seconds from a clock that also counts the time for which the machine was suspended."""
    # Elsewhere than on Linux, CLOCK_MONOTONIC does so itself (macOS), or there is nothing better.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class RunHeldError(RunError):
    """Another driver works on the run."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    token: of one driver's session. host, pid: where it runs. process: see `process_identity`.
    since, beat: UTC by its own clock, ISO 8601; when it took the lease, and its last heartbeat.
    beats: counts its heartbeats, so that the file changes also where a clock stands still.
    """

    token: str
    host: str
    pid: int
    process: str
    since: str
    beat: str
    beats: int = 0

    def encode(self) -> bytes:
        """Return the file's content."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode("ascii")


class Lease:
    """A lease that this driver holds, renewed by a thread until it is released."""

    def __init__(
        self,
        file: CasFile,
        holder: Holder,
        clock: Callable[[], datetime],
        *,
        seconds: Callable[[], float] = awake_and_asleep_s,
        renewed_s: float | None = None,
    ) -> None:
        """`renewed_s`: when, by `seconds`, the write of the holder's name was begun; now when None."""
        self._file = file
        self._holder = holder
        self._clock = clock
        self._seconds = seconds
        self._lock = threading.Lock()
        self._renewed_s = seconds() if renewed_s is None else renewed_s
        self._loss: str | None = None
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)

    def start(self) -> None:
        """Renew it from now on."""
        self._thread.start()

    def check(self) -> None:
        """Make sure that it is still held; asked before anything is committed.

        Raises:
            RunError: another driver has taken it over, or it could not be renewed for too long.
        """
        for _ in range(CHECK_TRIES):
            if self._loss is not None or self._silence_s() <= STALE_AFTER_S:
                break
            # The machine may have been suspended: the store knows whether that mattered.
            self.renew()
        if self._loss is None and self._silence_s() > STALE_AFTER_S:
            self._loss = self._describe_silence()
        if self._loss is not None:
            raise RunError(f"{self._loss} This driver stops; what is committed stays.")

    def _silence_s(self) -> float:
        return self._seconds() - self._renewed_s

    def _describe_silence(self) -> str:
        return f"The lease {self._file.uri} could not be renewed for {format_duration(self._silence_s())}."

    def renew(self) -> None:
        """Write a heartbeat, and notice a loss."""
        with self._lock:
            if self._loss is not None or self._is_ended.is_set():
                return
            holder = replace(self._holder, beat=self._clock().isoformat(), beats=self._holder.beats + 1)
            # Before the write: another driver may see the change from its beginning on.
            began_s = self._seconds()
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
                if self._silence_s() > STALE_AFTER_S:
                    self._loss = self._describe_silence()
                return
            # Kept also when it was not written, so that no two writes are alike.
            self._holder = holder
            if version is not None:
                self._renewed_s = began_s
            # Otherwise another driver wrote between our read and our write, or the answer to our own write was lost:
            # the next heartbeat finds out which.

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
    seconds: Callable[[], float] = awake_and_asleep_s,
) -> Lease:
    """Take the lease on a run and renew it until it is released.

    Takes WATCH_S when the run is held by a driver of another machine that may be dead, and a heartbeat to find that it
    is not.

    Args:
        tell: gets a sentence when taking it takes a while.
        clock: for what people read.
        seconds: for the holder's own heartbeats; goes on while the machine is suspended.

    Raises:
        RunHeldError: another driver has it.
        StorageError: storage failed.
    """
    file = CasFile(storage, join(run_folder(output_uri, run), "lease.json"))
    mine = _mine(clock())
    for _ in range(TRIES):
        seen = file.read()
        if seen is not None:
            _refuse_held(file, seen, run, clock, tell, sleep)
        began_s = seconds()
        version = file.create(mine.encode()) if seen is None else file.replace(mine.encode(), seen.version)
        if version is None:
            # Another driver was quicker, or the answer to our own write was lost on the way.
            now = file.read()
            holder = _holder_of(now)
            version = now.version if now and holder and holder.token == mine.token else None
        if version is not None:
            lease = Lease(file, mine, clock, seconds=seconds, renewed_s=began_s)
            lease.start()
            return lease
    raise RunHeldError(f"Several drivers want the run {run} at once; start one of them again.")


def clear_dead_lease(
    storage: Storage,
    output_uri: str,
    run: str,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = log.info,
) -> bool:
    """Remove the lease of a driver that died before its run was begun or after it was complete.

    One of another machine is watched for WATCH_S first; not one that is as young as a driver at work, which is left to
    a later call.

    Returns:
        Whether the run has no lease now; False when its holder may be alive.

    Raises:
        StorageError: storage failed.
    """
    file = CasFile(storage, join(run_folder(output_uri, run), "lease.json"))
    seen = file.read()
    if seen is None:
        return True
    holder = _holder_of(seen)
    if holder is None:
        return False
    if not is_dead_here(holder.host, holder.process):
        if abs(_silence_s(holder, clock())) <= FORGOTTEN_AFTER_S:
            return False
        tell(f"Watching the lease {file.uri} of {_named(holder)} for {format_duration(WATCH_S)} before it is removed.")
        if _watch(file, seen, WATCH_S, sleep) is not seen:
            return False
    # Taken over first: whoever else has seen it too finds it changed, and nobody's new lease is removed.
    mine = _mine(clock())
    if file.replace(mine.encode(), seen.version) is None:
        # Unless the store took it, and only its answer was lost: the second try then found the first one's lease.
        found = _holder_of(file.read())
        if found is None or found.token != mine.token:
            return False
    file.delete()
    return True


def _mine(moment: datetime) -> Holder:
    now = moment.isoformat()
    return Holder(secrets.token_hex(8), socket.gethostname(), os.getpid(), identify_process(), now, now)


@dataclass(frozen=True)
class Holding:
    """A lease as it was found: its holder, None when it is not readable, and whether that is at work."""

    holder: Holder | None
    is_alive: bool


def judge_holders(
    storage: Storage,
    output_uri: str,
    runs: Iterable[str],
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = log.info,
) -> dict[str, Holding]:
    """Find out who holds the leases of runs, and whether they are at work; for people, nothing is taken over.

    Where the clocks agree that the last heartbeat is young, the holder is at work. Any other one, unless it is known to
    be dead, is watched for GLANCE_S, all of them together: whose lease changes is at work.

    Returns:
        by run; runs without a lease are left out.

    Raises:
        StorageError: storage failed.
    """
    holdings: dict[str, Holding] = {}
    doubtful: dict[str, tuple[CasFile, Versioned]] = {}
    for run in runs:
        file = CasFile(storage, join(run_folder(output_uri, run), "lease.json"))
        try:
            seen = file.read()
        except DamagedFileError:
            # A folder is in its place.
            holdings[run] = Holding(None, is_alive=True)
            continue
        if seen is None:
            continue
        holder = _holder_of(seen)
        # What nobody can read, nobody can take over: see `_refuse_held`.
        is_alive = holder is None
        if holder is not None and not is_dead_here(holder.host, holder.process):
            is_alive = abs(_silence_s(holder, clock())) <= STALE_AFTER_S
            if not is_alive:
                doubtful[run] = file, seen
        holdings[run] = Holding(holder, is_alive)
    if doubtful:
        tell(
            f"Watching for {GLANCE_S:.0f} s whether the leases of {', '.join(doubtful)} change, as their times are far "
            "from this machine's clock."
        )
        sleep(GLANCE_S)
    for run, (file, seen) in doubtful.items():
        now = file.read()
        if now is None:
            del holdings[run]
        elif now.version != seen.version:
            holdings[run] = Holding(_holder_of(now), is_alive=True)
    return holdings


def _refuse_held(  # noqa: PLR0917 - what was seen, then how to look at it
    file: CasFile,
    seen: Versioned,
    run: str,
    clock: Callable[[], datetime],
    tell: Callable[[str], None],
    sleep: Callable[[float], None],
) -> None:
    """Return when a lease may be taken over."""
    holder = _holder_of(seen)
    if holder is None:
        raise RunHeldError(
            f"{file.uri} cannot be read as a lease, so that another driver may work on the run {run} "
            f"(`htc doctor {shlex.quote(output_of(file.uri))} --repair` removes it unless a driver renews it)."
        )
    if is_dead_here(holder.host, holder.process):
        tell(f"{_named(holder)} is dead and leaves the run {run} to this one.")
        return
    # On one machine there is one clock, and a driver too many is mostly started there.
    if not (is_alive_here(holder.host, holder.process) and 0 <= _silence_s(holder, clock()) <= STALE_AFTER_S):
        tell(
            f"{_named(holder)} holds the run {run}; watching whether its lease changes before this one takes over, for "
            f"{format_duration(WATCH_S)} at most."
        )
        now = _watch(file, seen, WATCH_S, sleep)
        if now is seen or now is None:
            return
        holder = _holder_of(now) or holder
        heard = format_duration(0.0)
    else:
        heard = format_duration(_silence_s(holder, clock()))
    raise RunHeldError(
        f"{_named(holder)} works on the run {run} since {holder.since[:19]} UTC and was heard of {heard} ago; wait for "
        f"it, stop it, or start another run with --fresh or --run NAME (a driver that is dead loses the run "
        f"{format_duration(WATCH_S)} after another one asks for it)."
    )


def _watch(file: CasFile, seen: Versioned, for_s: float, sleep: Callable[[float], None]) -> Versioned | None:
    """Wait until a lease changes, for so long at most; return it as it is then: `seen` itself when it has not changed.

    The time is counted in sleeps, which last at least as long as they are asked to by the system's monotonic clock.
    """
    watched_s = 0.0
    while watched_s < for_s:
        sleep(LOOK_EVERY_S)
        watched_s += LOOK_EVERY_S
        now = file.read()
        if now is None or now.version != seen.version:
            return now
    return seen


def _silence_s(holder: Holder, now: datetime) -> float:
    """How long ago the last heartbeat was if both clocks were right; negative when it is in the future."""
    return (now - datetime.fromisoformat(holder.beat).astimezone(UTC)).total_seconds()


def _holder_of(seen: Versioned | None) -> Holder | None:
    """Read a lease; None when there is none, or it is not ours to understand."""
    if seen is None:
        return None
    try:
        holder = Holder(**json.loads(seen.payload))
        for moment in (holder.since, holder.beat):
            datetime.fromisoformat(moment).astimezone(UTC)
    # The first and last days of the calendar overflow in some time zones.
    except (ValueError, TypeError, OverflowError):
        return None
    return holder if isinstance(holder.beats, int) and isinstance(holder.process, str) else None


def _named(holder: Holder | None) -> str:
    return "Another driver" if holder is None else f"Another driver (host {holder.host}, process {holder.pid})"
