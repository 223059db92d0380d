"""The population stability index of two samples of histograms, and what chance makes of it.

The index is the sum over bins of (p - q) ln(p / q), with the shares p of one sample and q of the other: the symmetric
Kullback-Leibler divergence. Limits of 0.1 and 0.25 are the customary ones (N. Siddiqi, Credit Risk Scorecards, Wiley
2006, chapter 10). They take no account of how many were counted; of two samples of n and m from one population the
index is about chi-square with bins - 1 degrees of freedom, times 1/n + 1/m (B. Yurdakul, J. Naranjo, Statistical
properties of the population stability index, Journal of Risk Model Validation 14(4), 2020).

Instances of one image are alike, so they do not count as so many independent ones. They count as (sum m)^2 / sum m^2
for m instances an image: the effective sample size where all instances of an image are the same (L. Kish, Survey
Sampling, Wiley 1965, section 5.4). That is cautious: a few crowded images cause no alarm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.results.drift.result import Level, MeasureDrift

SHIFT_PSI = 0.1
ALARM_PSI = 0.25
# How often chance alone exceeds the limit: five measures of thirty runs give one such alarm in seven tables.
ALPHA = 0.001
# Fewer say nothing about a population, whatever the formula gives for them.
MIN_IMAGES = 30
# Below this many expected in a bin the chi-square distribution does not hold (W. G. Cochran, Biometrics 10, 1954).
MIN_EXPECTED = 5.0
OTHER = "other"


@dataclass(frozen=True)
class Histogram:
    """Counts by bin, [bins], and how many independent ones they are worth (`effective`)."""

    counts: NDArray[np.float64]
    effective: float

    @property
    def shares(self) -> NDArray[np.float64]:
        """The share of each bin, [bins]; zeros where nothing was counted."""
        return self.counts / max(float(self.counts.sum()), 1.0)


def effective_size(total: float, squares: float) -> float:
    """Return Kish's effective sample size of `total` instances, with the sum of squares of those of each image."""
    return total * total / squares if squares else 0.0


def compare(
    measure: str, labels: Sequence[str], sample: Histogram, reference: Histogram | None, *, is_ordered: bool
) -> MeasureDrift:
    """Compare a sample with its reference.

    Args:
        labels: of the bins, in order.
        reference: None where there is none, or too few images.
        is_ordered: whether neighbouring bins are alike, so that rare ones are merged with their neighbours; else they
            are merged into one, "other".
    """
    shares = tuple(map(float, sample.shares))
    if reference is None:
        return MeasureDrift(measure, Level.NONE, None, None, tuple(labels), shares, ())
    group = _groups(sample, reference, is_ordered=is_ordered)
    is_enough = int(group.max(initial=0)) > 0
    if not is_enough:
        # Too few to fill two bins: the index of the plain bins, which chance may always explain.
        group = np.arange(len(labels))
    psi = _index(sample, reference, group)
    chance = _chance(sample, reference, len(set(group.tolist()))) if is_enough else None
    merged = _labels(labels, group, is_ordered=is_ordered)
    return MeasureDrift(
        measure,
        _level(psi, chance),
        psi,
        chance,
        merged,
        tuple(map(float, _grouped(sample.shares, group))),
        tuple(map(float, _grouped(reference.shares, group))),
    )


def _level(psi: float, chance: float | None) -> Level:
    if psi < SHIFT_PSI:
        return Level.STABLE
    if chance is None or psi <= chance:
        return Level.UNCLEAR
    return Level.ALARM if psi >= ALARM_PSI else Level.SHIFT


def _index(sample: Histogram, reference: Histogram, group: NDArray[np.int64]) -> float:
    """Return the index; 0 where nothing was counted."""
    if not len(group) or not sample.effective or not reference.effective:
        return 0.0
    p, q = (_smoothed(_grouped(each.shares, group), each.effective) for each in (sample, reference))
    return float(((p - q) * np.log(p / q)).sum())


def _chance(sample: Histogram, reference: Histogram, bins: int) -> float:
    """Return the index that chance alone exceeds with the probability ALPHA."""
    from scipy.special import chdtri

    return float(chdtri(bins - 1, ALPHA)) * (1 / sample.effective + 1 / reference.effective)


def _grouped(shares: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(np.bincount(group, shares), np.float64)


def _smoothed(shares: NDArray[np.float64], effective: float) -> NDArray[np.float64]:
    """Return shares without zeros: half a one more in each bin (H. Jeffreys' prior), so that the logarithm exists."""
    return (shares * effective + 0.5) / (effective + 0.5 * len(shares))


def _groups(sample: Histogram, reference: Histogram, *, is_ordered: bool) -> NDArray[np.int64]:
    """Return the number of each bin's group, [bins] from 0: in both samples together each holds enough."""
    total = sample.effective + reference.effective
    pooled = (sample.shares * sample.effective + reference.shares * reference.effective) / max(total, 1.0)
    expected = pooled * min(sample.effective, reference.effective)
    return _merge_neighbours(expected) if is_ordered else _merge_rare(expected)


def _merge_neighbours(expected: NDArray[np.float64]) -> NDArray[np.int64]:
    groups, number, held = [], 0, 0.0
    for place, value in enumerate(expected.tolist()):
        groups.append(number)
        held += value
        if held >= MIN_EXPECTED and expected[place + 1 :].sum() >= MIN_EXPECTED:
            number, held = number + 1, 0.0
    return np.array(groups, np.int64)


def _merge_rare(expected: NDArray[np.float64]) -> NDArray[np.int64]:
    is_rare = expected < MIN_EXPECTED
    # One bin of the rare ones, with the rarest others if it would still be rare.
    for place in np.argsort(expected, kind="stable").tolist():
        if not is_rare.any() or expected[is_rare].sum() >= MIN_EXPECTED:
            break
        is_rare[place] = True
    groups = np.cumsum(~is_rare) - 1
    groups[is_rare] = int((~is_rare).sum())
    return groups.astype(np.int64)


def _labels(labels: Sequence[str], group: NDArray[np.int64], *, is_ordered: bool) -> tuple[str, ...]:
    merged = []
    for number in range(int(group.max(initial=-1)) + 1):
        members = [label for label, place in zip(labels, group.tolist(), strict=True) if place == number]
        if len(members) == 1:
            merged.append(members[0])
        else:
            merged.append(f"{members[0]} .. {members[-1]}" if is_ordered else OTHER)
    return tuple(merged)
