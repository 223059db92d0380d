"""`htc scheduler`: the process that fires schedules."""

import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from zoneinfo import ZoneInfo

from jobs.scheduling.cleanup import tidy_history
from jobs.scheduling.cluster_launcher import ClusterLauncher
from jobs.scheduling.cron import due_times
from jobs.scheduling.engine import Engine
from jobs.scheduling.home import scheduler_lock
from jobs.scheduling.launcher import Launcher
from jobs.scheduling.local_launcher import LocalLauncher
from jobs.scheduling.notifications import deliver_open_notifications
from jobs.scheduling.schedule import Schedule
from jobs.scheduling.store import ScheduleStore
from pipeline import logs
from pipeline.signals import StopRequest
from pipeline.text import count_of

log = logging.getLogger(__name__)

# Delay until a command's change or a run's end takes effect.
POLL_S = 1.0
TIDY_S = 3600.0


def run_scheduler(
    home: Path, *, local_runs: int, is_once: bool = False, is_drained: bool = False, listen: str | None = None
) -> int:
    """Run schedules until SIGTERM or Ctrl-C; returns the exit code.

    Runs in progress continue without the scheduler, and the next scheduler finds them.

    Args:
        local_runs: how many runs this machine does at once.
        is_once: run what is due, wait for its end, and return.
        is_drained: when stopped, begin no more runs and wait for the end of those in progress.
        listen: HOST:PORT to serve the schedules' metrics on; None serves none.

    Raises:
        SchedulerRunningError: another scheduler is running in this folder.
        SpecError: the address cannot be used.
    """
    logs.configure(is_service=True)
    with (
        scheduler_lock(home),
        _serving_metrics(home, listen),
        StopRequest() as stop,
        closing(ScheduleStore(home)) as store,
    ):
        launchers = Launchers(home)
        engine = Engine(store, launchers.launcher_of, lambda: datetime.now(UTC), local_runs=local_runs)
        tidied = float("-inf")
        with _BackgroundDelivery(home) as delivery:
            _announce(store, home)
            while not stop.is_set:
                engine.step()
                if store.open_notifications():
                    delivery.begin()
                if time.monotonic() - tidied > TIDY_S:
                    tidy_history(store, home)
                    tidied = time.monotonic()
                if is_once and not store.open_firings():
                    break
                # Not an event's wait: a signal handler that sets the event could deadlock on the event's own lock.
                time.sleep(POLL_S)
            if stop.is_set and is_drained:
                _drain(engine, store)
        _leave(store, home)
    return 0


@contextmanager
def _serving_metrics(home: Path, listen: str | None) -> Iterator[None]:
    if listen is None:
        yield
        return
    from jobs.monitoring.exporter import serving_metrics
    from jobs.scheduling.metrics import registry_of

    with serving_metrics(registry_of(home), listen) as address:
        log.info("the schedules' metrics are on %s", address)
        yield


class Launchers:
    """The launchers of this machine and of each cluster, by the cluster's address."""

    def __init__(self, home: Path) -> None:
        self._here = LocalLauncher(home)
        self._clusters: dict[str, ClusterLauncher] = {}

    def launcher_of(self, schedule: Schedule) -> Launcher:
        """Return the launcher of a schedule's firings."""
        if schedule.address is None:
            return self._here
        return self._clusters.setdefault(schedule.address, ClusterLauncher(schedule.address))


class _BackgroundDelivery:
    """Delivers open notifications in a thread, so that a slow webhook does not delay firings.

    Leaving the block waits for the delivery in progress.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="notifications")
        self._delivery: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def begin(self) -> None:
        """Begin to deliver, unless a delivery is in progress."""
        if self._delivery is None or self._delivery.done():
            self._delivery = self._pool.submit(deliver_open_notifications, self._home)
            self._delivery.add_done_callback(_log_failure)


def _log_failure(delivery: Future[None]) -> None:
    error = delivery.exception()
    if error is not None:
        log.error("notifications could not be delivered", exc_info=error)


def _announce(store: ScheduleStore, home: Path) -> None:
    schedules = [stored.schedule for stored in store.schedules()]
    log.info("scheduler of %s on %s: %s", home, socket.gethostname(), count_of(len(schedules), "schedule"))
    for schedule in schedules:
        following = next(due_times(schedule.cron, schedule.time_zone, datetime.now(UTC)), None)
        if following is None:
            log.info("%s: never due", schedule.name)
            continue
        local = following.astimezone(ZoneInfo(schedule.time_zone))
        log.info("%s: %s", schedule.name, "paused" if schedule.is_paused else f"next on {local:%a %Y-%m-%d %H:%M %Z}")


def _drain(engine: Engine, store: ScheduleStore) -> None:
    active = _active_names(store)
    if active:
        log.info("waiting for the end of %s; no other run begins", ", ".join(active))
    # A second Ctrl-C raises KeyboardInterrupt.
    while _active_names(store):
        engine.watch()
        time.sleep(POLL_S)


def _active_names(store: ScheduleStore) -> list[str]:
    return [firing.name for firing in store.open_firings() if firing.state in {"running", "stopping"}]


def _leave(store: ScheduleStore, home: Path) -> None:
    # The endings of the last runs, and what the background delivery has not sent.
    deliver_open_notifications(home)
    active = _active_names(store)
    if active:
        log.info("exiting; %s continues, and the next scheduler finds it", ", ".join(active))
