"""Cron fields for other programs: portable expressions, and times that clock changes shift."""

import itertools
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from jobs.scheduling.cron import due_times
from jobs.scheduling.cron_values import CronFields, split_cron
from pipeline.errors import SpecError

__all__ = ["CronFields", "is_shifted_by_the_clock", "portable_cron", "split_cron"]

# Contains both clock changes of a year, from any start.
LOOK_AHEAD = timedelta(days=366)
# What every cron parser reads the same way: no steps, no * in a list, and Sunday as 0.
_PLAIN_DAYS = re.compile(r"\*|\d+(-\d+)?(,\d+(-\d+)?)*")
_PLAIN_WEEKDAYS = re.compile(r"\*|([0-6]|[A-Za-z]+)(-([0-6]|[A-Za-z]+))?(,([0-6]|[A-Za-z]+)(-([0-6]|[A-Za-z]+))?)*")


def portable_cron(expression: str, reader: str) -> str:
    """Rewrite a checked expression so that robfig/cron (Kubernetes, KubeRay) and croniter (Airflow) read it as we do.

    They differ in the day fields: robfig does not know 7 and ends steps of weekdays with Saturday, and whether */2
    counts as a restricted day differs between releases.

    Args:
        reader: the program that will read it, for the message.

    Raises:
        SpecError: a day must match both day fields, which only our cron, systemd and Debian's cron can express.
    """
    fields = split_cron(expression)
    if fields.days is not None and fields.weekdays is not None and not fields.is_either_day:
        raise SpecError(
            f"cron {expression!r} is due on days of the month only if they are certain weekdays, which {reader} cannot "
            "express: it takes either; restrict one of the two fields, or export to systemd."
        )
    minute, hour, day, month, weekday = expression.split()
    if fields.days is None:
        day = "*"
    elif not _PLAIN_DAYS.fullmatch(day):
        day = ",".join(map(str, fields.days))
    if fields.weekdays is None:
        weekday = "*"
    elif not _PLAIN_WEEKDAYS.fullmatch(weekday):
        weekday = ",".join(map(str, fields.weekdays))
    return " ".join((minute, hour, day, month, weekday))


def is_shifted_by_the_clock(expression: str, time_zone: str, now: datetime | None = None) -> bool:
    """Return whether, within a year, a scheduled time of day does not exist because the clock jumps over it."""
    fields, zone = split_cron(expression), ZoneInfo(time_zone)
    begin = now or datetime.now(UTC)
    dues = itertools.takewhile(lambda due: due < begin + LOOK_AHEAD, due_times(expression, time_zone, begin))
    for due in dues:
        local = due.astimezone(zone)
        is_hour = fields.hours is None or local.hour in fields.hours
        is_minute = fields.minutes is None or local.minute in fields.minutes
        if not (is_hour and is_minute):
            return True
    return False
