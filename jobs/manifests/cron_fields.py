"""A cron expression taken apart: the values that each of its fields allows."""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from jobs.scheduling.cron import due_times

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# Two changes of the clock lie within it, whenever one looks.
LOOK_AHEAD = timedelta(days=366)


@dataclass(frozen=True)
class CronFields:
    """The values allowed by each field, ascending; a field that allows all is None.

    weekdays: 0 is Sunday. is_either_day: both days are restricted, and crontab(5) takes either.
    """

    minutes: tuple[int, ...] | None
    hours: tuple[int, ...] | None
    days: tuple[int, ...] | None
    months: tuple[int, ...] | None
    weekdays: tuple[int, ...] | None
    is_either_day: bool


def split_cron(expression: str) -> CronFields:
    """Take an expression apart that `jobs.scheduling.cron.check_cron` has returned."""
    minute, hour, day, month, weekday = expression.split()
    return CronFields(
        minutes=_values(minute, 0, 59),
        hours=_values(hour, 0, 23),
        days=_values(day, 1, 31),
        months=_values(month, 1, 12, _MONTHS),
        weekdays=_values(weekday, 0, 6, _DAYS),
        # A field that begins with * does not count as restricted, */2 among them.
        is_either_day=not day.startswith("*") and not weekday.startswith("*"),
    )


def is_shifted_by_the_clock(expression: str, time_zone: str, now: datetime | None = None) -> bool:
    """Whether within a year it is due at a time of day that does not exist, because the clock has jumped over it."""
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


def _values(field: str, least: int, greatest: int, names: tuple[str, ...] = ()) -> tuple[int, ...] | None:
    allowed: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        first, _, last = span.partition("-")
        begin = least if first == "*" else _number(first, names, least)
        end = _number(last, names, least) if last else greatest if first == "*" or step else begin
        # 7 is Sunday too, also as the end of a range.
        allowed.update(value % 7 if greatest == 6 else value for value in range(begin, end + 1, int(step or 1)))
    return None if allowed == set(range(least, greatest + 1)) else tuple(sorted(allowed))


def _number(text: str, names: tuple[str, ...], least: int) -> int:
    return int(text) if text.isdecimal() else least + names.index(text.lower())
