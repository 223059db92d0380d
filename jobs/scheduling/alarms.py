"""The only door to APScheduler: it wakes the scheduler when a schedule is due, and lends a thread to the notices.

Its SQLite job store holds the time at which each schedule is due next. What is due is then decided from our own
tables: APScheduler forgets a job when it hands it to a thread, so that a crash in that instant would lose a night.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import URL, create_engine

_woken = threading.Event()
_LASTING = "default"
_PASSING = "passing"


def ring() -> None:
    """Wake the scheduler of this process; APScheduler calls it by name."""
    _woken.set()


class Alarms:
    """Wakes this process at given times. Use `start` and `stop`; one per process."""

    def __init__(self, database: Path) -> None:
        # `URL.create`, because a folder's name may hold any character.
        engine = create_engine(URL.create("sqlite", database=str(database)), connect_args={"timeout": 30})
        self._scheduler = BackgroundScheduler(
            jobstores={_LASTING: SQLAlchemyJobStore(engine=engine), _PASSING: MemoryJobStore()},
            executors={"default": ThreadPoolExecutor(2)},
            job_defaults={"misfire_grace_time": None, "coalesce": True},
            timezone=UTC,
        )
        self._set: dict[str, datetime] = {}
        self._is_busy = threading.Lock()
        # One line for each alarm that is set would drown ours.
        logging.getLogger("apscheduler").setLevel(logging.WARNING)

    def start(self) -> None:
        """Begin; alarms that a scheduler before us has set ring as well."""
        self._scheduler.start()

    def stop(self) -> None:
        """End, after what runs in a thread."""
        self._scheduler.shutdown()

    def set(self, wakes: Mapping[str, datetime]) -> None:
        """Set one alarm for each schedule, and take away those of schedules that are no more."""
        if wakes == self._set:
            return
        for job in self._scheduler.get_jobs(_LASTING):
            if job.id not in wakes:
                self._scheduler.remove_job(job.id, _LASTING)
        for name, moment in wakes.items():
            self._scheduler.add_job(
                f"{__name__}:{ring.__name__}", "date", run_date=moment, id=name, replace_existing=True
            )
        self._set = dict(wakes)

    def wait(self, timeout_s: float) -> None:
        """Wait for an alarm, or so long."""
        _woken.wait(timeout_s)
        _woken.clear()

    def in_background(self, work: Callable[[], None]) -> None:
        """Do something in a thread, unless such a thread is at it."""
        if self._is_busy.acquire(blocking=False):
            self._scheduler.add_job(self._work, args=[work], jobstore=_PASSING)

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            self._is_busy.release()
