"""The description and the exports of cron expressions, compared with a year of firings."""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobs.manifests.cron_fields import portable_cron
from jobs.manifests.systemd import calendar_of
from jobs.scheduling.cron import check_cron, describe_cron, due_times
from jobs.scheduling.schedule import build_schedule
from pipeline.errors import SpecError

YEAR = [date(2027, 12, 1) + timedelta(days=number) for number in range(366)]  # with a 29th of February
MONTHS = [
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
]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
Minute = tuple[int, int]


def terms(least: int, greatest: int) -> st.SearchStrategy[str]:
    number = st.integers(least, greatest)
    pairs = st.tuples(number, number).map(sorted)
    step = st.integers(1, max(2, (greatest - least + 1) // 2))
    return st.one_of(
        number.map(str),
        pairs.map(lambda pair: f"{pair[0]}-{pair[1]}"),
        st.tuples(pairs, step).map(lambda each: f"{each[0][0]}-{each[0][1]}/{each[1]}"),
        st.tuples(number, step).map(lambda each: f"{each[0]}/{each[1]}"),
        step.map(lambda each: f"*/{each}"),
        st.just("*"),
    )


def fields(least: int, greatest: int) -> st.SearchStrategy[str]:
    several = st.lists(terms(least, greatest), min_size=1, max_size=3).map(",".join)
    return st.one_of(st.just("*"), terms(least, greatest), several)


EXPRESSIONS = st.tuples(fields(0, 59), fields(0, 23), fields(1, 31), fields(1, 12), fields(0, 7)).map(" ".join)


def checked(expression: str) -> str:
    try:
        return check_cron(expression)
    except ValueError:
        assume(False)
        raise


def year_of(cron: str) -> tuple[set[date], set[Minute]]:
    """Return the days of the year on which it is due, and the minutes of such a day."""
    days: set[date] = set()
    end = datetime(YEAR[-1].year, YEAR[-1].month, YEAR[-1].day, tzinfo=UTC) + timedelta(days=1)
    searched = datetime(YEAR[0].year, YEAR[0].month, YEAR[0].day, tzinfo=UTC) - timedelta(seconds=1)
    while (due := next(due_times(cron, "UTC", searched))) < end:
        days.add(due.date())
        # One time per day is enough: continue at the next midnight.
        searched = due.replace(hour=23, minute=59, second=59)
    if not days:
        return days, set()
    day = min(days)
    times = due_times(cron, "UTC", datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(seconds=1))
    return days, {(each.hour, each.minute) for each in islice(times, 1440) if each.date() == day}


def listed(text: str, names: list[str] | None = None) -> list[int]:
    """Read "1, 3 and 5 to 9", or the same with names, of which the first is 1."""
    numbers: list[int] = []
    for part in re.split(r", | and ", text):
        first, _, last = part.partition(" to ")
        ends = [int(each) if names is None else names.index(each) + 1 for each in (first, last or first)]
        numbers += range(ends[0], ends[1] + 1)
    return numbers


def minutes_in(words: str) -> set[Minute]:
    """Read the times of day that a description names."""
    if words.startswith("At ") and ":" in words:
        clock = re.findall(r"(\d\d):(\d\d)", words)
        return {(int(hour), int(minute)) for hour, minute in clock}
    often, _, hours_text = words.partition(" of hour")
    hours = listed(hours_text.removeprefix("s").strip()) if hours_text else list(range(24))
    often = often.removesuffix(" of every hour")
    if often == "Every minute":
        minutes = list(range(60))
    elif often.startswith("Every "):
        minutes = list(range(0, 60, int(often.split()[1])))
    else:
        minutes = listed(re.sub("^At minutes? ", "", often))
    return {(hour, minute) for hour in hours for minute in minutes}


def days_in(words: str) -> Callable[[date], bool]:
    """Read the days that a description names."""
    days, _, months_text = words.partition(", only in ")
    months = listed(months_text, MONTHS) if months_text else list(range(1, 13))
    match = re.fullmatch(
        r"every day|only on (?P<only>.*)|on days? (?P<days>.*?) of the month"
        r"(?: and also on every (?P<either>.*)|, only if that is (?P<both>.*))?",
        days,
    )
    assert match is not None, words

    def is_named(day: date) -> bool:
        is_month = day.month in months
        weekdays = match["only"] or match["either"] or match["both"]
        is_weekday = not weekdays or day.isoweekday() in listed(weekdays, WEEKDAYS)
        if match["days"] is None:
            return is_month and is_weekday
        is_day = day.day in listed(match["days"])
        return is_month and ((is_day or is_weekday) if match["either"] else (is_day and is_weekday))

    return is_named


@settings(deadline=None, max_examples=settings.default.max_examples // 4)
@given(EXPRESSIONS)
def test_the_description_matches_a_year_of_firings(expression: str) -> None:
    cron = checked(expression)
    words = describe_cron(cron)
    time, _, rest = re.fullmatch(r"(.*?)(, )((?:every day|only on|on day).*)", words).groups()  # type: ignore[union-attr]
    days, minutes = year_of(cron)
    assert {day for day in YEAR if days_in(rest)(day)} == days
    if days:
        assert minutes_in(time) == minutes


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        (
            "0 0 */2 * 1",
            "At 00:00, on days 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29 and 31 of the month, ",
        ),
        ("0 0 1-7 * 1", "At 00:00, on days 1 to 7 of the month and also on every Monday"),
        ("0 0 13 * FRI", "At 00:00, on day 13 of the month and also on every Friday"),
        ("0 0 1-31 * 1", "At 00:00, every day"),
        ("0 0 * * 5/2", "At 00:00, only on Friday and Sunday"),
        ("*/45 * * * *", "At minutes 0 and 45 of every hour, every day"),
        ("*/60 * * * *", "At minute 0 of every hour, every day"),
        ("0 */24 * * *", "At 00:00, every day"),
        ("*/20 9-17 * * mon-fri", "Every 20 minutes of hours 9 to 17, only on Monday to Friday"),
        ("* 2 * * *", "Every minute of hour 2, every day"),
        ("* * * * *", "Every minute, every day"),
        ("0 2,14 1 1,2,3,12 *", "At 02:00 and 14:00, on day 1 of the month, only in January to March and December"),
        ("0 0 * * 0,6", "At 00:00, only on Saturday and Sunday"),
    ],
)
def test_words(cron: str, words: str) -> None:
    assert describe_cron(check_cron(cron)).startswith(words)


def test_both_days_of_an_even_step_must_match() -> None:
    assert describe_cron("0 0 */2 * 1").endswith(" of the month, only if that is Monday")


@pytest.mark.parametrize(
    "cron",
    ["*/70 * * * *", "0 */25 * * *", "0 0 */32 * *", "0 0 * */13 *", "0 0 * * */8", "5/61 * * * *", "0-9/61 1 * * *"],
)
def test_a_step_of_more_than_the_fields_values_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match="step"):
        check_cron(cron)


