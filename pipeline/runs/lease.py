"""The lease on a run: at most one driver works on it, also when a second one is started by mistake.

The holder writes its name into the run's folder, and writes it again every HEARTBEAT_EVERY_S. Another driver takes the
lease over at once when the holder is a dead process of the same machine, and otherwise when the file has not changed
for WATCH_S by its own clock. The times in the file are shown to users and decide nothing, as the clocks of two machines
may differ by years. A holder that could not renew its lease for STALE_AFTER_S, by a clock that also counts while the
machine is suspended, commits nothing before it has renewed it.
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

HEARTBEAT_EVERY_S = 15.0
# Eight heartbeats: no driver loses its run because the store fails for a minute.
STALE_AFTER_S = 120.0
# This long after a holder's last heartbeat, neither it nor a worker that it can no longer reach commits anything
# (STALE_AFTER_S, and pipeline.worker.commit_claim.ORPHANED_BY_S), with more than a heartbeat to spare. A run whose
# driver has died is locked for no longer than this after another driver asks for it.
WATCH_S = 200.0
# Short, so that a second driver is refused soon after the holder's next heartbeat.
POLL_EVERY_S = 5.0
# Longer than the pause between two heartbeats. Used where the result is only displayed, and nothing is taken over.
SHORT_WATCH_S = 20.0
# A lease that no driver asks for is watched for removal only when its heartbeat is this far away, in either direction.
FORGOTTEN_AFTER_S = 3600.0
ATTEMPTS = 4
# When the answer to a write was lost, the next write finds out whether it succeeded.
CHECK_ATTEMPTS = 2


def awake_and_asleep_s() -> float:
    """Return the seconds of a clock that also counts while the machine is suspended."""
    # Without CLOCK_BOOTTIME, CLOCK_MONOTONIC does so itself (macOS), or there is no such clock.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class RunHeldError(RunError):
    """Another driver works on the run."""


@dataclass(frozen=True)
class LeaseHolder:
    """The driver or command that holds a lease; the content of lease.json.

    token: names one session. host, pid: where it runs. process: see `process_id.identify_process`.
    since, beat: UTC by its own clock, ISO 8601; when it took the lease, and its last heartbeat.
    beats: counts its heartbeats, so that the file changes even if its clock stands still.
    """

    token: str
    host: str
    pid: int
    process: str
    since: str
    beat: str
    beats: int = 0

    @classmethod
    def parse(cls, payload: bytes) -> "LeaseHolder | None":
        """Parse the content of a lease.json; None when it is not a lease that this version understands."""
        try:
            holder = cls(**json.loads(payload))
            for moment in (holder.since, holder.beat):
                datetime.fromisoformat(moment).astimezone(UTC)
        # The first and last days of the calendar overflow in some time zones.
        except (ValueError, TypeError, OverflowError):
            return None
        return holder if isinstance(holder.beats, int) and isinstance(holder.process, str) else None

    @property
    def description(self) -> str:
        """Where it runs, for messages."""
        return f"host {self.host}, process {self.pid}"

    @property
    def since_utc(self) -> datetime:
        """When it took the lease, by its own clock."""
        return datetime.fromisoformat(self.since).astimezone(UTC)

    @property
    def last_heartbeat(self) -> datetime:
        """When it last renewed the lease, UTC by its own clock."""
        return datetime.fromisoformat(self.beat).astimezone(UTC)

    @property
    def is_dead_here(self) -> bool:
        """Whether it was a process of this machine that has ended; False also when that cannot be known from here."""
        return is_dead_here(self.host, self.process)

    @property
    def is_running_here(self) -> bool:
        """Whether it is a running process of this machine; False also when that cannot be known from here."""
        return is_alive_here(self.host, self.process)

    def heartbeat_age_s(self, now: datetime) -> float:
        """Return how long ago the last heartbeat was, if both clocks are right; negative when it is in the future."""
        return (now - self.last_heartbeat).total_seconds()

    def is_alive(self, now: datetime) -> bool:
        """Return whether it is alive as far as the two clocks show; False when only watching its lease would show it.

        Args:
            now: UTC.
        """
        return not self.is_dead_here and abs(self.heartbeat_age_s(now)) <= STALE_AFTER_S

    def encode(self) -> bytes:
        """Return the content of lease.json."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode("ascii")


