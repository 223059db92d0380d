"""How long a run takes on a pool of workers, and what it costs: pure functions of a worker's rate and the work.

A run is start-up, then the network on all workers, then a tail in which the last shards end at different times, then
the last commit. A worker's rate is of the time in which it has a shard, so that start-up and tail are counted once.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.errors import SpecError

RateSource = Literal["run", "probe", "image", "given"]
Verdict = Literal["yes", "perhaps", "no"]
RESAMPLES = 1000
# Fewer rounds say nothing about how much a rate varies.
MIN_ROUNDS = 3
# Of one shard in flight half is done on average when its worker is taken away; the second one is not begun.
LOST_SHARDS = 0.5
# Of a spot worker's time at least this must be useful; below, the estimate means nothing.
MIN_USEFUL_SHARE = 0.1


@dataclass(frozen=True)
class WorkerRate:
    """The images per second of one worker while it has a shard.

    low, high: the 10th and 90th percentile of the mean of what was measured; None where one measurement does not say.
    source: an earlier run, a probe, one timed image, or given by hand. description: the same as text.
    machine: the CPU or GPU it was measured on, "" when that is unknown.
    start_up_s: from the command's start until the workers have their model; None when it is unknown.
    write_s: of writing one shard's tables.
    """

    images_per_s: float
    low: float | None
    high: float | None
    source: RateSource
    description: str
    machine: str = ""
    start_up_s: float | None = None
    write_s: float = 0.0


@dataclass(frozen=True)
class Work:
    """What is left to do: images in shards; listing_s: how long listing the input takes, beside the work."""

    images: int
    shards: int
    listing_s: float = 0.0


@dataclass(frozen=True)
class Spot:
    """Workers that may be taken away.

    share: of the workers, 0 to 1. price_per_hour: of one of them; None without a price.
    interruptions_per_hour: of one of them.
    """

    share: float
    price_per_hour: float | None
    interruptions_per_hour: float


@dataclass(frozen=True)
class PricedPool:
    """A worker pool that a run could have: from `least` workers at the start to `most` later.

    price_per_hour: of one worker that is not a spot worker; None without a price.
    """

    least: int
    most: int
    price_per_hour: float | None = None
    spot: Spot | None = None

    @property
    def mean_price(self) -> float | None:
        """The price of one worker for an hour, spot workers included; None where one of the prices is unknown."""
        spot = self.spot
        if spot is None or spot.share == 0:
            return self.price_per_hour
        if spot.price_per_hour is None or (self.price_per_hour is None and spot.share < 1):
            return None
        return spot.share * spot.price_per_hour + (1 - spot.share) * (self.price_per_hour or 0.0)


@dataclass(frozen=True)
class Estimate:
    """How long a run takes on one pool, in seconds, and its cost.

    start_up_s, model_s, tail_s, listing_wait_s, commit_s: the parts of `seconds`. listing_wait_s: what listing the
        input takes longer than all the work. low_s, high_s: the range of `seconds`; None without a range of the rate.
    redone_share: of the spot workers' time, spent on work that is done again and on starting anew.
    worker_hours: of all workers from start to end. amount, low_amount, high_amount: of money; None without a price.
    """

    pool: PricedPool
    start_up_s: float
    model_s: float
    tail_s: float
    listing_wait_s: float
    commit_s: float
    redone_share: float
    worker_hours: float
    amount: float | None
    low_s: float | None = None
    high_s: float | None = None
    low_amount: float | None = None
    high_amount: float | None = None

    @property
    def seconds(self) -> float:
        """From the command's start to its end."""
        return self.start_up_s + self.model_s + self.tail_s + self.listing_wait_s + self.commit_s


