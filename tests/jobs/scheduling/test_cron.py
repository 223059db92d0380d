"""Cron expressions and time zones: error messages, and the days on which clocks change."""

from datetime import UTC, datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.scheduling.cron import check_cron, describe_cron, due_times
from jobs.scheduling.schedule import build_schedule
from pipeline.errors import SpecError

BERLIN = ZoneInfo("Europe/Berlin")


def refusal(**keys: object) -> str:
    with pytest.raises(SpecError) as refused:
        build_schedule({"name": "nightly", "spec": "job.yaml", "cron": "30 2 * * *", **keys})
    return str(refused.value)


def due_in_berlin(cron: str, after: str, count: int) -> list[str]:
    times = due_times(cron, "Europe/Berlin", datetime.fromisoformat(after).replace(tzinfo=BERLIN))
    return [f"{moment.astimezone(BERLIN):%d. %H:%M %Z}" for moment in islice(times, count)]


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("75 2 * * *", "cron: minute 75 is not in 0-59."),
        ("30 24 * * *", "cron: hour 24 is not in 0-23."),
        ("30 2 0 * *", "cron: day of month 0 is not in 1-31."),
        ("30 2 * * 8", "cron: day of week 8 is not in 0-7."),
        ("30 2 * JNA *", "did you mean JAN?"),
        ("30 2 * * monday", "did you mean MON?"),
        ("30 2 * * FRI-MON", "runs backwards"),
        ("*/0 * * * *", "a step that is not a whole number from 1 on"),
        ("30 2 ? * *", "write * instead"),
        ("30 2 L * *", "day of month 'L' is not a number in 1-31."),
        ("30;2 * * * *", "write *, 5, 1-5, 1,15 or */10"),
        ("0 30 2 * * ?", 'has 6 fields, five are needed: minute hour day-of-month month day-of-week; did you mean "30'),
        ("30 2 * * * 2027", 'did you mean "30 2 * * *"?'),
        ("30 2", "has 2 fields, five are needed"),
        ("02:30", 'did you mean "30 2 * * *"?'),
        ("@dialy", "did you mean @daily?"),
        ("@reboot", "@reboot is not a time"),
        ("@", "known are @yearly"),
        ("0 0 30 2 *", "is never due"),
        ("", "has 0 fields"),
    ],
)
def test_a_wrong_expression_names_the_field_and_a_correction(cron: str, words: str) -> None:
    sentence = refusal(cron=cron)
    assert words in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("zone", "words"),
    [
        ("Europe/Belrin", "did you mean Europe/Berlin?"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("Berlin", "did you mean Europe/Berlin?"),
        ("New York", "did you mean America/New_York?"),
        ("UTC+2", "name a place, such as Europe/Berlin"),
        ("+02:00", "name a place, such as Europe/Berlin"),
        ("Nowhere/Land", "write a place such as Europe/Berlin, or UTC"),
        ("", "write a place such as Europe/Berlin, or UTC"),
    ],
)
def test_an_unknown_zone_names_the_nearest(zone: str, words: str) -> None:
    assert words in refusal(time_zone=zone)


@pytest.mark.parametrize(
    ("cron", "fields", "words"),
    [
        ("@daily", "0 0 * * *", "At 00:00, every day"),
        ("@Weekly", "0 0 * * 0", "At 00:00, only on Sunday"),
        ("30 2 * * mon-FRI", "30 2 * * mon-FRI", "At 02:30"),
        ("  */15  * * * * ", "*/15 * * * *", "Every 15 minutes"),
        ("0 0 29 2 *", "0 0 29 2 *", "on day 29 of the month, only in February"),
    ],
)
def test_a_valid_expression_has_five_fields_and_a_description(cron: str, fields: str, words: str) -> None:
    assert check_cron(cron) == fields
    assert words in describe_cron(fields)


def test_a_time_that_does_not_exist_in_spring_is_due_when_the_clock_has_jumped() -> None:
    assert due_in_berlin("30 2 * * *", "2027-03-26 12:00", 4) == [
        "27. 02:30 CET",
        "28. 03:00 CEST",
        "29. 02:30 CEST",
        "30. 02:30 CEST",
    ]


def test_a_time_that_exists_twice_in_autumn_is_due_the_first_time_only() -> None:
    assert due_in_berlin("30 2 * * *", "2026-10-23 12:00", 4) == [
        "24. 02:30 CEST",
        "25. 02:30 CEST",
        "26. 02:30 CET",
        "27. 02:30 CET",
    ]


def test_between_the_two_half_past_twos_the_next_is_tomorrow() -> None:
    # 02:10 the second time: 01:10 UTC.
    times = due_times("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 25, 1, 10, tzinfo=UTC))
    assert next(times) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_a_wildcard_keeps_its_interval_through_clock_changes() -> None:
    for night in ("2026-10-24 23:59", "2027-03-27 23:59"):
        times = list(islice(due_times("*/30 * * * *", "Europe/Berlin", datetime.fromisoformat(night)), 20))
        assert {(late - early).seconds for early, late in pairwise(times)} == {1800}


def test_two_times_that_the_jump_makes_one_are_due_once() -> None:
    assert due_in_berlin("0 2,3 * * *", "2027-03-27 12:00", 3) == ["28. 03:00 CEST", "29. 02:00 CEST", "29. 03:00 CEST"]


def test_either_of_two_restricted_days_is_enough() -> None:
    # Friday the 13th is both; 13th of December 2026 is a Sunday.
    times = islice(due_times("0 0 13 * FRI", "UTC", datetime(2026, 12, 1, tzinfo=UTC)), 4)
    assert [moment.day for moment in times] == [4, 11, 13, 18]


@settings(max_examples=60, deadline=None)
@given(
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo"]),
    start=st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC)),
)
def test_a_daily_time_is_due_once_on_every_day(minute: int, hour: int, zone: str, start: datetime) -> None:
    times = list(islice(due_times(f"{minute} {hour} * * *", zone, start), 250))
    days = [moment.astimezone(ZoneInfo(zone)).date() for moment in times]
    assert {(later - day).days for day, later in pairwise(days)} == {1}
    assert times[0] > start


def test_digits_of_other_scripts_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        check_cron("\N{ARABIC-INDIC DIGIT THREE} 0 * * *")
