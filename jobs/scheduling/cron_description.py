"""A cron expression in English, built from the values that its fields allow."""

from collections.abc import Sequence

from jobs.scheduling.cron_values import CronFields

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
# In the order of a week that begins with Monday: 1 to 7.
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# Up to this many times of day are listed; beyond that, minutes and hours are.
MAX_TIMES = 6


def describe_fields(fields: CronFields) -> str:
    """Describe when it is due: "At 02:30, every day", "Every 15 minutes, only on Monday to Friday, only in May"."""
    parts = [_time(fields.minutes, fields.hours), _day(fields)]
    if fields.months is not None:
        parts.append(f"only in {_listed([MONTHS[month - 1] for month in fields.months], fields.months)}")
    return ", ".join(parts)


def _time(minutes: tuple[int, ...] | None, hours: tuple[int, ...] | None) -> str:
    if minutes is not None and hours is not None and len(minutes) * len(hours) <= MAX_TIMES:
        times = [f"{hour:02d}:{minute:02d}" for hour in hours for minute in minutes]
        return f"At {_joined(times, 'and')}"
    if minutes is None:
        often = "Every minute"
    elif len(minutes) > 1 and minutes == tuple(range(0, 60, minutes[1])) and 60 % minutes[1] == 0:
        often = f"Every {minutes[1]} minutes"
    else:
        names = [str(minute) for minute in minutes]
        often = f"At {'minute' if len(minutes) == 1 else 'minutes'} {_listed(names, minutes)}"
        if hours is None:
            return f"{often} of every hour"
    if hours is None:
        return often
    names = [str(hour) for hour in hours]
    return f"{often} of {'hour' if len(hours) == 1 else 'hours'} {_listed(names, hours)}"


def _day(fields: CronFields) -> str:
    days = weekdays = ""
    if fields.days is not None:
        names = [str(day) for day in fields.days]
        days = f"on {'day' if len(names) == 1 else 'days'} {_listed(names, fields.days)} of the month"
    if fields.weekdays is not None:
        # Sunday comes last.
        numbers = sorted((day - 1) % 7 for day in fields.weekdays)
        weekdays = _listed([WEEKDAYS[day] for day in numbers], numbers)
    if days and weekdays:
        return f"{days} and also on every {weekdays}" if fields.is_either_day else f"{days}, only if that is {weekdays}"
    return days or (f"only on {weekdays}" if weekdays else "every day")


def _listed(names: Sequence[str], numbers: Sequence[int]) -> str:
    """Join names, three and more in a row as "first to last"."""
    runs: list[list[int]] = []
    for place, number in enumerate(numbers):
        if runs and numbers[runs[-1][-1]] == number - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    parts: list[str] = []
    for run in runs:
        parts += [f"{names[run[0]]} to {names[run[-1]]}"] if len(run) > 2 else [names[place] for place in run]
    return _joined(parts, "and")


def _joined(parts: Sequence[str], word: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"
