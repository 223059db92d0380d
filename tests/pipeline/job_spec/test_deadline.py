"""Deadlines as users write them: durations, clock times, dates."""

from datetime import UTC, datetime

import pytest

from pipeline.errors import SpecError
from pipeline.job_spec.deadline import deadline_after, is_deadline, local_text, parse_duration
from pipeline.job_spec.job import load_spec

EVENING = datetime(2026, 11, 26, 21, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", datetime(2026, 11, 26, 21, 1, 30, tzinfo=UTC)),
        ("1h30m", datetime(2026, 11, 26, 22, 30, tzinfo=UTC)),
        ("06:30 UTC", datetime(2026, 11, 27, 6, 30, tzinfo=UTC)),
        ("06:30 Europe/Berlin", datetime(2026, 11, 27, 5, 30, tzinfo=UTC)),
        ("22:15 Europe/Berlin", datetime(2026, 11, 26, 21, 15, tzinfo=UTC)),
        ("21:00 UTC", datetime(2026, 11, 27, 21, 0, tzinfo=UTC)),
        ("2026-11-27T06:30:00+01:00", datetime(2026, 11, 27, 5, 30, tzinfo=UTC)),
    ],
)
def test_a_deadline_is_a_moment_after_the_start(text: str, expected: datetime) -> None:
    assert deadline_after(text, EVENING) == expected


def test_a_clock_time_follows_summer_time() -> None:
    # 2026-10-25, 03:00 becomes 02:00 in Berlin.
    saturday = datetime(2026, 10, 24, 12, 0, tzinfo=UTC)
    assert deadline_after("06:30 Europe/Berlin", saturday) == datetime(2026, 10, 25, 5, 30, tzinfo=UTC)


@pytest.mark.parametrize("text", ["soon", "25:00", "06:30 Berlin", "0s", "-2h", ""])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|time zone|time of the day|later"):
        deadline_after(text, EVENING)


def test_a_time_that_yaml_reads_as_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="in quotes"):
        is_deadline(22 * 60 + 30)
    assert is_deadline(EVENING) == "2026-11-26T21:00:00+00:00"


def test_a_deadline_is_shown_in_the_zone_that_it_names() -> None:
    moment = deadline_after("06:30 Europe/Berlin", EVENING)
    assert local_text(moment, "06:30 Europe/Berlin") == "2026-11-27 06:30 CET"
    assert ":07 " in local_text(deadline_after("7s", EVENING))


def test_durations_have_one_reader() -> None:
    assert parse_duration("2d", "--jitter") == 172_800
    assert parse_duration(None, "--jitter") is None
    with pytest.raises(SpecError, match="--jitter must be a time"):
        parse_duration("soon", "--jitter")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"max_cost": 5.0}, "max_cost needs a price"),
        ({"max_cost": 5.0, "price_per_hour": 0}, "max_cost needs a price"),
        ({"max_cost": 0, "price_per_hour": 1}, "more than 0"),
        ({"price_per_hour": -1}, "0 or more"),
        ({"price_per_hour": float("inf")}, "budget.price_per_hour"),
        ({"price_per_hour": 1.0, "price_per_node_hour": 8.0, "workers_per_node": 8}, "exclude each other"),
        ({"price_per_node_hour": 8.0}, "workers_per_node need each other"),
        ({"refuse_late": True}, "needs a deadline"),
        ({"deadline": "soon"}, "a clock time"),
        ({"deadline": 1350}, "in quotes"),
        ({"price": 3}, "budget.price is not a key"),
    ],
)
def test_a_wrong_budget_is_one_sentence(keys: dict[str, object], named: str) -> None:
    budget = {f"budget.{key}": value for key, value in keys.items()}
    with pytest.raises(SpecError, match=named):
        load_spec(None, {"input.uri": "in", "output.uri": "out", **budget})


def test_a_nodes_price_is_shared_by_its_workers() -> None:
    keys = {"budget.price_per_node_hour": 32, "budget.workers_per_node": 8, "budget.currency": "EUR"}
    spec = load_spec(None, {"input.uri": "in", "output.uri": "out", **keys})
    assert spec.budget.worker_price == 4
    assert spec.budget.amount(1234.5) == "1,234.50 EUR"
    assert spec.budget.amount(0.0123) == "0.0123 EUR"
    assert not any(key.startswith("budget") for key in spec.identity())
