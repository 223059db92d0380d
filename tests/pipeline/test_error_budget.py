"""A run without hope is stopped early; one bad image, or one bad folder, is no such run."""

import random

import pytest

from pipeline.error_budget import MIN_ERRORS, SAMPLE_SHARDS, ErrorBudget
from pipeline.reports import ShardReport

SHARD_IMAGES = 256


def report_of(index: int, errors: int) -> ShardReport:
    return ShardReport(index, {"ok": SHARD_IMAGES - errors, "failed": errors}, 0, {}, 0, 0.0)


def simulate(errors: list[int], *, max_error_rate: float = 0.05, seed: int = 0) -> tuple[int, str]:
    """Do shards with so many errors each, one after the other; returns the shards done and the verdict."""
    lot = random.Random(seed)
    budget = ErrorBudget(max_error_rate)
    left = list(range(len(errors)))
    done = failed = 0
    while left:
        is_drawn = budget.wants_sample(images_done=done * SHARD_IMAGES, errors=failed)
        index = left.pop(lot.randrange(len(left)) if is_drawn else 0)
        if is_drawn:
            budget.drew(index)
        done += 1
        failed += errors[index]
        budget.ended(report_of(index, errors[index]))
        sentence = budget.verdict(
            images=len(errors) * SHARD_IMAGES,
            images_done=done * SHARD_IMAGES,
            errors=failed,
            reasons={"truncated JPEG": failed},
        )
        if sentence:
            return done, sentence
    return done, ""


def test_a_run_in_which_everything_fails_is_stopped_after_one_sample() -> None:
    done, sentence = simulate([SHARD_IMAGES] * 10_000)
    assert done <= 2 + SAMPLE_SHARDS
    assert "shards drawn by lot show a rate of" in sentence
    assert "4,352 x truncated JPEG" in sentence


@pytest.mark.parametrize("seed", range(20))
def test_a_bad_folder_at_the_beginning_stops_nothing(seed: int) -> None:
    errors = [SHARD_IMAGES] * 40 + [0] * 1000
    assert simulate(errors, seed=seed) == (1040, "")


@pytest.mark.parametrize("seed", range(20))
def test_a_rate_just_within_the_budget_is_never_stopped(seed: int) -> None:
    assert simulate([12] * 500, seed=seed) == (500, "")


def test_a_rate_of_several_budgets_is_stopped_before_a_tenth_is_done() -> None:
    lot = random.Random(1)
    done, sentence = simulate([SHARD_IMAGES if lot.random() < 0.3 else 0 for _ in range(10_000)])
    assert done < 1000
    assert sentence


def test_what_no_remaining_image_can_mend_is_stopped_without_a_sample() -> None:
    budget = ErrorBudget(0.05)
    reasons = {"empty": 400, "a": 2, "b": 1, "c": 1}
    sentence = budget.verdict(images=10_000, images_done=600, errors=501, reasons=reasons)
    assert "501 of 600 images failed, and 500 are allowed in 10,000" in sentence
    assert "400 x empty; 2 x a; 1 x b." in sentence
    assert not budget.verdict(images=10_000, images_done=600, errors=500, reasons={})


@pytest.mark.parametrize("budget", [0.0, 0.05])
def test_a_few_bad_images_stop_nothing_whatever_the_budget(budget: float) -> None:
    judge = ErrorBudget(budget)
    assert not judge.verdict(images=200, images_done=MIN_ERRORS, errors=MIN_ERRORS - 1, reasons={})
    assert not judge.wants_sample(images_done=MIN_ERRORS, errors=MIN_ERRORS - 1)


def test_a_budget_of_everything_is_never_exceeded() -> None:
    assert simulate([SHARD_IMAGES] * 100, max_error_rate=1.0) == (100, "")


def test_while_the_input_is_listed_too_many_errors_are_told_at_every_doubling() -> None:
    budget = ErrorBudget(0.05)
    told = [
        done for done in range(1, 1001) if budget.warning(images_done=done, errors=done // 2, reasons={"bad": done})
    ]
    assert told == [200, 400, 800]
    assert not ErrorBudget(0.5).warning(images_done=1000, errors=500, reasons={})
    sentence = ErrorBudget(0.05).warning(images_done=1000, errors=200, reasons={"empty": 150, "gone": 50})
    assert "200 of 1,000 images failed so far, where 5.0% may" in sentence
    assert "150 x empty; 50 x gone." in sentence