def estimate_run(
    pool: PricedPool, work: Work, rate: WorkerRate, *, start_up_s: float, scale_up_s: float | None = None
) -> Estimate:
    """Estimate a run.

    Args:
        start_up_s: from the command's start until the first workers have their model.
        scale_up_s: from then until the workers beyond `pool.least` have theirs; `start_up_s` when None.

    Raises:
        SpecError: spot workers would be taken away more often than they end a shard.
    """
    arrival_s = start_up_s if scale_up_s is None else scale_up_s

    def at(images_per_s: float) -> Estimate:
        return _estimate_at(pool, work, images_per_s, rate.write_s, start_up_s=start_up_s, arrival_s=arrival_s)

    expected = at(rate.images_per_s)
    if rate.low is None or rate.high is None or rate.low <= 0:
        return expected
    slow, fast = at(min(rate.low, rate.images_per_s)), at(max(rate.high, rate.images_per_s))
    return replace(expected, low_s=fast.seconds, high_s=slow.seconds, low_amount=fast.amount, high_amount=slow.amount)


def _estimate_at(
    pool: PricedPool, work: Work, images_per_s: float, write_s: float, *, start_up_s: float, arrival_s: float
) -> Estimate:
    if not work.images or not work.shards:
        return Estimate(pool, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None if pool.mean_price is None else 0.0)
    shard_s = work.images / work.shards / images_per_s
    redone = _redone_share(pool.spot, shard_s, start_up_s)
    useful = 1.0 - (pool.spot.share * redone if pool.spot else 0.0)
    rate = images_per_s * useful
    least, most = min(pool.least, work.shards), min(pool.most, work.shards)
    model_s = _model_s(work.images, rate, least, most, arrival_s)
    workers = most if model_s > arrival_s else least
    # The busiest worker does this many shards, where all take the same time.
    rounds = math.ceil(work.shards / workers)
    tail_s = max(0.0, rounds - work.shards / workers) * shard_s / useful
    work_s = start_up_s + model_s + tail_s
    listing_wait_s = max(0.0, work.listing_s - work_s)
    seconds = work_s + listing_wait_s + write_s
    before_s = min(seconds, start_up_s + arrival_s)
    worker_hours = (pool.least * before_s + pool.most * (seconds - before_s)) / 3600
    price = pool.mean_price
    amount = None if price is None else worker_hours * price
    return Estimate(pool, start_up_s, model_s, tail_s, listing_wait_s, write_s, redone, worker_hours, amount)


def _model_s(images: int, rate: float, least: int, most: int, arrival_s: float) -> float:
    """Return the time of the work without a tail: at first by the least workers, from `arrival_s` on by the most."""
    if least == most or images <= least * rate * arrival_s:
        return images / (least * rate)
    return arrival_s + (images - least * rate * arrival_s) / (most * rate)


def _redone_share(spot: Spot | None, shard_s: float, restart_s: float) -> float:
    if spot is None or spot.share == 0:
        return 0.0
    share = spot.interruptions_per_hour / 3600 * (LOST_SHARDS * shard_s + restart_s)
    if share > 1 - MIN_USEFUL_SHARE:
        raise SpecError(
            f"With {spot.interruptions_per_hour:g} interruptions of each spot worker per hour (--spot-interruptions) "
            f"nearly all of their work would be lost: a shard takes {shard_s:,.0f} s and a new worker's start "
            f"{restart_s:,.0f} s; make shards smaller (--shard-images), or name a lower rate."
        )
    return share


def judge(seconds: float, high_s: float | None, limit_s: float) -> Verdict:
    """Return whether a run ends within a limit: also at the slow end of its range, only as expected, or not."""
    if seconds > limit_s:
        return "no"
    return "perhaps" if high_s is not None and high_s > limit_s else "yes"


def mean_range(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 10th and 90th percentile of the mean, by a bootstrap with a fixed seed; None for too few values."""
    if len(values) < MIN_ROUNDS:
        return None
    generator = random.Random(0)  # noqa: S311 - resampling, not a secret
    means = sorted(sum(generator.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES))
    return means[RESAMPLES // 10], means[RESAMPLES * 9 // 10]
