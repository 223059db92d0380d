"""Joining across tiles: for a model that finds the same pixels in each tile, the result is exactly the object."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from htc_model.masks.rle import decode_rle, encode_bitmap
from htc_model.masks.seams import Joined, MixedMasksError, join_tiles
from htc_model.masks.tile_box import TileBox
from htc_model.structures import Detections

Labels = NDArray[np.int64]


def seen(objects: Labels, box: TileBox, *, score: float = 0.5, has_masks: bool = True) -> Detections:
    """Return what an exact model finds in a tile: the pixels of each object there, all of class 0."""
    part = objects[box.top : box.bottom, box.left : box.right]
    found = [part == number for number in np.unique(part) if number]
    return detections_of(found, [score] * len(found), has_masks=has_masks)


def detections_of(
    masks: Sequence[NDArray[np.bool_]],
    scores: Sequence[float],
    labels: Sequence[int] | None = None,
    *,
    has_masks: bool = True,
) -> Detections:
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0])
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels if labels is not None else [0] * len(masks), dtype=torch.int64),
        [encode_bitmap(mask) for mask in masks] if has_masks else None,
    )


def rectangle(size: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask


def grid(size: tuple[int, int], side: int, overlap: int) -> list[TileBox]:
    height, width = min(side, size[0]), min(side, size[1])

    def begins(extent: int, length: int) -> list[int]:
        count = 1 + -(-(extent - length) // (side - overlap))
        return [min(number * (side - overlap), extent - length) for number in range(count)]

    return [TileBox(top, left, height, width) for top in begins(size[0], height) for left in begins(size[1], width)]


def join(objects: Labels, boxes: Sequence[TileBox]) -> Joined:
    return join_tiles(objects.shape, [(box, seen(objects, box)) for box in boxes])  # type: ignore[arg-type]


def texts(found: Detections) -> list[bytes]:
    assert found.masks is not None
    return sorted(mask["counts"] for mask in found.masks)


def expected(objects: Labels) -> list[bytes]:
    return sorted(encode_bitmap(objects == number)["counts"] for number in np.unique(objects) if number)


def snake(rng: random.Random, size: tuple[int, int], steps: int) -> NDArray[np.bool_]:
    """Return a shape that is one piece, thick enough for an overlap of one pixel, and of no simple form."""
    mask = np.zeros(size, bool)
    y, x = rng.randrange(size[0]), rng.randrange(size[1])
    for _ in range(steps):
        dy, dx = rng.choice([(0, 1), (1, 0), (0, -1), (-1, 0)])
        for _ in range(rng.randrange(1, 12)):
            y, x = min(max(y + dy, 0), size[0] - 1), min(max(x + dx, 0), size[1] - 1)
            mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    side=st.integers(10, 40),
    overlap=st.integers(1, 9),
)
def test_random_shapes_in_random_tiles_come_out_exactly_in_any_order(
    seed: int, size: tuple[int, int], side: int, overlap: int
) -> None:
    rng = random.Random(seed)
    objects = np.zeros(size, np.int64)
    number = 0
    for _ in range(rng.randrange(1, 6)):
        shape = snake(rng, size, rng.randrange(1, 9))
        if not (shape & (objects > 0)).any():
            number += 1
            objects[shape] = number
    boxes = grid(size, side, overlap)
    joined = join(objects, boxes)
    assert texts(joined.detections) == expected(objects)
    rng.shuffle(boxes)
    shuffled = join(objects, boxes)
    assert shuffled.detections.masks == joined.detections.masks
    assert torch.equal(shuffled.detections.boxes_xyxy, joined.detections.boxes_xyxy)
    assert shuffled.counts == joined.counts


def test_an_object_over_four_tiles_comes_out_once() -> None:
    size = (100, 100)
    objects = rectangle(size, 30, 30, 70, 70).astype(np.int64)
    joined = join(objects, grid(size, 56, 12))
    assert texts(joined.detections) == expected(objects)
    assert joined.detections.boxes_xyxy.tolist() == [[30, 30, 70, 70]]
    assert joined.counts == (4, 4, 1, 0, 1)


def test_rectangles_that_touch_stay_two_wherever_the_seam_is() -> None:
    size = (40, 100)
    for border in range(30, 70):
        objects = np.where(rectangle(size, 20, 5, border, 30), 1, 0) + np.where(
            rectangle(size, border, 5, 90, 30), 2, 0
        )
        joined = join(objects, grid(size, 60, 20))
        assert texts(joined.detections) == expected(objects), border


def test_an_object_that_one_tile_sees_whole_is_kept_as_it_is_there() -> None:
    size, (left, right) = (20, 50), grid((20, 50), 30, 10)
    # Whole in the left tile; the right one sees a part, larger than it is, and is surer of it.
    whole = detections_of([rectangle((20, 30), 15, 5, 25, 15)], [0.6])
    part = detections_of([rectangle((20, 30), 0, 4, 6, 15)], [0.9])
    joined = join_tiles(size, [(left, whole), (right, part)])
    assert joined.detections.scores.tolist() == pytest.approx([0.6])
    assert joined.detections.boxes_xyxy.tolist() == [[15, 5, 25, 15]]
    assert joined.counts == (2, 1, 0, 1, 1)


def test_doubles_in_the_overlap_leave_the_one_farther_from_the_borders() -> None:
    size, (left, right) = (20, 50), grid((20, 50), 30, 10)
    # In the overlap from 20 to 30: nearer to the left tile's border.
    a = detections_of([rectangle((20, 30), 22, 5, 29, 15)], [0.9])
    b = detections_of([rectangle((20, 30), 2, 5, 9, 14)], [0.7])
    joined = join_tiles(size, [(left, a), (right, b)])
    assert joined.detections.scores.tolist() == pytest.approx([0.7])
    assert joined.detections.boxes_xyxy.tolist() == [[22, 5, 29, 14]]


def test_classes_are_never_joined() -> None:
    size, (left, right) = (20, 50), grid((20, 50), 30, 10)
    a = detections_of([rectangle((20, 30), 10, 5, 30, 15)], [0.9], [1])
    b = detections_of([rectangle((20, 30), 0, 5, 15, 15)], [0.9], [2])
    assert len(join_tiles(size, [(left, a), (right, b)]).detections) == 2


def test_legs_of_an_object_are_joined_by_the_tile_that_shows_its_body() -> None:
    """The upper tile sees two legs, which only the lower one shows to be of one object."""
    size, (upper, lower) = (50, 30), grid((50, 30), 30, 10)
    body = rectangle(size, 3, 30, 28, 45) | rectangle(size, 3, 5, 9, 30) | rectangle(size, 19, 5, 28, 30)
    legs = [body[:30] & rectangle((30, 30), 0, 0, 15, 30), body[:30] & rectangle((30, 30), 15, 0, 30, 30)]
    joined = join_tiles(size, [(upper, detections_of(legs, [0.8, 0.8])), (lower, detections_of([body[20:]], [0.8]))])
    assert texts(joined.detections) == [encode_bitmap(body)["counts"]]


def test_the_score_of_a_joined_object_is_weighted_by_pixels() -> None:
    size = (10, 100)
    left, right = TileBox(0, 0, 10, 60), TileBox(0, 40, 10, 60)
    a = detections_of([rectangle((10, 60), 0, 0, 60, 10)], [0.9])
    b = detections_of([rectangle((10, 60), 0, 0, 40, 10)], [0.5])
    joined = join_tiles(size, [(left, a), (right, b)]).detections
    # The overlap is divided in the middle: 50 columns and 30.
    assert joined.scores.tolist() == pytest.approx([(0.9 * 50 + 0.5 * 30) / 80])
    assert joined.boxes_xyxy.tolist() == [[0, 0, 80, 10]]


def test_masks_that_differ_in_the_overlap_change_at_its_middle() -> None:
    size = (10, 100)
    left, right = TileBox(0, 0, 10, 60), TileBox(0, 40, 10, 60)
    a = detections_of([rectangle((10, 60), 10, 2, 60, 8)], [0.9])
    b = detections_of([rectangle((10, 60), 0, 1, 50, 9)], [0.9])
    (mask,) = join_tiles(size, [(left, a), (right, b)]).detections.masks or []
    both = rectangle(size, 10, 2, 50, 8) | rectangle(size, 50, 1, 90, 9)
    assert np.array_equal(decode_rle(mask), both)


def test_boxes_of_a_model_without_masks_are_joined() -> None:
    size = (100, 100)
    objects = rectangle(size, 30, 30, 70, 70).astype(np.int64)
    tiles = [(box, seen(objects, box, has_masks=False)) for box in grid(size, 56, 12)]
    found = join_tiles(size, tiles).detections
    assert found.masks is None
    assert found.boxes_xyxy.tolist() == [[30, 30, 70, 70]]


def test_nothing_found_and_empty_masks() -> None:
    boxes = grid((100, 100), 56, 12)
    assert len(join_tiles((100, 100), [(box, detections_of([], [])) for box in boxes]).detections) == 0
    empty = detections_of([np.zeros((56, 56), bool)], [0.3])
    assert len(join_tiles((100, 100), [(boxes[0], empty)]).detections) == 1
    assert len(join_tiles((100, 100), []).detections) == 0


def test_an_image_of_which_no_bitmap_would_fit() -> None:
    """Four gigapixels, two tiles: the work is that of their runs."""
    size = (65_000, 65_000)
    upper, lower = TileBox(60_000, 64_900, 100, 100), TileBox(60_080, 64_900, 100, 100)
    a = detections_of([rectangle((100, 100), 10, 50, 90, 100)], [0.9])
    b = detections_of([rectangle((100, 100), 10, 0, 90, 70)], [0.9])
    joined = join_tiles(size, [(lower, b), (upper, a)]).detections
    assert joined.boxes_xyxy.tolist() == [[64_910, 60_050, 64_990, 60_150]]
    assert (joined.masks or [])[0]["size"] == [65_000, 65_000]


@pytest.mark.parametrize(
    ("tiles", "word"),
    [
        ([TileBox(0, 0, 20, 20), TileBox(0, 0, 20, 20)], "two tiles"),
        ([TileBox(0, 40, 20, 20)], "not within"),
        ([TileBox(-1, 0, 20, 20)], "not within"),
    ],
)
def test_tiles_out_of_place(tiles: list[TileBox], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        join_tiles((50, 50), [(box, detections_of([], [])) for box in tiles])


def test_masks_of_another_size() -> None:
    with pytest.raises(ValueError, match="tile's size"):
        join_tiles((50, 50), [(TileBox(0, 0, 20, 20), detections_of([np.ones((5, 5), bool)], [0.5]))])


@pytest.mark.parametrize("has_masks", [True, False])
def test_a_tile_without_instances_says_nothing_about_masks(has_masks: bool) -> None:
    objects = rectangle((40, 100), 5, 5, 15, 15).astype(np.int64)
    tiles = [(box, seen(objects, box, has_masks=has_masks)) for box in grid((40, 100), 40, 10)]
    empty = [box for box, found in tiles if not len(found)]
    assert empty
    other = [] if not has_masks else None
    turned = [
        (box, found if len(found) else Detections(found.boxes_xyxy, found.scores, found.labels, other))
        for box, found in tiles
    ]
    assert join_tiles((40, 100), turned).detections.masks == join_tiles((40, 100), tiles).detections.masks


def test_masks_in_some_tiles_only_are_no_result() -> None:
    objects = (rectangle((40, 100), 5, 5, 15, 15) + 2 * rectangle((40, 100), 85, 5, 95, 15)).astype(np.int64)
    boxes = grid((40, 100), 40, 10)
    tiles = [(box, seen(objects, box, has_masks=box.left == 0)) for box in boxes]
    with pytest.raises(MixedMasksError, match="some tiles have masks, and those of others have none"):
        join_tiles((40, 100), tiles)
