"""Durations and deadlines as users write them."""

import re
from datetime import UTC, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipeline.errors import SpecError

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_CLOCK_TIME = re.compile(r"(\d{1,2}):(\d{2})(?:\s+(\S+))?")
FORMS: Final = 'a duration such as 6h or 1h30m, a clock time such as "06:30 Europe/Berlin", or a date with its time'


def parse_duration(text: str | None, flag: str) -> float | None:
    """Read "90s", "30m", "6h", "2d", "1h30m" or a number of seconds; None stays None.

    Raises:
        SpecError: the text is none of these.
    """
    if text is None:
        return None
    seconds = _duration(text)
    if seconds is None:
        raise SpecError(f"{flag} must be a time such as 90s, 30m, 6h or 2d, not {text!r}.")
    return seconds


def deadline_after(text: str, began: datetime) -> datetime:
    """Return the moment that a deadline names, UTC.

    Args:
        text: a duration, which counts from `began`; a clock time ("06:30", perhaps with a zone), the next one after
            `began`; or a date with its time (ISO 8601), which may be past. Without a zone, this machine's.
        began: when the command began; any zone.

    Raises:
        ValueError: the text is none of these; the message states what it may be.
    """
    seconds = _duration(text)
    if seconds is not None:
        if seconds <= 0:
            raise ValueError("it must be later than the start")
        return began.astimezone(UTC) + timedelta(seconds=seconds)
    if match := _CLOCK_TIME.fullmatch(text.strip()):
        hour, minute, zone = match.groups()
        return _next_clock_time(int(hour), int(minute), zone, began).astimezone(UTC)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"it must be {FORMS}") from None
    return moment.astimezone(UTC)


def is_deadline(value: object) -> str:
    """Check a spec's deadline, and return it as text.

    Raises:
        ValueError: it names no moment.
    """
    if isinstance(value, datetime):
        # YAML reads a date with its time.
        value = value.isoformat()
    if not isinstance(value, str):
        # YAML reads 22:30 without quotes as the number 1350.
        raise ValueError(f"write it in quotes: {FORMS}")
    deadline_after(value, datetime.now(UTC))
    return value


def local_text(moment: datetime, like: str = "") -> str:
    """Format a moment in the zone that a deadline's text names, else in this machine's: "2026-11-27 06:30 CET"."""
    match = _CLOCK_TIME.fullmatch(like.strip())
    zone = match.group(3) if match else None
    local = moment.astimezone(_zone(zone) if zone else None)
    return f"{local:%Y-%m-%d %H:%M:%S %Z}" if local.second else f"{local:%Y-%m-%d %H:%M %Z}"


def _duration(text: str) -> float | None:
    compact = text.replace(" ", "").lower()
    if not re.fullmatch(r"(?:\d+(?:\.\d+)?[smhd])+|\d+(?:\.\d+)?", compact):
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", compact)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _next_clock_time(hour: int, minute: int, zone: str | None, began: datetime) -> datetime:
    if hour > 23 or minute > 59:
        raise ValueError(f"{hour}:{minute:02d} is no time of the day")
    local = began.astimezone(_zone(zone) if zone else None)
    for days in range(3):
        wall = datetime.combine(local.date() + timedelta(days=days), time(hour, minute))
        # Without a zone each day has the offset that this machine's zone gives it.
        moment = wall.replace(tzinfo=_zone(zone)) if zone else wall.astimezone()
        if moment.astimezone(UTC) > began.astimezone(UTC):
            return moment
    raise ValueError(f"{hour}:{minute:02d} does not come within two days")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone; write a place such as Europe/Berlin, or UTC") from None
