"""Things and stuff merged in runs give what the same procedure gives on bitmaps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from htc_model.masks.panoptic import MergeRules, PanopticSegment, merge_panoptic
from htc_model.masks.rle import decode_rle, encode_bitmap, encode_runs
from htc_model.structures import Rle

Bitmap = NDArray[np.bool_]
ANY_STUFF = MergeRules(min_stuff_area=1)


def block(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (10, 10)) -> Rle:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return encode_bitmap(mask)


def merged_bitmaps(
    scores: list[float], labels: list[int], masks: list[Bitmap], stuff: dict[int, Bitmap], rules: MergeRules
) -> list[tuple[int, bool, int | None, Bitmap]]:
    """The procedure of arXiv:1801.00868, section 7, on whole bitmaps."""
    shape = next(iter([*masks, *stuff.values()])).shape
    taken = np.zeros(shape, bool)
    found: list[tuple[int, bool, int | None, Bitmap]] = []
    for place in sorted(range(len(scores)), key=lambda place: (-scores[place], place)):
        area = int(masks[place].sum())
        if scores[place] < rules.min_score or not area:
            continue
        left = masks[place] & ~taken
        if (area - left.sum()) / area > rules.max_overlap or not left.any():
            continue
        found.append((labels[place], True, place, left))
        taken = taken | left
    for label, mask in stuff.items():
        left = mask & ~taken
        if left.any() and left.sum() >= rules.min_stuff_area:
            found.append((label, False, None, left))
            taken = taken | left
    return found


@st.composite
def images(draw: st.DrawFn) -> tuple[list[float], list[int], list[Bitmap], dict[int, Bitmap], MergeRules]:
    """Instances as boxes with holes, stuff as a map of classes, and rules that keep some of both."""
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = []
    for _ in range(draw(st.integers(0, 6))):
        top, left = random.integers(0, height), random.integers(0, width)
        mask = np.zeros((height, width), bool)
        bottom, right = top + random.integers(0, height + 1), left + random.integers(0, width + 1)
        mask[top:bottom, left:right] = random.random() < 0.7
        masks.append(mask & (random.random((height, width)) < 0.9))
    scores = [draw(st.sampled_from([0.2, 0.5, 0.7, 0.9])) for _ in masks]
    classes = random.integers(0, 4, (height, width))
    stuff = {label: classes == label for label in draw(st.permutations([0, 1, 2]))}
    if draw(st.booleans()):
        stuff[7] = random.random((height, width)) < 0.5
    rules = MergeRules(0.5, draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])), draw(st.sampled_from([0, 1, 20, 60])))
    return scores, [int(label) for label in random.integers(0, 80, len(masks))], masks, stuff, rules


@given(images())
def test_runs_give_what_bitmaps_give(
    drawn: tuple[list[float], list[int], list[Bitmap], dict[int, Bitmap], MergeRules],
) -> None:
    scores, labels, masks, stuff, rules = drawn
    size = next(iter([*masks, *stuff.values()])).shape
    found = merge_panoptic(
        scores,
        labels,
        [encode_bitmap(mask) for mask in masks],
        {label: encode_bitmap(mask) for label, mask in stuff.items()},
        size=(size[0], size[1]),
        rules=rules,
    )
    expected = merged_bitmaps(scores, labels, masks, stuff, rules)
    assert [(each.label, each.is_thing, each.instance) for each in found] == [each[:3] for each in expected]
    for segment, (_, _, place, mask) in zip(found, expected, strict=True):
        assert segment.mask == encode_bitmap(mask)
        assert segment.area == mask.sum() > 0
        rows, columns = np.nonzero(mask)
        x, y, box_width, box_height = segment.bbox
        assert (x, x + box_width) == (columns.min(), columns.max() + 1) or spans_columns(mask)
        assert y <= rows.min()
        assert y + box_height >= rows.max() + 1
        assert segment.score == (None if place is None else scores[place])
    cover = sum((decode_rle(each.mask).astype(int) for each in found), np.zeros(size, int))
    assert cover.max(initial=0) <= 1, "segments overlap"


def spans_columns(mask: Bitmap) -> bool:
    """Whether a run goes on from one column to the next: pycocotools' box is then as high as the image."""
    return bool((mask[-1, :-1] & mask[0, 1:]).any())


