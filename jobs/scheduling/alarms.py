"""The only door to APScheduler: it wakes the scheduler when a schedule is due.

Its SQLite job store holds the time at which each schedule is due next. What is due is then decided from our own
tables: APScheduler forgets a time when it hands it to a thread, so that a crash in that instant would lose a night.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from sqlalchemy import URL, create_engine
from sqlalchemy.exc import SQLAlchemyError

from jobs.scheduling.cron import due_times
from pipeline.errors import SpecError
from pipeline.text import message_of

log = logging.getLogger(__name__)
_woken = threading.Event()


def ring() -> None:
    """Wake the scheduler of this process; APScheduler calls it by name."""
    _woken.set()


class Times(NamedTuple):
    """When a schedule is due: a checked cron expression and the zone whose clock it means."""

    cron: str
    time_zone: str


class CronTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """APScheduler's question for the next time, answered by our reading of cron.

    Its own trigger counts weekdays from Monday on, wants both days to match where cron is content with one, and fires
    twice in autumn.
    """

    def __init__(self, times: Times) -> None:
        self.times = times

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """Return the next time after now: one alarm is enough for all that were missed."""
        return next(due_times(self.times.cron, self.times.time_zone, now))


class Alarms:
    """Wakes this process when schedules are due. Use `start` and `stop`; one per process."""

    def __init__(self, database: Path) -> None:
        # `URL.create`, because a folder's name may hold any character.
        engine = create_engine(URL.create("sqlite", database=str(database)), connect_args={"timeout": 30})
        self._scheduler = BackgroundScheduler(
            jobstores={"default": SQLAlchemyJobStore(engine=engine)},
            job_defaults={"misfire_grace_time": None, "coalesce": True},
            timezone=UTC,
        )
        self._database = database
        self._set: dict[str, Times] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="notices")
        self._work: Future[None] | None = None
        # One line for each alarm that is set would drown ours.
        logging.getLogger("apscheduler").setLevel(logging.WARNING)

    def start(self) -> None:
        """Begin; alarms that a scheduler before us has set ring as well.

        Raises:
            SpecError: their table is damaged.
        """
        with self._named_damage():
            self._scheduler.start()

    def stop(self) -> None:
        """End, after what runs in the background."""
        if self._scheduler.running:
            self._scheduler.shutdown()
        self._pool.shutdown()

    def set(self, schedules: Mapping[str, Times]) -> None:
        """Set the alarm of each schedule, and take away those of schedules that are no more."""
        if schedules == self._set:
            return
        with self._named_damage():
            self._set_all(schedules)

    @contextmanager
    def _named_damage(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = message_of(error, max_chars=200)
            raise SpecError(
                f"The alarms in {self._database} cannot be read or written: {reason}; put a copy in its place, or move "
                "it away to begin without schedules."
            ) from None

    def _set_all(self, schedules: Mapping[str, Times]) -> None:
        known = self._set or {}
        for job in self._scheduler.get_jobs():
            if job.id not in schedules:
                self._scheduler.remove_job(job.id)
        for name, times in schedules.items():
            if known.get(name) != times:
                self._scheduler.add_job(
                    f"{__name__}:{ring.__name__}", CronTrigger(times), id=name, replace_existing=True
                )
        self._set = dict(schedules)

    def wait(self, timeout_s: float) -> bool:
        """Wait for an alarm, or so long; tells whether there was one."""
        has_rung = _woken.wait(timeout_s)
        _woken.clear()
        return has_rung

    def in_background(self, work: Callable[[], None]) -> None:
        """Do something in a thread, unless it is at something still."""
        if self._work is None or self._work.done():
            self._work = self._pool.submit(work)
            self._work.add_done_callback(_log_failure)


def _log_failure(work: Future[None]) -> None:
    error = work.exception()
    if error is not None:
        log.error("work in the background failed", exc_info=error)