class Lease:
    """A lease that this process holds, renewed by a thread until it is released."""

    def __init__(
        self,
        file: CasFile,
        holder: LeaseHolder,
        clock: Callable[[], datetime],
        *,
        seconds: Callable[[], float] = awake_and_asleep_s,
        renewed_s: float | None = None,
        heartbeat_every_s: float = HEARTBEAT_EVERY_S,
    ) -> None:
        """`renewed_s`: when, by `seconds`, the write of the holder's name was begun; now when None."""
        self._file = file
        self._holder = holder
        self._clock = clock
        self._seconds = seconds
        self._lock = threading.Lock()
        self._renewed_s = seconds() if renewed_s is None else renewed_s
        self._heartbeat_every_s = heartbeat_every_s
        self._loss: str | None = None
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)

    def start(self) -> None:
        """Renew it regularly from now on."""
        self._thread.start()

    def check(self) -> None:
        """Make sure that it is still held; called before anything is committed.

        Raises:
            RunError: another driver has taken it over, or it could not be renewed for too long.
        """
        for _ in range(CHECK_ATTEMPTS):
            if self._loss is not None or self._unrenewed_s() <= STALE_AFTER_S:
                break
            # The machine may have been suspended: the store shows whether another driver took over meanwhile.
            self.renew()
        if self._loss is None and self._unrenewed_s() > STALE_AFTER_S:
            self._loss = self._describe_expiry()
        if self._loss is not None:
            raise RunError(f"{self._loss} This driver stops; what is committed stays.")

    def _unrenewed_s(self) -> float:
        return self._seconds() - self._renewed_s

    def _describe_expiry(self) -> str:
        return f"The lease {self._file.uri} could not be renewed for {format_duration(self._unrenewed_s())}."

    def renew(self) -> None:
        """Write a heartbeat, and find out whether the lease was lost."""
        with self._lock:
            if self._loss is not None or self._is_ended.is_set():
                return
            holder = replace(self._holder, beat=self._clock().isoformat(), beats=self._holder.beats + 1)
            # Taken before the write: another driver may see the change from the beginning of the write on.
            began_s = self._seconds()
            try:
                seen = self._file.read()
                other = _parse(seen)
                if seen is None:
                    self._loss = f"The lease {self._file.uri} was removed."
                    return
                if other is None or other.token != self._holder.token:
                    self._loss = f"{_describe(other)} has taken the run over ({self._file.uri})."
                    return
                version = self._file.replace(holder.encode(), seen.version)
            except StorageError as error:
                log.warning("the lease could not be renewed: %s", error)
                if self._unrenewed_s() > STALE_AFTER_S:
                    self._loss = self._describe_expiry()
                return
            # Kept even if it was not written, so that no two writes are equal.
            self._holder = holder
            if version is not None:
                self._renewed_s = began_s
            # Otherwise another driver wrote between this read and this write, or the answer to the write was lost:
            # the next heartbeat finds out which.

    def release(self) -> None:
        """Stop renewing the lease and remove it; a lease that cannot be removed expires by itself."""
        self._is_ended.set()
        with self._lock:
            if self._loss is not None:
                return
            try:
                holder = _parse(self._file.read())
                if holder is not None and holder.token == self._holder.token:
                    self._file.delete()
            except StorageError as error:
                log.warning("the lease could not be removed: %s", error)

    def _keep_renewing(self) -> None:
        while not self._is_ended.wait(self._heartbeat_every_s):
            self.renew()


