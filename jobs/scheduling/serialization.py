"""Firings and schedules as rows of the database, and back."""

import functools
import json
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from typing import get_args

from jobs.scheduling.firing import Firing, Kind, State, ending_from
from jobs.scheduling.schedule import Schedule

COLUMNS = (
    "name, schedule, document, scheduled, begins, kind, state, handle, starts, is_late, stop_outcome, stop_asked, "
    "reason, begun, ended, outcome, exit_code, counts"
)


def values_of(firing: Firing) -> list[object]:
    """Return a firing's values in the order of `COLUMNS`."""
    ending = firing.ending
    return [
        firing.name,
        firing.schedule.name,
        document_of(firing.schedule),
        firing.scheduled.timestamp(),
        firing.begins.timestamp(),
        firing.kind,
        firing.state,
        firing.handle,
        firing.starts,
        firing.is_late,
        firing.stop_outcome,
        _seconds(firing.stop_asked),
        ending.reason if ending else firing.reason,
        _seconds(firing.begun),
        _seconds(firing.ended),
        ending.outcome if ending else None,
        ending.exit_code if ending else None,
        json.dumps(dict(ending.counts)) if ending else None,
    ]


def firing_of(row: sqlite3.Row) -> Firing:
    """Build a firing from a row of `COLUMNS`."""
    if row["kind"] not in get_args(Kind) or row["state"] not in get_args(State):
        raise ValueError(f"its kind is {row['kind']!r} and its state {row['state']!r}")
    firing = Firing(
        name=row["name"],
        schedule=schedule_of(row["document"]),
        scheduled=time_of(row["scheduled"]),
        begins=time_of(row["begins"]),
        kind=row["kind"],
        state=row["state"],
        handle=row["handle"],
        starts=row["starts"],
        is_late=bool(row["is_late"]),
        stop_outcome=row["stop_outcome"],
        stop_asked=_optional_time(row["stop_asked"]),
        reason=row["reason"],
        begun=_optional_time(row["begun"]),
        ended=_optional_time(row["ended"]),
    )
    if row["outcome"] is None:
        return firing
    ending = {key: row[key] for key in ("outcome", "reason", "exit_code")} | {
        "counts": json.loads(row["counts"] or "{}")
    }
    return replace(firing, ending=ending_from(ending))


def document_of(schedule: Schedule) -> str:
    """Return a schedule as JSON."""
    return json.dumps(schedule.to_dict())


@functools.lru_cache(maxsize=1024)
def schedule_of(document: str) -> Schedule:
    """Build a schedule from its JSON."""
    return Schedule.model_validate(json.loads(document))


def time_of(seconds: float) -> datetime:
    """Convert seconds since 1970 to a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def _optional_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else time_of(seconds)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
