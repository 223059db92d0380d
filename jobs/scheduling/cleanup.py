"""What is forgotten: a schedule of every minute has half a million firings a year, each with a log."""

import shutil
import sys
from pathlib import Path

from jobs.scheduling.store import ScheduleStore

# Of each schedule: some years of nights, or a day of minutes, can be looked up, and the logs of half a year of nights.
KEPT_FIRINGS = 1500
KEPT_LOGS = 200


def tidy_history(
    store: ScheduleStore, home: Path, *, kept_firings: int = KEPT_FIRINGS, kept_logs: int = KEPT_LOGS
) -> None:
    """Forget each schedule's firings but the newest, and remove the folders of all but the newest of those.

    What has not ended stays, however old it is.
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