def take_lease(
    storage: Storage,
    output_uri: str,
    run: str,
    *,
    report: Callable[[str], None] = log.info,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    seconds: Callable[[], float] = awake_and_asleep_s,
    watch_s: float | None = None,
    heartbeat_every_s: float = HEARTBEAT_EVERY_S,
) -> Lease:
    """Take the lease on a run and renew it until it is released.

    Takes up to `watch_s` when the holder is a driver of another machine that may be dead; about one heartbeat when that
    is alive.

    Args:
        report: gets a sentence when taking the lease takes a while.
        clock: for the times that are displayed.
        seconds: for the expiry of the lease taken; counts while the machine is suspended.
        watch_s: how long a lease must not change before it is taken over; WATCH_S when None.

    Raises:
        RunHeldError: another driver holds it.
        StorageError: storage failed.
    """
    file = _lease_file(storage, output_uri, run)
    mine = _new_holder(clock())
    watch_s = WATCH_S if watch_s is None else watch_s
    for _ in range(ATTEMPTS):
        seen = file.read()
        if seen is not None:
            _check_may_take_over(file, seen, run, clock(), report, sleep, watch_s)
        began_s = seconds()
        version = file.create(mine.encode()) if seen is None else file.replace(mine.encode(), seen.version)
        if version is None:
            # Another driver was quicker, or the answer to this driver's own write was lost.
            now = file.read()
            holder = _parse(now)
            version = now.version if now and holder and holder.token == mine.token else None
        if version is not None:
            lease = Lease(file, mine, clock, seconds=seconds, renewed_s=began_s, heartbeat_every_s=heartbeat_every_s)
            lease.start()
            return lease
    raise RunHeldError(f"Several drivers try to take the run {run} at once; start one of them again.")


def clear_dead_lease(
    storage: Storage,
    output_uri: str,
    run: str,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
    report: Callable[[str], None] = log.info,
) -> bool:
    """Remove the lease of a driver that died before its run was begun or after the run had all rows.

    A lease of another machine is watched for WATCH_S first, unless it is recent: that one is left for a later call.

    Returns:
        Whether the run has no lease now; False when its holder may be alive.

    Raises:
        StorageError: storage failed.
    """
    file = _lease_file(storage, output_uri, run)
    seen = file.read()
    if seen is None:
        return True
    holder = _parse(seen)
    if holder is None:
        return False
    if not holder.is_dead_here:
        if abs(holder.heartbeat_age_s(clock())) <= FORGOTTEN_AFTER_S:
            return False
        report(
            f"Watching the lease {file.uri} of {_describe(holder)} for {format_duration(WATCH_S)} before it is removed."
        )
        if _watch(file, seen, WATCH_S, sleep) is not seen:
            return False
    # Taken over before it is removed: another process that has read it too then finds it changed, and a lease that was
    # taken meanwhile is not removed.
    mine = _new_holder(clock())
    if file.replace(mine.encode(), seen.version) is None:
        # Unless the write succeeded and only its answer was lost: the repeated write then found the file changed.
        found = _parse(file.read())
        if found is None or found.token != mine.token:
            return False
    file.delete()
    return True


@dataclass(frozen=True)
class FoundLease:
    """A lease that was found: its holder, None when it cannot be read, and whether the holder is taken for alive."""

    holder: LeaseHolder | None
    is_alive: bool


def judge_holders(
    storage: Storage,
    output_uri: str,
    runs: Iterable[str],
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
    report: Callable[[str], None] = log.info,
) -> dict[str, FoundLease]:
    """Find out who holds the leases of runs, and whether they are alive, for display; no lease is taken over.

    | the lease                                    | its holder is                                          |
    |----------------------------------------------|--------------------------------------------------------|
    | cannot be read                               | alive: no driver can take it over, see `take_lease`    |
    | of an ended process of this machine          | dead                                                   |
    | with a recent heartbeat, if the clocks agree | alive                                                  |
    | any other                                    | alive if the lease changes within SHORT_WATCH_S        |

    Returns:
        by run; runs without a lease are left out. All leases in doubt are watched together.

    Raises:
        StorageError: storage failed.
    """
    leases: dict[str, FoundLease] = {}
    doubtful: dict[str, tuple[CasFile, Versioned]] = {}
    for run in runs:
        file = _lease_file(storage, output_uri, run)
        try:
            seen = file.read()
        except DamagedFileError:
            # There is a folder in its place.
            leases[run] = FoundLease(None, is_alive=True)
            continue
        if seen is None:
            continue
        holder = _parse(seen)
        leases[run] = FoundLease(holder, is_alive=holder is None or holder.is_alive(clock()))
        if holder is not None and not leases[run].is_alive and not holder.is_dead_here:
            doubtful[run] = file, seen
    if doubtful:
        report(
            f"Watching for {SHORT_WATCH_S:.0f} s whether the leases of {', '.join(doubtful)} change, as their times "
            "are far from this machine's clock."
        )
        sleep(SHORT_WATCH_S)
    for run, (file, seen) in doubtful.items():
        now = file.read()
        if now is None:
            del leases[run]
        elif now.version != seen.version:
            leases[run] = FoundLease(_parse(now), is_alive=True)
    return leases


