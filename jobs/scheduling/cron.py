"""Cron expressions: validation and due times.

Five fields as in crontab(5): minute, hour, day of month, month, day of week; names of months and days; aliases such as
`@daily`. If both day fields are restricted, a day that matches either is enough; a field that begins with * (also */2)
does not count as restricted, and then a day must match both. Clock changes follow Debian's cron(8), as in the library
cronsim: a time of day that does not exist is due when the clock has jumped, a time that exists twice is due the first
time only, and an expression with a wildcard in minute or hour keeps its real interval.
"""

import difflib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from jobs.scheduling.cron_description import describe_fields
from jobs.scheduling.cron_values import split_cron

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""crontab(5)'s own short forms."""

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


class _Field(NamedTuple):
    name: str
    least: int
    greatest: int
    # Names of the numbers, beginning with the least.
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _DAYS),
)
_ORDER = "minute hour day-of-month month day-of-week"
_EXAMPLE = 'such as "30 2 * * *", every day at 02:30'


def check_cron(expression: str) -> str:
    """Return the expression as five fields, with aliases expanded.

    Raises:
        ValueError: the expression is invalid; the message names the field and suggests a correction.
    """
    words = expression.split()
    if len(words) == 1 and words[0].startswith("@"):
        return _expand(words[0])
    _check_count(expression, words)
    fields = " ".join(
        ",".join(_check_term(term, word, field) for term in word.split(","))
        for word, field in zip(words, _FIELDS, strict=True)
    )
    try:
        is_ever_due = next(CronSim(fields, datetime(2026, 1, 1)), None) is not None
    except CronSimError:
        is_ever_due = False
    if not is_ever_due:
        raise ValueError(f"{fields!r} is never due: none of its months has such a day")
    return fields


def describe_cron(expression: str) -> str:
    """Describe in English when a checked expression is due: "At 02:30, every day"."""
    return describe_fields(split_cron(expression))


def due_times(expression: str, time_zone: str, after: datetime) -> Iterator[datetime]:
    """Yield the times at which a checked expression is due, later than `after`, in order, in UTC.

    Args:
        time_zone: the IANA name of the time zone.
        after: any aware time.
    """
    last = after.astimezone(UTC)
    # One second earlier, because cronsim does not yield the second it starts from.
    for moment in CronSim(expression, last.astimezone(ZoneInfo(time_zone)) - timedelta(seconds=1)):
        due = moment.astimezone(UTC)
        # In autumn, the second 02:10 leads to the first 02:30, which is in the past; in spring, 02:00 and 03:00 are
        # the same instant.
        if due > last:
            last = due
            yield due


def _expand(alias: str) -> str:
    known = ALIASES.get(alias.lower())
    if known is not None:
        return known
    if alias.lower() == "@reboot":
        raise ValueError("@reboot is not a time; a schedule needs one, " + _EXAMPLE)
    nearest = difflib.get_close_matches(alias.lower(), ALIASES, n=1)
    meant = f"; did you mean {nearest[0]}?" if nearest else f"; known are {', '.join(ALIASES)}"
    raise ValueError(f"{alias} is not known{meant}")


def _check_count(expression: str, words: list[str]) -> None:
    if len(words) == len(_FIELDS):
        return
    clock = re.fullmatch(r"(\d{1,2}):(\d{2})", expression.strip())
    if clock:
        raise ValueError(f'five fields are needed ({_ORDER}); did you mean "{int(clock[2])} {int(clock[1])} * * *"?')
    if len(words) < len(_FIELDS):
        raise ValueError(f"{expression!r} has {_count(words)}, five are needed: {_ORDER}, {_EXAMPLE}")
    # Quartz and Spring begin with seconds, which are 0 nearly always; others end with a year.
    meant = words[1:6] if words[0] == "0" else words[:5]
    guess = " ".join(meant).replace("?", "*")
    raise ValueError(f'{expression!r} has {_count(words)}, five are needed: {_ORDER}; did you mean "{guess}"?')


def _count(words: list[str]) -> str:
    return f"{len(words)} field" if len(words) == 1 else f"{len(words)} fields"


def _check_term(term: str, word: str, field: _Field) -> str:
    """Return a term of a field, without a step that has no effect."""
    if term == "?":
        raise ValueError(f'the {field.name} "?" is Quartz\'s; write * instead')
    parts = re.fullmatch(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\w+))?", term, re.ASCII)
    if parts is None or (parts["first"] == "*" and parts["last"]):
        raise ValueError(f"the {field.name} {word!r} cannot be read; write *, 5, 1-5, 1,15 or */10")
    if parts["step"] is not None and (not parts["step"].isdecimal() or int(parts["step"]) == 0):
        raise ValueError(f"the {field.name} {word!r} has a step that is not a whole number from 1 on")
    # Days of the week are seven, though Sunday has two numbers.
    count = min(field.greatest - field.least + 1, 7 if field.names is _DAYS else 60)
    if parts["step"] is not None and int(parts["step"]) > count:
        raise ValueError(
            f"the {field.name} {word!r} has a step of more than its {count} values; name those that are meant"
        )
    if parts["first"] == "*":
        return term
    first = _number(parts["first"], field)
    last = None if parts["last"] is None else _number(parts["last"], field)
    if last == first:
        # cronsim takes 5-5/2 for 5/2.
        return parts["first"]
    if last is not None and last < first:
        raise ValueError(f"the {field.name} {term!r} runs backwards; write two ranges with a comma between them")
    return term


def _number(text: str, field: _Field) -> int:
    name, least, greatest, names = field
    if text.isdecimal():
        if not least <= int(text) <= greatest:
            raise ValueError(f"{name} {text} is not in {least}-{greatest}")
        return int(text)
    upper = text.upper()
    if upper in names:
        return least + names.index(upper)
    same_letters = [each for each in names if upper.startswith(each) or sorted(upper) == sorted(each)]
    meant = same_letters or difflib.get_close_matches(upper, names)
    if meant:
        raise ValueError(f"{name} {text!r} is not known; did you mean {meant[0]}?")
    kinds = f"a number in {least}-{greatest}" + (f" or one of {', '.join(names)}" if names else "")
    raise ValueError(f"{name} {text!r} is not {kinds}")
