"""Throughput over time, from when the run's shards were committed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.output.parts import Part

MOST_BINS = 48
_WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)
# Clocks of the store and of the driver differ.
_SLACK = timedelta(minutes=10)


@dataclass(frozen=True)
class Throughput:
    """Images per second in equal parts of a run's time.

    begin: when the first part begins, UTC. width_s: how long each part is; the last one may be shorter. rates: images
    per second, [parts]. images: how many they cover.
    """

    begin: datetime
    width_s: float
    rates: tuple[float, ...]
    images: int


def measure_throughput(
    parts: Sequence[Part],
    written: Mapping[str, datetime],
    images_of_shard: Mapping[int, int],
    *,
    began: datetime,
    ended: datetime | None,
) -> Throughput | str:
    """Measure throughput by the time at which each part of `images` was written, which commits its shard.

    Args:
        parts: the committed parts.
        written: when files were written, by name.
        images_of_shard: by shard.
        began: when the run was created. ended: when its last session ended; None while it works or if unknown.

    Returns:
        The throughput; or why it is not known: a copied output has the times of the copy, compacted parts those of the
        compaction.
    """
    commits = [
        (written[part.name], sum(images_of_shard.get(shard, 0) for shard in part.shards))
        for part in parts
        if not part.is_compacted and part.name in written
    ]
    known, images = sum(count for _, count in commits), sum(images_of_shard.values())
    if not images:
        return "No shard is committed yet."
    if any(part.is_compacted for part in parts) and known < images:
        return "The run's parts were compacted, so when each shard was committed is not recorded any more."
    if known < images:
        return "The store does not say when each shard was committed."
    commits.sort()
    if commits[0][0] < began - _SLACK or (ended is not None and commits[-1][0] > ended + _SLACK):
        return "The files are dated outside the run, as after a copy, so when each shard was committed is not known."
    begin, end = min(began, commits[0][0]), commits[-1][0]
    seconds = max((end - begin).total_seconds(), 1.0)
    width = next((width for width in _WIDTHS_S if seconds / width <= MOST_BINS), None)
    width = width or math.ceil(seconds / MOST_BINS / 86400) * 86400
    counts = [0] * math.ceil(seconds / width)
    for moment, count in commits:
        counts[min(int((moment - begin).total_seconds() / width), len(counts) - 1)] += count
    lengths = [float(width)] * (len(counts) - 1) + [max(seconds - width * (len(counts) - 1), 1.0)]
    rates = tuple(count / length for count, length in zip(counts, lengths, strict=True))
    return Throughput(begin, width, rates, images)
