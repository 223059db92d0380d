"""Error budget: how many images may fail, and early stop by sampled error rate.

Images come in the order of their names, and bad ones mostly come by the folder: the first thousand images say little
about the rest. So once more images fail than allowed, shards are sampled uniformly at random from the rest of the run,
and a sequential test of their errors decides whether the run can still end within its budget.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.messages import ShardResult

# Below this a run is never stopped early: it ends soon, or its few failures do not justify a stop.
MIN_ERRORS = 100
# The probability that a session stops a run that would have ended within its budget, over all tests together.
FALSE_STOP_PROBABILITY = 1e-4
# Shares of the wealth that are bet, each by a gambler of its own. A large share decides soon when every shard is a
# little too bad, a small one when few shards are wholly bad. 0.9, because a share of 1 loses all with one good shard.
BETS = np.append(0.9, 2.0 ** -np.arange(1, 14))
MAX_REASONS_SHOWN = 3


def allowed_errors(images: int, max_error_rate: float, max_errors: int) -> int:
    """Return how many of `images` may fail: the share, or the floor `max_errors` where that is more.

    The floor is for small runs, in which one bad file is a large share. It never covers more than half of the images.

    Args:
        max_error_rate: 0 to 1, taken as the decimal number in the spec: 0.29 of 100 is 29.
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
    """Tests that values in [0, 1] have no larger means than claimed, each given everything known before it.

    Testing by betting (Waudby-Smith and Ramdas, 2024, doi:10.1093/jrsssb/qkad009). A gambler who stakes the share c of
    the wealth on each value has it multiplied by 1 + c (value / mean - 1), which is 1 on average, or less, as long as
    the claim is true. So the wealth is a nonnegative supermartingale, also for dependent values and without
    replacement, and so is the mean of several gamblers'. By Ville's inequality (1939) it ever reaches 1 / p with a
    probability of p at most, however often it is checked. For values that are 0 or 1 it is Wald's sequential
    probability ratio test (1945).
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
            # Where no image may fail, the first error is over the budget without a test.
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
    """Judges a run while it is in progress; called from one thread.

    The value of a shard is its number of errors divided by the images of a full shard. The expected value of a sampled
    shard is the mean of all shards that it was sampled from; if the run can end within its budget, these have together
    no more errors than the budget has left. Shards are observed instead of images, as images of a shard fail together.
    """

    def __init__(self, max_error_rate: float, max_errors: int = 0) -> None:
        """`max_error_rate`: 0 to 1; a rate equal to it is within. `max_errors`: see `allowed_errors`."""
        self._max_error_rate = max_error_rate
        self._max_errors = max_errors
        self._test = SequentialTest(FALSE_STOP_PROBABILITY)
        # In the order of sampling: shards with failures are done sooner than others, and would come first.
        self._sampled: dict[int, _Sampled] = {}
        self._next_warning_at = MIN_ERRORS

    def wants_sample(self, *, images_done: int, errors: int) -> bool:
        """Return whether the next shard should be sampled from all that wait."""
        return errors >= MIN_ERRORS and errors > self._allowed(images_done) and not self._test.is_rejected

    def sampled(self, index: int, *, shards: int, shard_images: int, images: int, errors: int) -> None:
        """Record that a sampled shard was handed out.

        Args:
            shards: from how many it was sampled uniformly, itself included.
            shard_images: images of a shard, at most. images: of the whole run.
            errors: rows so far that are not ok; none of them is in these shards.
        """
        mean = (self._allowed(images) - errors) / (shard_images * shards)
        self._sampled[index] = _Sampled(mean)
        self._shard_images = shard_images

    def ended(self, report: ShardResult) -> None:
        """Record the result of a committed shard."""
        sampled = self._sampled.get(report.index)
        if sampled is None:
            return
        sampled.value = report.new_errors / self._shard_images
        for index, first in list(self._sampled.items()):
            if first.value is None:
                break
            del self._sampled[index]
            self._test.observe(first.value, first.mean)

    def verdict(self, *, images: int, images_done: int, errors: int, reasons: Mapping[str, int]) -> str:
        """Return why the run cannot end within its budget; empty while it can.

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
                f"{self._test.count:,} shards sampled from the whole run fail at a rate of {rate:.1%}, so that it "
                f"cannot end with {allowed:,} or fewer in {images:,} ({self._max_error_rate:.1%})"
            )
        else:
            return ""
        return (
            f"Stopped early: {errors:,} of {images_done:,} images failed, and {why}. {_most_frequent(reasons)} "
            "Fix the cause and begin again with --fresh, or raise retry.max_error_rate and resume."
        )

    def warning(self, *, images_done: int, errors: int, reasons: Mapping[str, int]) -> str:
        """Return a warning that more images fail than allowed, for a run whose input is still being listed.

        It is returned at MIN_ERRORS errors, and again whenever the errors have doubled; empty otherwise.
        """
        if errors < self._next_warning_at or errors <= self._allowed(images_done):
            return ""
        self._next_warning_at = 2 * errors
        return (
            f"{errors:,} of {images_done:,} images failed so far, and {self._max_error_rate:.1%} are allowed; the run "
            f"continues while its input is still being listed. {_most_frequent(reasons)}"
        )

    def _allowed(self, images: int) -> int:
        return allowed_errors(images, self._max_error_rate, self._max_errors)


def _most_frequent(reasons: Mapping[str, int]) -> str:
    shown = "; ".join(f"{count:,} x {reason}" for reason, count in [*reasons.items()][:MAX_REASONS_SHOWN])
    return f"The most frequent reasons: {shown}."
