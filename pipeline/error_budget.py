"""Whether a run can still end within its error budget, or is better stopped now.

The images come in the order of their names, and what is wrong comes in folders: the first thousand images say
little about the rest. So when more fail than may, shards from all over the run are drawn by lot, and only what
these show is taken for what is to come.
"""

import math
from collections.abc import Mapping

from pipeline.reports import ShardReport

# A person looks at a hundred bad images; a run with fewer is sooner ended than stopped.
MIN_ERRORS = 100
# Shards drawn at first, twice as many in each later round. Sixteen that fail altogether show, with the confidence
# below, that half of all will.
SAMPLE_SHARDS = 16
MAX_SAMPLE_SHARDS = 128
# One-sided, standard normal: a round of drawing condemns a run that would have ended well once in ten thousand.
CONFIDENCE_Z = 3.72
MAX_REASONS_SHOWN = 3


class ErrorBudget:
    """Judges a run while it goes on; called from one thread."""

    def __init__(self, max_error_rate: float) -> None:
        """`max_error_rate`: 0 to 1; a rate equal to it is within."""
        self._max_error_rate = max_error_rate
        self._drawn: set[int] = set()
        self._to_draw = 0
        self._size = SAMPLE_SHARDS // 2
        self._next_round_at = 0
        # What stood when the round began: the sample speaks of all that was not done then, and of nothing else.
        self._done_before = 0
        self._errors_before = 0
        self._rates: list[float] = []
        self._next_warning_at = MIN_ERRORS

    def wants_sample(self, *, images_done: int, errors: int) -> bool:
        """Whether the next shard should be drawn by lot."""
        is_suspicious = errors >= MIN_ERRORS and errors > self._max_error_rate * images_done
        if is_suspicious and not self._to_draw and not self._drawn and images_done >= self._next_round_at:
            self._size = self._to_draw = min(MAX_SAMPLE_SHARDS, 2 * self._size)
            self._done_before, self._errors_before, self._rates = images_done, errors, []
            # Out of order costs readings of the manifest: not all the time.
            self._next_round_at = 2 * images_done
        return self._to_draw > 0

    def drew(self, index: int) -> None:
        """Note that a shard drawn by lot is under way."""
        self._drawn.add(index)
        self._to_draw -= 1

    def ended(self, report: ShardReport) -> None:
        """Note a committed shard."""
        if report.index in self._drawn and report.images:
            self._drawn.remove(report.index)
            self._rates.append(1.0 - report.statuses.get("ok", 0) / report.images)

    def verdict(self, *, images: int, images_done: int, errors: int, reasons: Mapping[str, int]) -> str:
        """Say why the run cannot end within its budget; empty while it can.

        Args:
            images: of the whole run; images_done of them have their row, errors of these are not ok.
            reasons: rows by reason, the most frequent first, for the sentence.
        """
        allowed = math.floor(self._max_error_rate * images + 1e-9)
        if errors < MIN_ERRORS or errors >= images:
            return ""
        if errors > allowed:
            why = f"{allowed:,} are allowed in {images:,}"
        elif self._errors_before + self._least_rate() * (images - self._done_before) > allowed:
            rate = self._least_rate()
            why = f"shards drawn by lot show a rate of {rate:.0%} at least where {self._max_error_rate:.1%} is allowed"
        else:
            return ""
        return (
            f"Stopped early: {errors:,} of {images_done:,} images failed, and {why}. {_worst(reasons)} "
            "Mend the cause and start anew with --fresh, or raise retry.max_error_rate and go on."
        )

    def warning(self, *, images_done: int, errors: int, reasons: Mapping[str, int]) -> str:
        """Say that more fail than may, while nobody knows how many images there are; empty most of the time.

        It is said at MIN_ERRORS, and again whenever the errors have doubled.
        """
        if errors < self._next_warning_at or errors <= self._max_error_rate * images_done:
            return ""
        self._next_warning_at = 2 * errors
        return (
            f"{errors:,} of {images_done:,} images failed so far, where {self._max_error_rate:.1%} may; the run goes "
            f"on while its input is still being listed. {_worst(reasons)}"
        )

    def _least_rate(self) -> float:
        """The error rate of what the round was drawn from, at least: Wilson's lower bound (1927).

        Images of a shard fail together, so each shard counts as one observation whose value is its error rate;
        its variance is at most that of a coin, for which the bound is made.
        """
        count = len(self._rates)
        if self._to_draw or self._drawn or not count:
            # Shards that fail are sooner done than others; only the whole round is fair.
            return 0.0
        rate, square = sum(self._rates) / count, CONFIDENCE_Z**2 / count
        spread = CONFIDENCE_Z * math.sqrt(rate * (1 - rate) / count + square / (4 * count))
        return max(0.0, (rate + square / 2 - spread) / (1 + square))


def _worst(reasons: Mapping[str, int]) -> str:
    worst = "; ".join(f"{count:,} x {reason}" for reason, count in [*reasons.items()][:MAX_REASONS_SHOWN])
    return f"The worst reasons: {worst}."
