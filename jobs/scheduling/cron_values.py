"""The values that each field of a cron expression allows."""

from dataclasses import dataclass

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


@dataclass(frozen=True)
class CronFields:
    """The values allowed by each field, ascending; a field that allows all is None.

    weekdays: 0 is Sunday. is_either_day: both day fields are restricted and a day that matches either is enough, as
    in crontab(5). If it is False and both are restricted, a day must match both.
    """

    minutes: tuple[int, ...] | None
    hours: tuple[int, ...] | None
    days: tuple[int, ...] | None
    months: tuple[int, ...] | None
    weekdays: tuple[int, ...] | None
    is_either_day: bool


def split_cron(expression: str) -> CronFields:
    """Parse an expression that `jobs.scheduling.cron.check_cron` has returned."""
    minute, hour, day, month, weekday = expression.split()
    days = _values(day, 1, 31)
    # 7 is Sunday too, also as the end of a range or of steps.
    weekdays = _values(weekday, 0, 7, _DAYS)
    # A field that begins with *, also */2, does not count as restricted (Debian's cron(8), and cronsim).
    is_either_day = not day.startswith("*") and not weekday.startswith("*")
    if is_either_day and (days is None or weekdays is None):
        # Either is enough, and one of them is every day: 1-31, or 0-6.
        days, weekdays = None, None
    return CronFields(
        minutes=_values(minute, 0, 59),
        hours=_values(hour, 0, 23),
        days=days,
        months=_values(month, 1, 12, _MONTHS),
        weekdays=weekdays,
        is_either_day=is_either_day and days is not None,
    )


def _values(field: str, least: int, greatest: int, names: tuple[str, ...] = ()) -> tuple[int, ...] | None:
    allowed: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        first, _, last = span.partition("-")
        begin = least if first == "*" else _number(first, names, least)
        end = _number(last, names, least) if last else greatest if first == "*" or step else begin
        allowed.update(range(begin, end + 1, int(step or 1)))
    if greatest == 7:
        allowed = {value % 7 for value in allowed}
        greatest = 6
    return None if allowed == set(range(least, greatest + 1)) else tuple(sorted(allowed))


def _number(text: str, names: tuple[str, ...], least: int) -> int:
    return int(text) if text.isdecimal() else least + names.index(text.lower())
