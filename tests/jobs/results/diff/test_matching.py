"""Pairing instances: IoU as pycocotools gives it, greedy one to one, the same in every batch."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from htc_model.masks.many_runs import ForegroundRuns
from jobs.results.diff import matching
from jobs.results.diff.matching import DamagedMaskError, Instances, Pairs, match_instances, take_best
from jobs.results.diff.rules import DiffRules
from pipeline.output.mask_functions import decode_masks
from pipeline.output.schema import MASK_TYPE
from tests.support.builders.compared_runs import HEIGHT, WIDTH, Box, rectangle

# image, category, score in tenths, box.
Drawn = tuple[int, int, int, Box]
IMAGES = 4
boxes = st.tuples(st.integers(0, 12), st.integers(0, 8), st.integers(1, 12), st.integers(1, 8))
drawn = st.tuples(st.integers(0, IMAGES - 1), st.integers(0, 1), st.integers(1, 9), boxes)


def instances_of(rows: list[Drawn], *, with_masks: bool = True) -> Instances:
    rows = sorted(rows, key=lambda row: row[0])
    masks = [rectangle(row[3]) if with_masks else None for row in rows]
    return Instances(
        image=np.array([row[0] for row in rows], np.int64),
        category=np.array([row[1] for row in rows], np.int64),
        score=np.array([row[2] / 10 for row in rows]),
        boxes_xywh=np.array([row[3] for row in rows], float).reshape(-1, 4),
        areas=np.array([row[3][2] * row[3][3] if with_masks else 0 for row in rows], float),
        masks=pa.array(masks, MASK_TYPE),
        sizes=np.tile([HEIGHT, WIDTH], (IMAGES, 1)),
    )


def expected(a: Instances, b: Instances, rules: DiffRules) -> dict[int, tuple[int, float]]:
    """The pairs by a loop over images and pycocotools' IoU."""
    found: dict[int, tuple[int, float]] = {}
    taken: set[int] = set()
    for image in range(IMAGES):
        of_a, of_b = (np.flatnonzero(side.image == image).tolist() for side in (a, b))
        edges = []
        for one in of_a:
            for other in of_b:
                pair = [side.masks[place].as_py() for side, place in ((a, one), (b, other))]
                iou = float(coco_mask.iou([pair[0]], [pair[1]], [0])[0, 0])
                scores = max(a.score[one], b.score[other])
                if iou >= rules.match_iou and scores >= rules.least_score:
                    edges.append((a.category[one] != b.category[other], -iou, one, other))
        for _, iou, one, other in sorted(edges):
            if one not in found and other not in taken:
                found[one] = (other, -iou)
                taken.add(other)
    return found


@settings(max_examples=80)
@given(st.lists(drawn, max_size=14), st.lists(drawn, max_size=14))
def test_pairs_are_those_of_a_loop_over_pycocotools(rows_a: list[Drawn], rows_b: list[Drawn]) -> None:
    a, b = instances_of(rows_a), instances_of(rows_b)
    rules = DiffRules(match_iou=0.3)
    pairs = match_instances(a, b, rules)
    found = dict(zip(pairs.a.tolist(), zip(pairs.b.tolist(), pairs.iou.tolist(), strict=True), strict=True))
    reference = expected(a, b, rules)
    # Two instances of the same mask may change places: what is left of either kind is the same.
    assert {one: iou for one, (_, iou) in found.items()} == pytest.approx(
        {one: iou for one, (_, iou) in reference.items()}
    )
    assert len(set(pairs.b.tolist())) == len(pairs.b)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 4)), max_size=20, unique_by=lambda e: e[:2])
)
def test_the_best_pairs_are_those_of_a_sorted_loop(edges: list[tuple[int, int, int]]) -> None:
    given_edges = Pairs(
        *(np.array([edge[place] for edge in edges], np.int64) for place in (0, 1)), np.array([e[2] / 4 for e in edges])
    )
    taken = take_best(given_edges)
    found: list[tuple[int, int]] = []
    for one, other, _ in sorted(edges, key=lambda edge: (-edge[2], edge[0], edge[1])):
        if all(one != first and other != second for first, second in found):
            found.append((one, other))
    assert sorted(zip(taken.a.tolist(), taken.b.tolist(), strict=True)) == sorted(found)


@settings(max_examples=30)
@given(st.lists(drawn, max_size=14), st.lists(drawn, max_size=14))
def test_pieces_change_nothing(rows_a: list[Drawn], rows_b: list[Drawn]) -> None:
    a, b = instances_of(rows_a), instances_of(rows_b)
    whole = match_instances(a, b, DiffRules(match_iou=0.2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "MAX_PAIRS", 3)
        patch.setattr(matching, "PIECE_PAIRS", 2)
        patch.setattr(matching, "PIECE_ROWS", 3)
        pieces = match_instances(a, b, DiffRules(match_iou=0.2))
    for name in ("a", "b", "iou"):
        assert getattr(whole, name).tolist() == getattr(pieces, name).tolist()


def test_a_pair_of_one_category_comes_before_a_closer_one_of_two() -> None:
    a = instances_of([(0, 0, 9, (0, 0, 10, 10))])
    b = instances_of([(0, 1, 9, (0, 0, 10, 10)), (0, 0, 9, (0, 0, 10, 7))])
    pairs = match_instances(a, b, DiffRules())
    assert pairs.b.tolist() == [1]
    assert pairs.iou.tolist() == [0.7]


def test_low_scores_are_partners_of_high_ones_only() -> None:
    low, high = (0, 0, 2, (0, 0, 10, 10)), (0, 0, 9, (0, 0, 10, 10))
    assert len(match_instances(instances_of([low]), instances_of([low]), DiffRules()).a) == 0
    assert len(match_instances(instances_of([low]), instances_of([high]), DiffRules()).a) == 1


def test_without_masks_boxes_are_compared() -> None:
    a = instances_of([(0, 0, 9, (0, 0, 10, 10))], with_masks=False)
    b = instances_of([(0, 0, 9, (0, 0, 10, 8))])
    assert match_instances(a, b, DiffRules()).iou.tolist() == [0.8]


def test_a_damaged_mask_and_one_of_another_size_are_named() -> None:
    a = instances_of([(0, 0, 9, (0, 0, 10, 10)), (1, 0, 9, (0, 0, 10, 10))])
    masks = a.masks.to_pylist()
    for wrong in ({**masks[1], "counts": "52"}, rectangle((0, 0, 10, 10), (HEIGHT + 1, WIDTH))):
        other = pa.array([masks[0], wrong], MASK_TYPE)
        b = replace(a, masks=other)
        with pytest.raises(DamagedMaskError) as raised:
            match_instances(a, b, DiffRules())
        assert (raised.value.side, raised.value.place) == ("b", 1)


def test_runs_that_are_taken_and_put_together_are_the_same_masks() -> None:
    masks = [rectangle(box) for box in ((0, 0, 3, 2), (5, 5, 1, 1), (0, 0, 60, 40))]
    empty = rectangle((0, 0, 0, 0))
    runs = decode_masks(pa.array([*masks, empty], MASK_TYPE)).runs()
    again = runs.take(np.array([2, 0, 3, 0]))
    assert again.encode() == [each["counts"] for each in (masks[2], masks[0], empty, masks[0])]
    joined = ForegroundRuns.concatenate([again, runs])
    assert joined.encode() == again.encode() + runs.encode()
    assert ForegroundRuns.concatenate([]).encode() == []
