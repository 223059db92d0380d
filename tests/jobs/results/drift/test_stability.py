"""The population stability index: its formula, what chance makes of it, rare bins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.results.drift.result import Level
from jobs.results.drift.stability import ALPHA, MIN_EXPECTED, Histogram, compare, effective_size

LABELS = tuple("abcdefgh")
counts = st.lists(st.integers(0, 3000), min_size=len(LABELS), max_size=len(LABELS))


def histogram(numbers: "list[int] | np.ndarray", effective: float | None = None) -> Histogram:
    values = np.asarray(numbers, float)
    return Histogram(values, float(values.sum()) if effective is None else effective)


def test_the_index_is_the_symmetric_divergence() -> None:
    sample, reference = histogram([700, 300]), histogram([500, 500])
    found = compare("x", ("a", "b"), sample, reference, is_ordered=False)
    p, q = np.array([700.5, 300.5]) / 1001, np.array([0.5, 0.5])
    assert found.psi == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert found.level is Level.SHIFT
    assert (found.shares, found.reference) == ((0.7, 0.3), (0.5, 0.5))


@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.parametrize("size", [60, 2000])
def test_chance_alone_seldom_exceeds_its_limit(size: int, is_ordered: bool) -> None:
    rng = np.random.default_rng(1)
    shares = np.array([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005])
    exceeded = 0
    for _ in range(1000):
        one, other = (rng.multinomial(size, shares) for _ in range(2))
        found = compare("x", LABELS, histogram(one), histogram(other), is_ordered=is_ordered)
        assert found.psi is not None
        assert found.chance is not None
        exceeded += found.psi > found.chance
    # One expected; ten would have a probability of 1e-7.
    assert exceeded < 1000 * ALPHA + 9


def test_instances_of_crowded_images_cause_no_alarm_by_chance() -> None:
    rng = np.random.default_rng(2)
    alarms = {True: 0, False: 0}
    for _ in range(300):
        sides = []
        for _ in range(2):
            # Forty images, whose instances are all of one category.
            numbers = rng.geometric(0.1, 40)
            categories = rng.integers(0, 4, 40)
            sides.append((np.bincount(categories, numbers, 4), effective_size(numbers.sum(), (numbers**2).sum())))
        for is_effective in (True, False):
            made = [histogram(values, effective if is_effective else None) for values, effective in sides]
            found = compare("x", LABELS[:4], *made, is_ordered=False)
            alarms[is_effective] += found.level in (Level.SHIFT, Level.ALARM)
    assert alarms[True] <= 3
    # As so many independent instances they would.
    assert alarms[False] > 60


@settings(max_examples=100)
@given(counts, counts, st.booleans())
def test_any_counts_have_an_index_and_bins_are_never_lost(one: list[int], other: list[int], is_ordered: bool) -> None:
    sample, reference = histogram(one), histogram(other)
    found = compare("x", LABELS, sample, reference, is_ordered=is_ordered)
    assert found.psi is not None
    assert found.psi >= 0
    assert np.isfinite(found.psi)
    assert len(found.bins) == len(found.shares) == len(found.reference)
    for shares, total in ((found.shares, sum(one)), (found.reference, sum(other))):
        assert sum(shares) == pytest.approx(1.0 if total else 0.0)
    again = compare("x", LABELS, reference, sample, is_ordered=is_ordered)
    assert again.psi == pytest.approx(found.psi)


def test_rare_bins_are_merged() -> None:
    sample, reference = histogram([900, 90, 4, 3, 3]), histogram([900, 95, 3, 1, 1])
    named = compare("x", LABELS[:5], sample, reference, is_ordered=False)
    assert named.bins == ("a", "b", "other")
    assert named.shares[-1] == pytest.approx(0.01)
    ordered = compare("x", LABELS[:5], sample, reference, is_ordered=True)
    assert ordered.bins == ("a", "b", "c .. e")
    assert min(named.shares[-1], named.reference[-1]) * 1000 >= MIN_EXPECTED
    # Where all bins together hold too few, no index is an alarm.
    alone = compare("x", LABELS[:2], histogram([1, 2]), histogram([2, 1]), is_ordered=False)
    assert (alone.bins, alone.chance, alone.level) == (("a", "b"), None, Level.UNCLEAR)


def test_a_large_index_of_few_is_unclear() -> None:
    few = compare("x", ("a", "b"), histogram([15, 15]), histogram([22, 8]), is_ordered=False)
    many = compare("x", ("a", "b"), histogram([1500, 1500]), histogram([2200, 800]), is_ordered=False)
    assert (few.level, many.level) == (Level.UNCLEAR, Level.SHIFT)


def test_without_a_reference_there_are_shares_only() -> None:
    found = compare("x", ("a", "b"), histogram([1, 3]), None, is_ordered=False)
    assert (found.level, found.psi, found.reference, found.shares) == (Level.NONE, None, (), (0.25, 0.75))
    assert effective_size(0, 0) == 0
