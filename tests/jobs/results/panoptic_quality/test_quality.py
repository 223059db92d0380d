"""Panoptic quality of cases that are worked out by hand."""

from collections import Counter

import numpy as np
import pytest

from jobs.results.panoptic_quality.quality import (
    VOID,
    Quality,
    Segment,
    SegmentCounts,
    judge_segments,
    mean_quality,
    quality_of,
)

SKY, TREE, DOG = 0, 1, 2


def judged(truth: list[str], found: list[str], labels: dict[str, int], crowds: str = "") -> dict[int, SegmentCounts]:
    """Judge maps that are drawn as letters; a dot is void, each other letter a segment of the label in `labels`."""
    maps = [np.array([[ord(each) for each in line] for line in lines]) for lines in (truth, found)]
    segments = []
    for drawn, crowd in zip(maps, (crowds, ""), strict=True):
        areas = Counter(drawn.ravel().tolist())
        segments.append(
            [
                Segment(number, labels[chr(number)], area, chr(number) in crowd)
                for number, area in sorted(areas.items())
                if chr(number) != "."
            ]
        )
    numbers = [np.where(drawn == ord("."), VOID, drawn) for drawn in maps]
    shared = Counter(zip(numbers[0].ravel().tolist(), numbers[1].ravel().tolist(), strict=True))
    return judge_segments(segments[0], segments[1], shared)


def test_a_perfect_map() -> None:
    lines = ["ssss", "ssdd", "ttdd"]
    found = judged(lines, lines, {"s": SKY, "t": TREE, "d": DOG})
    assert found == dict.fromkeys((SKY, TREE, DOG), SegmentCounts(right=1, iou=1.0))
    assert mean_quality(found.values()) == Quality(1.0, 1.0, 1.0, 3)


def test_a_match_a_miss_and_a_wrong_one() -> None:
    # Sky: 8 pixels in the truth, 6 found, all inside: IoU 6/8. Two dogs in the truth; one is found exactly, the other
    # was taken for a tree: a missed dog and a wrong tree.
    truth = ["ssss", "ssss", "ddee", "ddee"]
    found = ["ssss", "ss..", "ddtt", "ddtt"]
    all_counts = judged(truth, found, {"s": SKY, "d": DOG, "e": DOG, "t": TREE})
    assert all_counts == {
        SKY: SegmentCounts(right=1, iou=6 / 8),
        DOG: SegmentCounts(right=1, missed=1, iou=1.0),
        TREE: SegmentCounts(wrong=1),
    }
    # Dog: RQ = 1 / (1 + 1/2), SQ = 1. Tree: nothing right, all 0.
    assert quality_of(all_counts[DOG]) == Quality(1 / 1.5, 1.0, 1 / 1.5, 1)
    assert quality_of(all_counts[TREE]) == Quality(0.0, 0.0, 0.0, 1)
    # The mean over three categories: PQ = (6/8 + 2/3 + 0) / 3, SQ = (6/8 + 1 + 0) / 3, RQ = (1 + 2/3 + 0) / 3.
    mean = mean_quality(all_counts.values())
    assert (mean.pq, mean.sq, mean.rq) == pytest.approx((17 / 36, 7 / 12, 5 / 9))
    assert mean.categories == 3


def test_an_iou_of_one_half_is_no_match() -> None:
    # 4 pixels in the truth, 2 of them found and nothing else: IoU 2/4, which is not above 0.5.
    assert judged(["dddd"], ["dd.."], {"d": DOG}) == {DOG: SegmentCounts(wrong=1, missed=1)}
    # 3 of 4 is.
    assert judged(["dddd"], ["ddd."], {"d": DOG}) == {DOG: SegmentCounts(right=1, iou=3 / 4)}


def test_void_pixels_of_the_truth_do_not_lower_an_iou() -> None:
    # The found dog has 6 pixels, 4 on the dog and 2 on void. Union = 4 + 6 - 4 - 2 = 4, IoU = 4/4.
    assert judged(["dddd.."], ["dddddd"], {"d": DOG}) == {DOG: SegmentCounts(right=1, iou=1.0)}
    # Void that was not found changes nothing; void in the found map does: 3 of the dog's 4 pixels, IoU 3/4.
    assert judged(["dddd.."], ["ddd..."], {"d": DOG}) == {DOG: SegmentCounts(right=1, iou=3 / 4)}


def test_what_lies_mostly_in_void_is_not_wrong() -> None:
    labels = {"s": SKY, "t": TREE}
    # 3 of the tree's 4 pixels are void: more than half, so it is not wrong; the sky is missed.
    assert judged(["ssss...."], ["...tttt."], labels) == {SKY: SegmentCounts(missed=1)}
    # 2 of 4 are void: exactly half is not more than half.
    assert judged(["ssss...."], ["..tttt.."], labels) == {SKY: SegmentCounts(missed=1), TREE: SegmentCounts(wrong=1)}


def test_a_crowd_is_neither_matched_nor_missed_and_excuses_its_own_category() -> None:
    # The crowd c of dogs has 4 pixels. The dog on 3 pixels of it is not wrong; it matches nothing either.
    truth = ["ccccss"]
    assert judged(truth, ["dddsss"], {"c": DOG, "s": SKY, "d": DOG}, crowds="c") == {
        SKY: SegmentCounts(right=1, iou=2 / 3)
    }
    # A tree there is wrong: the crowd is of dogs. The sky has 2 of 2 pixels.
    assert judged(truth, ["ttt.ss"], {"c": DOG, "s": SKY, "t": TREE}, crowds="c") == {
        TREE: SegmentCounts(wrong=1),
        SKY: SegmentCounts(right=1, iou=1.0),
    }


def test_void_and_crowd_count_together() -> None:
    # Of the dog's 6 pixels 2 are void and 2 crowd: 4/6 is more than half, either alone is not.
    truth = ["ss..cc"]
    assert judged(truth, ["dddddd"], {"s": SKY, "c": DOG, "d": DOG}, crowds="c") == {SKY: SegmentCounts(missed=1)}


def test_stuff_in_two_parts_is_one_segment() -> None:
    # Sky on both sides of a tree. Of its 4 pixels 3 are found, and nothing else: IoU 3/4. The tree's 2 and one more.
    assert judged(["ssttss"], ["stttss"], {"s": SKY, "t": TREE}) == {
        SKY: SegmentCounts(right=1, iou=3 / 4),
        TREE: SegmentCounts(right=1, iou=2 / 3),
    }


def test_categories_without_a_segment_are_left_out_of_the_mean() -> None:
    nothing = SegmentCounts()
    assert quality_of(nothing).categories == 0
    assert mean_quality([nothing, SegmentCounts(right=1, iou=0.8)]) == Quality(0.8, 0.8, 1.0, 1)
    assert mean_quality([nothing]) == Quality(-1.0, -1.0, -1.0, 0)
    assert mean_quality([]) == Quality(-1.0, -1.0, -1.0, 0)
