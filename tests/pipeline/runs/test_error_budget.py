"""A run that cannot end within its error budget is stopped early; one bad image, or one bad folder, stops no run."""

import random
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest

from pipeline.messages import ShardResult
from pipeline.runs.error_budget import (
    BETS,
    FALSE_STOP_PROBABILITY,
    MIN_ERRORS,
    ErrorBudget,
    SequentialTest,
    allowed_errors,
    next_wealth,
)

SHARD_IMAGES = 256


def report_of(index: int, errors: int, images: int = SHARD_IMAGES, repeats: int = 0) -> ShardResult:
    return ShardResult(index, {"ok": images - errors, "failed": errors}, 0, {}, 0, 0.0, repeats=repeats)


def simulate(
    errors: Sequence[int], *, max_error_rate: float = 0.05, seed: int = 0, sizes: Sequence[int] | None = None
) -> tuple[int, str]:
    """Do shards with the given numbers of errors, one after the other; return the shards done and the verdict."""
    choice = random.Random(seed)
    sizes = sizes or [SHARD_IMAGES] * len(errors)
    budget = ErrorBudget(max_error_rate)
    left = list(range(len(errors)))
    done = images_done = failed = 0
    while left:
        if budget.wants_sample(images_done=images_done, errors=failed):
            index = left.pop(choice.randrange(len(left)))
            waiting = len(left) + 1
            budget.sampled(index, shards=waiting, shard_images=SHARD_IMAGES, images=sum(sizes), errors=failed)
        else:
            index = left.pop(0)
        done += 1
        images_done += sizes[index]
        failed += errors[index]
        budget.ended(report_of(index, errors[index], sizes[index]))
        reasons = {"truncated JPEG": failed}
        sentence = budget.verdict(images=sum(sizes), images_done=images_done, errors=failed, reasons=reasons)
        if sentence:
            return done, sentence
    return done, ""


def test_a_run_in_which_everything_fails_is_stopped_after_a_few_shards() -> None:
    done, sentence = simulate([SHARD_IMAGES] * 10_000)
    assert done <= 10
    assert "sampled" in sentence
    assert f"{done * SHARD_IMAGES:,} x truncated JPEG" in sentence


@pytest.mark.parametrize("seed", range(20))
def test_a_bad_folder_at_the_beginning_does_not_stop_the_run(seed: int) -> None:
    errors = [SHARD_IMAGES] * 40 + [0] * 1000
    assert simulate(errors, seed=seed) == (1040, "")


@pytest.mark.parametrize("seed", range(20))
def test_a_rate_just_within_the_budget_is_never_stopped(seed: int) -> None:
    assert simulate([12] * 500, seed=seed) == (500, "")


def test_a_short_bad_shard_at_the_end_does_not_stop_the_run() -> None:
    sizes = [SHARD_IMAGES] * 100 + [7]
    assert simulate([12] * 100 + [7], sizes=sizes, max_error_rate=0.05) == (101, "")


@pytest.mark.parametrize(
    ("rate", "budget", "shards", "share"),
    [(0.08, 0.05, 1000, 0.06), (0.08, 0.05, 200, 0.3), (0.02, 0.01, 1000, 0.1), (0.003, 0.001, 4000, 0.1)],
)
def test_bad_images_everywhere_stop_the_run_long_before_the_budget_is_used(
    rate: float, budget: float, shards: int, share: float
) -> None:
    """8 % fail and 5 % are allowed: without statistics that is certain when 62.5 % are done."""
    for seed in range(5):
        errors = np.random.default_rng(seed).binomial(SHARD_IMAGES, rate, shards).tolist()
        done, sentence = simulate(errors, max_error_rate=budget, seed=seed)
        assert sentence
        assert done <= share * shards


@pytest.mark.parametrize(("shards", "share"), [(10_000, 0.25), (3000, 0.5)])
def test_wholly_bad_shards_stop_the_run_before_the_budget_is_used(shards: int, share: float) -> None:
    """8 % of the shards fail altogether, and 5 % are allowed: the case with the least information per shard."""
    for seed in range(3):
        bad = np.random.default_rng(seed).permutation(shards) < 0.08 * shards
        done, sentence = simulate((SHARD_IMAGES * bad).tolist(), seed=seed)
        assert sentence
        assert done <= share * shards


