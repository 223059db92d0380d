"""Labels: none covers another or leaves the picture, however many there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.results.drawing.labels import MAX_COVER, Placed, Shape, Wanted, place_labels


def of_box(left: float, top: float, right: float, bottom: float) -> Shape:
    return Shape.of_box((left, top, right, bottom))


def measure(text: str) -> tuple[int, int]:
    return 8 * len(text) + 6, 16


def overlapping(placed: list[Placed]) -> list[tuple[Placed, Placed]]:
    return [
        (one, other)
        for one, other in itertools.combinations(placed, 2)
        if one.plate[0] < other.plate[2]
        and other.plate[0] < one.plate[2]
        and one.plate[1] < other.plate[3]
        and other.plate[1] < one.plate[3]
    ]


@st.composite
def pictures(draw: st.DrawFn) -> tuple[tuple[int, int], list[Wanted]]:
    width, height = draw(st.integers(1, 900)), draw(st.integers(1, 900))
    wanted = []
    for place in range(draw(st.integers(0, 40))):
        x, y = draw(st.integers(-20, width)), draw(st.integers(-20, height))
        box = (x, y, x + draw(st.integers(0, width)), y + draw(st.integers(0, height)))
        text = draw(st.text("abc", min_size=1, max_size=20))
        wanted.append(Wanted(place, (f"{text} 0.50", text), Shape.of_box(box)))
    return (width, height), wanted


@settings(max_examples=settings.default.max_examples // 2)
@given(pictures())
def test_no_label_covers_another_or_leaves_the_picture(picture: tuple[tuple[int, int], list[Wanted]]) -> None:
    size, wanted = picture
    placed = place_labels(wanted, size, measure)
    assert overlapping(placed) == []
    for each in placed:
        left, top, right, bottom = each.plate
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert (right - left, bottom - top) == measure(each.text)
        assert each.text in wanted[each.place].texts
    assert len({each.place for each in placed}) == len(placed)
    covered = sum((p.plate[2] - p.plate[0]) * (p.plate[3] - p.plate[1]) for p in placed[1:])
    assert covered <= MAX_COVER * size[0] * size[1]


def test_a_label_without_room_at_its_box_has_a_line_that_crosses_no_other() -> None:
    wall = [Wanted(n, ("person 0.90", "person"), of_box(100 * n, 200, 100 * n + 99, 280)) for n in range(6)]
    crowd = [Wanted(6 + n, ("person 0.90", "person"), of_box(300 + n, 230, 320 + n, 240)) for n in range(14)]
    placed = place_labels([*wall, *crowd], (640, 480), measure)
    apart = [each for each in placed if each.leader is not None]
    assert apart
    for each in apart:
        box = crowd[each.place - 6].shape.box
        assert each.leader is not None
        assert box[0] <= each.leader[0] <= box[2]
        assert box[1] <= each.leader[1] <= box[3]
        middle = ((each.plate[0] + each.plate[2]) / 2, (each.plate[1] + each.plate[3]) / 2)
        line = np.linspace(middle, each.leader, 24)
        for other in placed:
            left, top, right, bottom = other.plate
            is_on = (line[:, 0] > left) & (line[:, 0] < right) & (line[:, 1] > top) & (line[:, 1] < bottom)
            assert other is each or not is_on.any()


def test_the_most_important_labels_stay_when_there_is_no_room() -> None:
    boxes = np.random.default_rng(1).uniform(0, 150, (200, 2))
    wanted = [Wanted(n, ("person 0.90", "person"), of_box(x, y, x + 9, y + 9)) for n, (x, y) in enumerate(boxes)]
    placed = place_labels(wanted, (200, 150), measure)
    assert 1 <= len(placed) < 20
    assert placed[0].place == 0
    # Shortened: there is no room for scores.
    assert {each.text for each in placed} == {"person"}


@pytest.mark.parametrize("size", [(40, 12), (200, 10)])
def test_a_picture_too_small_for_any_label_has_none(size: tuple[int, int]) -> None:
    assert place_labels([Wanted(0, ("person 0.90", "person"), of_box(0, 0, 9, 9))], size, measure) == []


def test_a_label_stands_at_the_top_of_its_instance() -> None:
    # A triangle with its top at x = 350.
    x = np.arange(100.0, 400, 10)
    triangle = Shape(x, 200 + np.abs(x - 350) / 2, np.full(30, 400.0), 10)
    (placed,) = place_labels([Wanted(0, ("dog 0.90", "dog"), triangle)], (640, 480), measure)
    left, top, right, bottom = placed.plate
    assert abs((left + right) / 2 - 350) <= 1
    assert 170 < top < bottom <= 200
    assert placed.leader is None
    # It does not cover a small neighbour that is there.
    box = (320, 180, 380, 198)
    both = [Wanted(0, ("dog 0.90", "dog"), triangle), Wanted(1, ("cat", "cat"), of_box(*box))]
    moved = place_labels(both, (640, 480), measure)[0].plate
    assert moved[2] <= box[0] or moved[0] >= box[2] or moved[3] <= box[1] or moved[1] >= box[3]


def test_a_label_apart_from_its_mask_has_a_line_although_it_is_at_its_box() -> None:
    """Of a mask that fills a corner of its box, a label at another corner would float."""
    corner = Shape(np.array([10.0, 620.0]), np.array([100.0, 460.0]), np.array([110.0, 470.0]), 10)
    wall = [Wanted(n, ("x" * 12, "x" * 12), of_box(40 + 30 * n, 100, 60 + 30 * n, 101)) for n in range(19)]
    for each in place_labels([*wall, Wanted(19, ("dog", "dog"), corner)], (640, 480), measure):
        gap = 0.7 * 16
        if each.place == 19 and each.leader is None:
            left, top, right, bottom = each.plate
            assert left - gap <= 620 + 5
            near_first = left <= 15 + gap and top <= 110 + gap and bottom >= 100 - gap
            near_last = right >= 615 - gap and bottom >= 460 - gap
            assert near_first or near_last
