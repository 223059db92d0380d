"""The displayed numbers: rates, time left, shares."""

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pipeline.driver.progress import LineProgress, RunProgress
from pipeline.driver.throughput import Throughput
from pipeline.runs.bottleneck import find_bottleneck
from pipeline.runs.summary import judge
from pipeline.telemetry import StageClock
from pipeline.text import count_of, format_duration
from tests.support.fakes.clock import HandClock


def progress_of(images_done: int, *, eta_s: float | None = 12.0) -> RunProgress:
    return RunProgress(100, images_done, 2, 3.5, eta_s, workers=1)


def test_lifetime_rate_counts_everything_since_the_start() -> None:
    clock = HandClock()
    throughput = Throughput(clock=clock)
    clock.now += 10
    throughput.record(5)
    clock.now += 10
    throughput.record(30)
    assert throughput.lifetime_images_per_s() == pytest.approx(1.5)


def test_the_window_excludes_a_slow_start() -> None:
    clock = HandClock()
    throughput = Throughput(window_s=60, clock=clock)
    for second in range(600):
        clock.now = 1.0 + second
        throughput.record(0 if second < 300 else 2 * (second - 300))
    assert throughput.window_images_per_s() == pytest.approx(2.0, rel=0.05)
    assert throughput.lifetime_images_per_s() == pytest.approx(1.0, rel=0.05)


def test_images_of_a_lost_shard_never_make_the_rate_negative() -> None:
    clock = HandClock()
    throughput = Throughput(clock=clock)
    throughput.record(50)
    clock.now += 1
    throughput.record(10)
    clock.now += 61
    throughput.record(10)
    assert throughput.window_images_per_s() == 0.0


def test_eta_is_unknown_before_anything_was_done_and_zero_at_the_end() -> None:
    clock = HandClock()
    throughput = Throughput(clock=clock)
    clock.now += 5
    assert throughput.eta_s(10) is None
    throughput.record(10)
    assert throughput.eta_s(20) == pytest.approx(10.0)
    assert throughput.eta_s(0) == 0.0


def test_stage_shares_add_up_to_one() -> None:
    clock = StageClock()
    assert set(clock.shares().values()) == {0.0}
    clock.add({"read": 1.0, "infer": 3.0})
    assert clock.shares()["infer"] == pytest.approx(0.75)
    assert sum(clock.shares().values()) == pytest.approx(1.0)


def test_time_is_charged_to_a_stage_that_raises() -> None:
    clock = StageClock()
    with pytest.raises(RuntimeError), clock.time("decode"):
        raise RuntimeError
    assert clock.seconds()["decode"] > 0.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "unknown"),
        (0.4, "0 s"),
        (59.6, "1 min 00 s"),
        (190.0, "3 min 10 s"),
        (7500.0, "2 h 05 min"),
    ],
)
def test_durations_are_easy_to_read(seconds: float | None, words: str) -> None:
    assert format_duration(seconds) == words


def test_lines_come_every_ten_seconds_and_once_at_the_end() -> None:
    clock, stream = HandClock(), io.StringIO()
    display = LineProgress(stream, clock=clock)
    for done in (0, 1, 2):
        display.update(progress_of(done))
        clock.now += 6
    for _ in range(3):
        display.update(progress_of(100))
    lines = stream.getvalue().splitlines()
    assert lines == [
        "0/100 images, 3.50 images/s, ETA 12 s, 2 failed",
        "2/100 images, 3.50 images/s, ETA 12 s, 2 failed",
        "100/100 images, 3.50 images/s, 2 failed",
    ]


def test_lines_in_a_log_begin_with_their_time() -> None:
    stream = io.StringIO()
    LineProgress(stream, now=lambda: datetime(2026, 11, 26, 3, 12, 5, 999999, tzinfo=UTC)).note("Run complete.")
    assert stream.getvalue() == "2026-11-26T03:12:05Z Run complete.\n"


@pytest.mark.parametrize(
    ("done", "errors", "has_bug", "is_interrupted", "status"),
    [
        (100, 0, False, False, "complete"),
        (100, 5, False, False, "complete"),
        (100, 6, False, False, "over_error_budget"),
        (100, 1, True, False, "incomplete"),
        (99, 0, False, False, "incomplete"),
        (99, 0, False, True, "interrupted"),
        (100, 0, False, True, "complete"),
    ],
)
def test_how_a_run_ended(done: int, errors: int, has_bug: bool, is_interrupted: bool, status: str) -> None:
    judged, reason = judge(
        images=100,
        images_done=done,
        errors=errors,
        max_error_rate=0.05,
        has_bug=has_bug,
        is_interrupted=is_interrupted,
    )
    assert judged == status
    assert bool(reason) == (status != "complete")


@pytest.mark.parametrize(
    ("images", "errors", "is_any_ok", "floor", "status"),
    [
        (4, 1, True, 5, "complete"),
        (4, 2, True, 5, "complete"),
        (4, 3, True, 5, "over_error_budget"),
        (4, 4, False, 5, "over_error_budget"),
        (4, 1, True, 0, "over_error_budget"),
        (1, 1, False, 5, "over_error_budget"),
        # One new image, and it is bad; the other three failed before as well.
        (4, 1, False, 5, "over_error_budget"),
        (4, 0, False, 5, "complete"),
        (12, 5, True, 5, "complete"),
        (12, 6, True, 5, "over_error_budget"),
        (1000, 50, True, 5, "complete"),
        (1000, 51, True, 5, "over_error_budget"),
        (1000, 51, True, 51, "complete"),
    ],
)
def test_a_few_bad_images_are_no_failure_unless_nothing_is_ok(
    images: int, errors: int, is_any_ok: bool, floor: int, status: str
) -> None:
    judged, reason = judge(
        images=images,
        images_done=images,
        errors=errors,
        max_error_rate=0.05,
        max_errors=floor,
        is_any_ok=is_any_ok,
        has_bug=False,
        is_interrupted=False,
    )
    assert judged == status
    assert (f"{errors:,} of {count_of(images, 'image')} failed" in reason) == (status != "complete")


@pytest.mark.parametrize(("is_interrupted", "status"), [(False, "incomplete"), (True, "interrupted")])
def test_a_run_whose_input_is_still_being_listed_is_never_complete(is_interrupted: bool, status: str) -> None:
    judged, reason = judge(
        images=100,
        images_done=100,
        errors=0,
        max_error_rate=0.05,
        has_bug=False,
        is_interrupted=is_interrupted,
        is_planned=False,
    )
    assert judged == status
    assert "not listed to its end" in reason


@pytest.mark.parametrize(
    ("seconds", "words"),
    [({"infer": 93.0, "read": 7.0}, "model busy 93%"), ({"infer": 62.0, "read": 38.0}, "waiting for reads 38%")],
)
def test_the_progress_line_names_the_bottleneck(seconds: dict[str, float], words: str) -> None:
    stream = io.StringIO()
    line = LineProgress(stream, clock=HandClock())
    line.update(replace(progress_of(40), bottleneck=find_bottleneck(seconds)))
    assert stream.getvalue() == f"40/100 images, 3.50 images/s, ETA 12 s, 2 failed, {words}\n"
