"""Retention of the firings' history and logs: a schedule of every minute has half a million firings a year."""

import shutil
import sys
from pathlib import Path

from jobs.scheduling.store import ScheduleStore

# Per schedule: four years of a daily schedule or a day of one that fires each minute; logs of half a year of days.
KEPT_FIRINGS = 1500
KEPT_LOGS = 200


def tidy_history(
    store: ScheduleStore, home: Path, *, kept_firings: int = KEPT_FIRINGS, kept_logs: int = KEPT_LOGS
) -> None:
    """Remove all but the newest firings of each schedule from the history, and all but the newest logs.

    Firings that have not ended stay, however old they are.
    """
    store.forget_all_but(kept_firings)
    by_schedule: dict[str, list[str]] = {}
    for firing in store.history(None, sys.maxsize):
        by_schedule.setdefault(firing.schedule.name, []).append(firing.name)
    kept = {name for names in by_schedule.values() for name in names[:kept_logs]}
    kept.update(firing.name for firing in store.open_firings())
    for folder in (home / "firings").glob("*"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)
