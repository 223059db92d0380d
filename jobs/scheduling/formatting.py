"""Schedules and firings as text and as JSON."""

import json
import shlex
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from jobs.scheduling.cron import describe_cron, due_times
from jobs.scheduling.firing import Firing
from jobs.scheduling.schedule import Schedule
from jobs.scheduling.store import StoredSchedule
from pipeline.runs.outcomes import in_words
from pipeline.text import format_duration


def describe_times(schedule: Schedule) -> str:
    """Return when a schedule runs, as text: "At 02:30, every day, Europe/Berlin"."""
    return f"{describe_cron(schedule.cron)}, {schedule.time_zone}"


def describe_firing(firing: Firing) -> str:
    """Return a firing's state or outcome as text."""
    late = ", late" if firing.is_late else ""
    if firing.ending is None:
        return f"{firing.state}{late}" + (f": {firing.reason}" if firing.reason else "")
    counts = firing.ending.counts
    words = in_words(firing.ending.outcome) + late
    if counts.get("images") == 0:
        words += ", no image to do"
    elif counts:
        words += f", {counts.get('images_done', 0):,.0f} of {counts.get('images', 0):,.0f} images"
    return words + (f": {firing.ending.reason}" if firing.ending.reason else "")


def next_time(schedule: Schedule) -> datetime:
    """Return when a schedule is due next, UTC."""
    return next(due_times(schedule.cron, schedule.time_zone, datetime.now(UTC)))


def local_time(moment: datetime, schedule: Schedule) -> str:
    """Format a time in the schedule's time zone."""
    local = moment.astimezone(ZoneInfo(schedule.time_zone))
    return f"{local:%a %Y-%m-%d %H:%M %Z}"


def describe_duration(firing: Firing) -> str:
    """Return how long a firing took so far, as text; empty if it never began."""
    if firing.begun is None:
        return ""
    return format_duration(((firing.ended or datetime.now(UTC)) - firing.begun).total_seconds())


def shown(value: object) -> str:
    """Format the value of one key."""
    if isinstance(value, list):
        return shlex.join(value)
    return json.dumps(value) if isinstance(value, dict) else "" if value is None else str(value)


def schedule_values(stored: StoredSchedule) -> dict[str, Any]:
    """Return a schedule's keys and its next time, for --json."""
    schedule = stored.schedule
    upcoming = None if schedule.is_paused else next_time(schedule).isoformat()
    return {**schedule.to_dict(), "next": upcoming}


def firing_values(firing: Firing | None) -> dict[str, Any] | None:
    """Return a firing's values, for --json."""
    if firing is None:
        return None
    ending = asdict(firing.ending) if firing.ending else {"outcome": None, "reason": firing.reason}
    moments = {"scheduled": firing.scheduled, "begun": firing.begun, "ended": firing.ended}
    return {
        "run": firing.name,
        "schedule": firing.schedule.name,
        "kind": firing.kind,
        "state": firing.state,
        "is_late": firing.is_late,
        "handle": firing.handle,
        **{name: moment.isoformat() if moment else None for name, moment in moments.items()},
        **ending,
    }