def described(found: list[PanopticSegment]) -> list[tuple[int, int | None, int, tuple[float, ...]]]:
    return [(each.label, each.instance, each.area, each.bbox) for each in found]


def test_the_higher_score_keeps_what_two_instances_share_and_stuff_gets_the_rest() -> None:
    # Both are 4 x 4; they share 4 x 2 = 8 of 16 pixels: exactly half is not more than half, so both are kept.
    masks = [block(0, 0, 4, 4), block(0, 2, 4, 6)]
    found = merge_panoptic([0.6, 0.9], [3, 5], masks, {11: block(0, 0, 10, 10)}, size=(10, 10), rules=ANY_STUFF)
    assert described(found) == [
        (5, 1, 16, (2, 0, 4, 4)),
        (3, 0, 8, (0, 0, 2, 4)),
        (11, None, 100 - 16 - 8, (0, 0, 10, 10)),
    ]


def test_more_than_half_covered_is_left_out_and_its_pixels_go_to_others() -> None:
    # 3 of the second's 4 columns are covered: it is no segment, and its last column falls to the stuff.
    masks = [block(0, 0, 4, 4), block(0, 1, 4, 5)]
    found = merge_panoptic([0.9, 0.6], [3, 5], masks, {11: block(0, 4, 4, 5)}, size=(10, 10), rules=ANY_STUFF)
    assert described(found) == [(3, 0, 16, (0, 0, 4, 4)), (11, None, 4, (4, 0, 1, 4))]


def test_equal_scores_keep_the_order_in_which_they_are_given() -> None:
    masks = [block(0, 0, 4, 4), block(0, 2, 4, 6)]
    found = merge_panoptic([0.7, 0.7], [3, 5], masks, {}, size=(10, 10))
    assert [(each.instance, each.area) for each in found] == [(0, 16), (1, 8)]


@pytest.mark.parametrize(("side", "classes"), [(63, []), (64, [11])], ids=["3,969 pixels", "4,096 pixels"])
def test_stuff_below_the_published_limit_is_left_out(side: int, classes: list[int]) -> None:
    size = (100, 100)
    found = merge_panoptic([], [], [], {11: block(0, 0, side, side, size)}, size=size)
    assert [each.label for each in found] == classes


def test_an_instance_below_the_published_score_is_left_out() -> None:
    masks = [block(0, 0, 4, 4), block(5, 5, 8, 8), block(0, 0, 10, 10)]
    found = merge_panoptic([0.5, 0.4999, float("nan")], [3, 5, 7], masks, {}, size=(10, 10))
    assert [each.label for each in found] == [3]


def test_an_image_without_anything_has_no_segments() -> None:
    empty = encode_bitmap(np.zeros((10, 10), bool))
    assert merge_panoptic([], [], [], {}, size=(10, 10)) == []
    assert merge_panoptic([0.9], [1], [empty], {2: empty}, size=(10, 10), rules=MergeRules(min_stuff_area=0)) == []


def test_a_huge_image_costs_its_runs_only() -> None:
    side = 100_000  # as a bitmap 10 GB
    whole = encode_runs(np.array([0]), np.array([side * side]), np.array([1]), (side, side))[0]
    strips = encode_runs(np.array([0, side]), np.array([2 * side, 3 * side]), np.array([1, 1]), (side, side))
    found = merge_panoptic([0.9, 0.8], [1, 2], strips, {3: whole}, size=(side, side))
    assert [(each.label, each.area) for each in found] == [(1, 2 * side), (2, side), (3, side * side - 3 * side)]


@pytest.mark.parametrize(
    ("masks", "labels", "words"),
    [
        ([block(0, 0, 1, 1, (5, 5))], [1], "another size"),
        ([Rle(size=[10, 10], counts=b"5")], [1], "run-length"),
        ([block(0, 0, 1, 1)], [], "not one each"),
    ],
)
def test_wrong_input_is_refused(masks: list[Rle], labels: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        merge_panoptic([0.9], labels, masks, {}, size=(10, 10))