def _check_may_take_over(  # noqa: PLR0917 - what was read, then how to watch it
    file: CasFile,
    seen: Versioned,
    run: str,
    now: datetime,
    report: Callable[[str], None],
    sleep: Callable[[float], None],
    watch_s: float,
) -> None:
    """Return when a lease may be taken over, after watching it if need be.

    Raises:
        RunHeldError: its holder is alive, or it cannot be read.
    """
    holder = _parse(seen)
    if holder is None:
        raise RunHeldError(
            f"{file.uri} cannot be read as a lease, so that another driver may work on the run {run} "
            f"(`htc doctor {shlex.quote(output_of(file.uri))} --repair` removes it unless a driver renews it)."
        )
    # Looked up before `is_dead_here`: of a process that ends in between, the second answer is right.
    is_running_here = holder.is_running_here
    if holder.is_dead_here:
        report(f"{_describe(holder)} is dead; this one takes over the run {run}.")
        return
    age_s = holder.heartbeat_age_s(now)
    # Processes of one machine share a clock, and a second driver is mostly started there.
    if not (is_running_here and 0 <= age_s <= STALE_AFTER_S):
        report(
            f"{_describe(holder)} holds the run {run}; watching whether its lease changes before this one takes over, "
            f"for {format_duration(watch_s)} at most."
        )
        latest = _watch(file, seen, watch_s, sleep)
        if latest is seen or latest is None:
            return
        holder = _parse(latest) or holder
        age_s = 0.0
    raise RunHeldError(
        f"{_describe(holder)} has been working on the run {run} since {holder.since[:19]} UTC, last heartbeat "
        f"{format_duration(age_s)} ago; wait for it, stop it, or start another run with --fresh or --run NAME (the "
        f"lease of a dead driver is taken over {format_duration(watch_s)} after another one asks for it)."
    )


def _watch(file: CasFile, seen: Versioned, for_s: float, sleep: Callable[[float], None]) -> Versioned | None:
    """Wait until a lease changes, for at most `for_s`; return the latest version: `seen` itself when it is unchanged.

    The time is counted in sleeps, which last at least as long as asked for by the system's monotonic clock.
    """
    watched_s = 0.0
    while watched_s < for_s:
        sleep(POLL_EVERY_S)
        watched_s += POLL_EVERY_S
        now = file.read()
        if now is None or now.version != seen.version:
            return now
    return seen


def lease_uri(output_uri: str, run: str) -> str:
    """Return the uri of a run's lease."""
    return join(run_folder(output_uri, run), "lease.json")


def _lease_file(storage: Storage, output_uri: str, run: str) -> CasFile:
    return CasFile(storage, lease_uri(output_uri, run))


def _new_holder(moment: datetime) -> LeaseHolder:
    now = moment.isoformat()
    return LeaseHolder(secrets.token_hex(8), socket.gethostname(), os.getpid(), identify_process(), now, now)


def _parse(seen: Versioned | None) -> LeaseHolder | None:
    return None if seen is None else LeaseHolder.parse(seen.payload)


def _describe(holder: LeaseHolder | None) -> str:
    return "Another driver" if holder is None else f"Another driver ({holder.description})"