def test_a_rate_of_several_budgets_is_stopped_before_a_hundredth_is_done() -> None:
    choice = random.Random(1)
    done, sentence = simulate([SHARD_IMAGES if choice.random() < 0.3 else 0 for _ in range(10_000)])
    assert done < 100
    assert sentence


def arrangement(kind: str, shards: int, rate: float, source: np.random.Generator) -> np.ndarray:
    """Errors by shard, [shards], of a run that uses its budget up to the last image; part of a shard fails together."""
    total = int(rate * shards * SHARD_IMAGES)
    together = {"single images": 1, "half shards": SHARD_IMAGES // 2, "whole shards": SHARD_IMAGES}[kind]
    errors = np.zeros(shards, int)
    if together == 1:
        np.add.at(errors, source.integers(0, shards, total), 1)
    else:
        whole, rest = divmod(total, together)
        errors[: whole + 1] = [together] * whole + [rest]
    return errors


@pytest.mark.parametrize("kind", ["single images", "half shards", "whole shards"])
@pytest.mark.parametrize("budget", [0.001, 0.01, 0.05])
def test_a_run_within_its_budget_is_stopped_no_more_often_than_stated(kind: str, budget: float) -> None:
    """Runs that use exactly their budget, tested after every sampled shard."""
    runs, shards, looks, alarm = 2000, 1500, 200, 0.02
    source = np.random.default_rng(round(budget * 1000))
    values = arrangement(kind, shards, budget, source) / SHARD_IMAGES
    sampled = values[np.argsort(source.random((runs, shards), np.float32), axis=1)[:, :looks]]
    wealth, richest = np.ones((runs, len(BETS))), np.zeros(runs)
    seen = np.zeros(runs)
    for look in range(looks):
        mean = (budget * shards - seen) / (shards - look)
        is_open = mean > 0
        next_wealth(wealth, np.where(is_open, sampled[:, look], 0)[:, None], np.where(is_open, mean, 1)[:, None])
        seen += sampled[:, look]
        richest = np.maximum(richest, np.where(is_open, wealth.mean(axis=1), 0))
    # Three standard deviations of counting above what is allowed.
    assert (richest >= 1 / alarm).mean() <= alarm + 3 * (alarm / runs) ** 0.5
    assert (richest >= 1 / FALSE_STOP_PROBABILITY).sum() <= 2


@pytest.mark.parametrize("values", [(1.0, 0.0, 0.0, 0.0, 0.0, 0.0), (0.9, 0.3, 0.1, 0.0, 0.0, 0.2), (0.5,) * 6])
def test_no_order_of_sampling_gains_wealth_on_average(values: tuple[float, ...]) -> None:
    """Exact, over all orders: on average no stake gains anything against a claim that is true."""
    wealths = []
    for order in permutations(values):
        wealth, left = np.ones(len(BETS)), sum(values)
        for place, value in enumerate(order):
            if left > 1e-9:
                next_wealth(wealth, np.array([value]), np.array([left / (len(order) - place)]))
            left -= value
        wealths.append(wealth)
    assert np.mean(wealths, axis=0) == pytest.approx(np.ones(len(BETS)))


def test_a_claim_that_nothing_fails_needs_no_statistics() -> None:
    test = SequentialTest(0.01)
    test.observe(1.0, 0.0)
    assert (test.is_rejected, test.count) == (False, 0)


def test_shards_that_fail_at_once_do_not_come_before_those_sampled_earlier() -> None:
    budget = ErrorBudget(0.05)
    for index in range(20):
        budget.sampled(index, shards=1000 - index, shard_images=SHARD_IMAGES, images=256_000, errors=200)
    for index in range(1, 20):
        budget.ended(report_of(index, SHARD_IMAGES))
    asked = {"images": 256_000, "images_done": 5000, "errors": 5000, "reasons": {}}
    assert not budget.verdict(**asked)
    budget.ended(report_of(0, SHARD_IMAGES))
    assert budget.verdict(**asked)


def test_known_failures_are_not_observed() -> None:
    budget = ErrorBudget(0.05)
    for index in range(200):
        budget.sampled(index, shards=1000 - index, shard_images=SHARD_IMAGES, images=256_000, errors=200)
        budget.ended(report_of(index, SHARD_IMAGES, repeats=SHARD_IMAGES))
    assert not budget.verdict(images=256_000, images_done=60_000, errors=200, reasons={})


def test_a_budget_that_is_exceeded_already_stops_the_run_without_a_sample() -> None:
    budget = ErrorBudget(0.05)
    reasons = {"empty": 400, "a": 2, "b": 1, "c": 1}
    sentence = budget.verdict(images=10_000, images_done=600, errors=501, reasons=reasons)
    assert "501 of 600 images failed, and 500 are allowed in 10,000" in sentence
    assert "400 x empty; 2 x a; 1 x b." in sentence
    assert not budget.verdict(images=10_000, images_done=600, errors=500, reasons={})


@pytest.mark.parametrize("budget", [0.0, 0.05])
def test_a_few_bad_images_do_not_stop_the_run_whatever_the_budget(budget: float) -> None:
    judge = ErrorBudget(budget)
    assert not judge.verdict(images=200, images_done=MIN_ERRORS, errors=MIN_ERRORS - 1, reasons={})
    assert not judge.wants_sample(images_done=MIN_ERRORS, errors=MIN_ERRORS - 1)


def test_the_floor_holds_for_the_early_stop() -> None:
    asked = {"images": 10_000, "images_done": 400, "errors": 300, "reasons": {}}
    assert ErrorBudget(0.01).verdict(**asked)
    assert not ErrorBudget(0.01, 300).verdict(**asked)
    assert ErrorBudget(0.01, 299).verdict(**asked)
    assert not ErrorBudget(0.01, 300).wants_sample(images_done=800, errors=300)


def test_a_budget_of_everything_is_never_exceeded() -> None:
    assert simulate([SHARD_IMAGES] * 100, max_error_rate=1.0) == (100, "")


@pytest.mark.parametrize(
    ("images", "rate", "floor", "allowed"),
    [
        (4, 0.05, 5, 2),
        (1, 0.05, 5, 0),
        (12, 0.05, 5, 5),
        (1000, 0.05, 5, 50),
        (100, 0.29, 0, 29),
        (1_000_000_000, 0.29, 0, 290_000_000),
        (10, 0.0, 0, 0),
        (10, 1.0, 0, 10),
        (0, 0.05, 5, 0),
        (10_000, 1e-05, 0, 0),
    ],
)
def test_how_many_may_fail(images: int, rate: float, floor: int, allowed: int) -> None:
    assert allowed_errors(images, rate, floor) == allowed


def test_while_the_input_is_listed_a_warning_comes_at_every_doubling_of_errors() -> None:
    budget = ErrorBudget(0.05)
    reported = [
        done for done in range(1, 1001) if budget.warning(images_done=done, errors=done // 2, reasons={"bad": done})
    ]
    assert reported == [200, 400, 800]
    assert not ErrorBudget(0.5).warning(images_done=1000, errors=500, reasons={})
    sentence = ErrorBudget(0.05).warning(images_done=1000, errors=200, reasons={"empty": 150, "gone": 50})
    assert "200 of 1,000 images failed so far, and 5.0% are allowed" in sentence
    assert "150 x empty; 50 x gone." in sentence


def test_observations_are_counted_until_the_claim_is_rejected() -> None:
    test = SequentialTest(1e-4)
    for value in (0.25, 1.0, 0.25):
        test.observe(value, 0.5)
    assert (test.count, test.total, test.is_rejected) == (3, 1.5, False)
    while not test.is_rejected:
        test.observe(1.0, 0.01)
    seen = test.count
    test.observe(1.0, 0.01)
    assert test.count == seen
