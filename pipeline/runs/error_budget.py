"""How many bad images a run may have, and whether it can still end within that, or is better stopped now.

The images come in the order of their names, and what is wrong comes in folders: the first thousand images say
little about the rest. So when more fail than may, shards are sampled from all over the run, and a sequential test of
these decides.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.messages import ShardResult

# A person looks at a hundred bad images; a run with fewer is sooner ended than stopped.
MIN_ERRORS = 100
# With which a session stops a run that would have ended within its budget, over all looks together.
FALSE_STOP_PROBABILITY = 1e-4
# Shares of the wealth that are bet, each by a gambler of its own: a large share decides soon when every shard is a
# little too bad, a small one when few shards are wholly bad. 0.9 as a share of 1 would be lost with one flawless shard.
BETS = np.append(0.9, 2.0 ** -np.arange(1, 14))
MAX_REASONS_SHOWN = 3


def allowed_errors(images: int, max_error_rate: float, max_errors: int) -> int:
    """Return how many of `images` may fail: the share, or the floor `max_errors` where that is more.

    The floor is for small runs, in which one junk file is a large share. It never covers more than half of the images.

    Args:
        max_error_rate: 0 to 1, as the decimal number that was written: 0.29 of 100 is 29.
    """
    share = math.floor(Fraction(str(max_error_rate)) * images)
    return max(share, min(max_errors, images // 2))


def next_wealth(wealth: NDArray[np.float64], value: NDArray[np.float64], mean: NDArray[np.float64]) -> None:
    """Settle one round of bets, in place.

    Args:
        wealth: of each gambler, [..., BETS]; each begins with 1.
        value: what was observed, 0 to 1; [..., 1].
        mean: what it is at most on average if the hypothesis is true, given all known before; above 0; [..., 1].
    """
    wealth *= 1 + BETS * (value / mean - 1)


class SequentialTest:
    """Tests that values in [0, 1] have no larger means than is claimed, each given what was known before it.

    Testing by betting (Waudby-Smith and Ramdas, 2024, doi:10.1093/jrsssb/qkad009). A gambler who stakes the share c of
    the wealth on each value has it multiplied by 1 + c (value / mean - 1), which is 1 on average, or less, as long as
    the claim is true. So the wealth is a nonnegative supermartingale, also for dependent values and without
    replacement, and so is the mean of several gamblers'. By Ville's inequality (1939) it ever reaches 1 / p with a
    probability of p at most, however often one looks. For values that are 0 or 1 it is Wald's sequential probability
    ratio test (1945).
    """

    def __init__(self, false_alarm_probability: float) -> None:
        self._limit = 1 / false_alarm_probability
        self._wealth = np.ones(len(BETS))
        self.count = 0
        self.total = 0.0
        self.is_rejected = False

    def observe(self, value: float, mean: float) -> None:
        """Take a value in [0, 1] whose mean is claimed to be at most `mean`."""
        if self.is_rejected or mean <= 0:
            # What may not fail at all needs no statistics: its first error is one too many.
            return
        self.count += 1
        self.total += value
        next_wealth(self._wealth, np.array([value]), np.array([mean]))
        self.is_rejected = float(self._wealth.mean()) >= self._limit


@dataclass
class _Sampled:
    """A sampled shard: the largest mean of what it was sampled from, and its own value once it is done."""

    mean: float
    value: float | None = None


class ErrorBudget:
    """Judges a run while it goes on; called from one thread.

    A shard's value is its number of errors by the images of a whole shard. That of a sampled one is on average
    that of all shards it was sampled from, and if the run is to end within its budget, these have no more errors
    together than are left by then. Images of a shard fail together, and so the shards are observed and not the images.
    """

    def __init__(self, max_error_rate: float, max_errors: int = 0) -> None:
        """`max_error_rate`: 0 to 1; a rate equal to it is within. `max_errors`: see `allowed_errors`."""
        self._max_error_rate = max_error_rate
        self._max_errors = max_errors
        self._test = SequentialTest(FALSE_STOP_PROBABILITY)
        # In the order of sampling: shards that fail are sooner done than others, and would come first.
        self._sampled: dict[int, _Sampled] = {}
        self._next_warning_at = MIN_ERRORS

    def wants_sample(self, *, images_done: int, errors: int) -> bool:
        """Whether the next shard should be sampled from all that wait."""
        return errors >= MIN_ERRORS and errors > self._allowed(images_done) and not self._test.is_rejected

    def sampled(self, index: int, *, shards: int, shard_images: int, images: int, errors: int) -> None:
        """Note that a sampled shard is under way.

        Args:
            shards: from how many it was sampled, with the same probability each, itself included.
            shard_images: images of a shard, at most. images: of the whole run.
            errors: rows that are not ok by now; none of them is in these shards.
        """
        mean = (self._allowed(images) - errors) / (shard_images * shards)
        self._sampled[index] = _Sampled(mean)
        self._shard_images = shard_images

    def ended(self, report: ShardResult) -> None:
        """Note a committed shard."""
        sampled = self._sampled.get(report.index)
        if sampled is None:
            return
        sampled.value = report.fresh_errors / self._shard_images
        for index, first in list(self._sampled.items()):
            if first.value is None:
                break
            del self._sampled[index]
            self._test.observe(first.value, first.mean)

    def verdict(self, *, images: int, images_done: int, errors: int, reasons: Mapping[str, int]) -> str:
        """Say why the run cannot end within its budget; empty while it can.

        Args:
            images: of the whole run; images_done of them have their row, errors of these count against the budget.
            reasons: rows by reason, the most frequent first, for the sentence.
        """
        allowed = self._allowed(images)
        if errors < MIN_ERRORS or images_done >= images:
            return ""
        if errors > allowed:
            why = f"{allowed:,} are allowed in {images:,}"
        elif self._test.is_rejected:
            rate = self._test.total / self._test.count
            why = (
                f"{self._test.count:,} shards sampled from all over the run fail at a rate of {rate:.1%}, so that it "
                f"cannot end with {allowed:,} or fewer in {images:,} ({self._max_error_rate:.1%})"
            )
        else:
            return ""
        return (
            f"Stopped early: {errors:,} of {images_done:,} images failed, and {why}. {_worst(reasons)} "
            "Mend the cause and start anew with --fresh, or raise retry.max_error_rate and go on."
        )

    def warning(self, *, images_done: int, errors: int, reasons: Mapping[str, int]) -> str:
        """Say that more fail than may, while it is not known how many images there are; empty most of the time.

        It is said at MIN_ERRORS, and again whenever the errors have doubled.
        """
        if errors < self._next_warning_at or errors <= self._allowed(images_done):
            return ""
        self._next_warning_at = 2 * errors
        return (
            f"{errors:,} of {images_done:,} images failed so far, where {self._max_error_rate:.1%} may; the run goes "
            f"on while its input is still being listed. {_worst(reasons)}"
        )

    def _allowed(self, images: int) -> int:
        return allowed_errors(images, self._max_error_rate, self._max_errors)


def _worst(reasons: Mapping[str, int]) -> str:
    worst = "; ".join(f"{count:,} x {reason}" for reason, count in [*reasons.items()][:MAX_REASONS_SHOWN])
    return f"The worst reasons: {worst}."
