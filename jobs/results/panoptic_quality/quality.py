"""Panoptic quality: which segments of an image are right, and what a category's segments are worth.

The definition is that of "Panoptic Segmentation" (Kirillov and others, CVPR 2019, arXiv:1801.00868, section 4), in the
details that of the authors' program panopticapi (evaluation.py), whose numbers these are.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

VOID = 0
"""The number of a pixel that belongs to no segment."""
# With an IoU above it, a segment can match one other only: segments do not overlap.
MATCH_IOU = 0.5
# A segment of which more than this lies in void or crowd is neither right nor wrong.
MOST_IGNORED = 0.5


@dataclass(frozen=True)
class Segment:
    """One segment of an image: its number there, the place of its category, its pixels; is_crowd: of many objects."""

    number: int
    label: int
    area: int
    is_crowd: bool = False


@dataclass(frozen=True)
class SegmentCounts:
    """Counts of segments of one category.

    right: found segments that match one of the truth. wrong: those that match none. missed: segments of the truth
    without a match. iou: the sum of the IoUs of the matches.
    """

    right: int = 0
    wrong: int = 0
    missed: int = 0
    iou: float = 0.0

    def __add__(self, other: "SegmentCounts") -> "SegmentCounts":
        """Return both together."""
        return SegmentCounts(
            self.right + other.right, self.wrong + other.wrong, self.missed + other.missed, self.iou + other.iou
        )


@dataclass(frozen=True)
class Quality:
    """Segmentation quality, the mean IoU of matches; recognition quality, F1 of matching; and their product.

    In [0, 1]; -1 where there is nothing to judge. categories: over how many they are the mean.
    """

    pq: float
    sq: float
    rq: float
    categories: int

    def to_dict(self) -> dict[str, float | int]:
        """Return JSON-able values."""
        return {"PQ": self.pq, "SQ": self.sq, "RQ": self.rq, "categories": self.categories}


def judge_segments(
    truth: Sequence[Segment], found: Sequence[Segment], shared: Mapping[tuple[int, int], int]
) -> dict[int, SegmentCounts]:
    """Match the segments of one image.

    Pixels of the found segment that are void in the truth do not count in an IoU. A found segment without a match is
    wrong, unless more than half of it lies in void or in a crowd of its category; a crowd is never missed.

    Args:
        truth, found: the segments of the two maps.
        shared: by the numbers of a segment of the truth (or VOID) and a found one, how many pixels they share.

    Returns:
        The counts by label.
    """
    of_truth = {segment.number: segment for segment in truth if not segment.is_crowd}
    of_found = {segment.number: segment for segment in found}
    all_counts: dict[int, SegmentCounts] = defaultdict(SegmentCounts)
    matched_truth, matched_found = set(), set()
    for (number, place), common in sorted(shared.items()):
        wanted, other = of_truth.get(number), of_found.get(place)
        if wanted is None or other is None or wanted.label != other.label:
            continue
        iou = common / (wanted.area + other.area - common - shared.get((VOID, place), 0))
        if iou > MATCH_IOU:
            all_counts[wanted.label] += SegmentCounts(right=1, iou=iou)
            matched_truth.add(number)
            matched_found.add(place)
    for number in of_truth.keys() - matched_truth:
        all_counts[of_truth[number].label] += SegmentCounts(missed=1)
    for segment in found:
        if segment.number not in matched_found and not _is_ignored(segment, truth, shared):
            all_counts[segment.label] += SegmentCounts(wrong=1)
    return dict(all_counts)


def _is_ignored(segment: Segment, truth: Sequence[Segment], shared: Mapping[tuple[int, int], int]) -> bool:
    """Return whether more than half of a found segment lies in void or in a crowd of its category."""
    crowds = [each.number for each in truth if each.is_crowd and each.label == segment.label]
    # Of several crowds of a category panopticapi takes the last one.
    ignored = sum(shared.get((number, segment.number), 0) for number in (VOID, *crowds[-1:]))
    return ignored / segment.area > MOST_IGNORED


def quality_of(counts: SegmentCounts) -> Quality:
    """Return the quality of one category."""
    weight = counts.right + 0.5 * counts.wrong + 0.5 * counts.missed
    if not weight:
        return Quality(-1.0, -1.0, -1.0, 0)
    mean_iou = counts.iou / counts.right if counts.right else 0.0
    return Quality(counts.iou / weight, mean_iou, counts.right / weight, 1)


def mean_quality(all_counts: Iterable[SegmentCounts]) -> Quality:
    """Return the mean over the categories that have a segment, in the truth or found; each weighs the same."""
    each = [quality for quality in map(quality_of, all_counts) if quality.categories]
    if not each:
        return Quality(-1.0, -1.0, -1.0, 0)
    sums = [sum(values) / len(each) for values in zip(*((q.pq, q.sq, q.rq) for q in each), strict=True)]
    return Quality(sums[0], sums[1], sums[2], len(each))
