"""The history of a schedule of every minute does not fill the disk."""

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jobs.scheduling.cleanup import tidy_history
from jobs.scheduling.engine import plan_firing
from jobs.scheduling.firing import Ending
from jobs.scheduling.schedule import build_schedule
from jobs.scheduling.store import ScheduleStore


def test_cleanup_keeps_the_newest_firings_and_logs_and_those_in_progress(tmp_path: Path) -> None:
    start = datetime(2026, 11, 23, tzinfo=UTC)
    with closing(ScheduleStore(tmp_path)) as store:
        for name in ("a", "b"):
            schedule = build_schedule({"name": name, "spec": "job.yaml", "cron": "* * * * *"})
            for minute in range(7):
                firing = plan_firing(schedule, start + timedelta(minutes=minute), "cron")
                if minute:
                    firing = replace(firing, state="ended", ending=Ending("complete"))
                store.insert(firing)
                (tmp_path / "firings" / firing.name).mkdir(parents=True)
        tidy_history(store, tmp_path, kept_firings=4, kept_logs=3)
        left = [f"{firing.scheduled:%M}" for firing in store.history("b", 100)]
    assert left == ["06", "05", "04", "03", "00"]
    logs = sorted(folder.name for folder in (tmp_path / "firings").iterdir())
    assert logs == [f"{name}-20261123-000{minute}00" for name in "ab" for minute in (0, 4, 5, 6)]