# --- exports -----------------------------------------------------------------------------------------------


def robfig_days(cron: str, *, has_step_star: bool) -> set[date]:
    """robfig/cron v3's reading of the days, with and without a star in */2; its weekdays end with 6."""
    _, _, day, month, weekday = cron.split()
    day_values, is_day_star = _robfig(day, 1, 31, has_step_star=has_step_star)
    weekday_values, is_weekday_star = _robfig(weekday, 0, 6, has_step_star=has_step_star)
    months, _ = _robfig(month, 1, 12, has_step_star=has_step_star)
    found = set()
    for each in YEAR:
        is_day, is_weekday = each.day in day_values, each.isoweekday() % 7 in weekday_values
        is_due = (is_day and is_weekday) if is_day_star or is_weekday_star else (is_day or is_weekday)
        found |= {each} if is_due and each.month in months else set()
    return found


def _robfig(field: str, least: int, greatest: int, *, has_step_star: bool) -> tuple[set[int], bool]:
    values, is_star = set(), False
    for term in field.split(","):
        span, _, step = term.partition("/")
        if span == "*":
            begin, end = least, greatest
            is_star |= has_step_star or step in {"", "1"}
        else:
            first, _, last = span.partition("-")
            begin = int(first)
            end = int(last) if last else greatest if step else begin
        assert least <= begin <= end <= greatest, f"{field} is refused"
        values.update(range(begin, end + 1, int(step or 1)))
    return values, is_star


@settings(deadline=None, max_examples=settings.default.max_examples // 4)
@given(EXPRESSIONS)
def test_kubernetes_gets_the_same_days_or_nothing(expression: str) -> None:
    cron = checked(expression)
    try:
        portable = portable_cron(cron, "Kubernetes")
    except SpecError:
        # Only what must match both days is refused.
        assert ", only if that is " in describe_cron(cron)
        return
    days, minutes = year_of(cron)
    assert robfig_days(portable, has_step_star=True) == robfig_days(portable, has_step_star=False) == days
    assert year_of(portable) == (days, minutes)


@settings(deadline=None, max_examples=settings.default.max_examples // 4)
@given(EXPRESSIONS)
def test_systemd_gets_the_same_times(expression: str) -> None:
    cron = checked(expression)
    schedule = build_schedule({"name": "nightly", "spec": "job.yaml", "cron": cron})
    days, minutes = year_of(cron)
    found: set[date] = set()
    for line in calendar_of(schedule):
        weekdays, _, month, day, clock = re.fullmatch(  # type: ignore[union-attr]
            r"(?:([A-Z][a-z,A-Z]+) )?(\*)-(\S+?)-(\S+) (\S+) UTC", line
        ).groups()
        names = (weekdays or "Mon,Tue,Wed,Thu,Fri,Sat,Sun").split(",")
        hour, minute, second = clock.split(":")
        assert second == "00"
        if days:
            assert {(h, m) for h in _systemd(hour, 24) for m in _systemd(minute, 60)} == minutes
        found |= {
            each
            for each in YEAR
            if each.strftime("%a") in names and each.month in _systemd(month, 13) and each.day in _systemd(day, 32)
        }
    assert found == days


def _systemd(field: str, end: int) -> set[int]:
    return set(range(end)) if field == "*" else set(map(int, field.split(",")))


@pytest.mark.parametrize(
    ("cron", "portable"),
    [
        ("30 2 * * *", "30 2 * * *"),
        ("30 2 * * mon-FRI", "30 2 * * mon-FRI"),
        ("30 2 * * 7", "30 2 * * 0"),
        ("30 2 * * 5/2", "30 2 * * 0,5"),
        ("30 2 */10 * *", "30 2 1,11,21,31 * *"),
        ("*/15 9-17 1 * *", "*/15 9-17 1 * *"),
        ("0 0 1-31 * 1", "0 0 * * *"),
        ("0 0 13 * FRI", "0 0 13 * FRI"),
    ],
)
def test_plain_cron_fields_stay_as_written(cron: str, portable: str) -> None:
    assert portable_cron(check_cron(cron), "Kubernetes") == portable


def test_days_that_must_match_both_fields_are_refused() -> None:
    with pytest.raises(SpecError, match="Kubernetes"):
        portable_cron("0 0 */2 * 1", "Kubernetes")
