"""Polygons and bitmaps: clipped, turned, measured."""

import math

import numpy as np
import pytest

from pipeline.datasets.geometry import (
    box_polygon,
    clip_polygon,
    crosses_itself,
    draw_parts,
    ellipse_polygon,
    upright_bitmap,
    upright_points,
)
from pipeline.datasets.source import MaskPatch, Points

SIZE = (60, 40)


def polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, np.float64)


def test_a_polygon_inside_is_kept_as_it_is() -> None:
    triangle = polygon((1, 1), (50, 1), (1, 39))
    assert clip_polygon(triangle, SIZE) is triangle


def test_a_polygon_is_cut_at_every_border() -> None:
    clipped = clip_polygon(polygon((-10, -10), (70, -10), (70, 50), (-10, 50)), SIZE)
    assert sorted(map(tuple, clipped.tolist())) == [(0, 0), (0, 40), (60, 0), (60, 40)]


@pytest.mark.parametrize("shift", [(-100, 0), (100, 0), (0, -100), (0, 100)])
def test_nothing_is_left_of_a_polygon_outside(shift: tuple[float, float]) -> None:
    assert len(clip_polygon(polygon((1, 1), (50, 1), (1, 39)) + shift, SIZE)) == 0


def test_clipping_keeps_the_pixels_inside() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        points = random.uniform(-30, 80, (3, 2))
        whole = draw_parts([points + 100], (), None, (300, 300))[100:140, 100:160]
        clipped = clip_polygon(points, SIZE)
        drawn = draw_parts([clipped], (), None, SIZE) if len(clipped) > 2 else np.zeros_like(whole)
        # pycocotools rounds corners to a fifth of a pixel, so pixels on an edge may differ.
        assert (drawn != whole).sum() <= 0.05 * whole.sum() + 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_corners_turn_with_the_pixels(orientation: int) -> None:
    width, height = SIZE
    mask = np.zeros((height, width), bool)
    mask[5:12, 20:50] = True
    turned = upright_bitmap(mask, orientation)
    corners = upright_points(polygon((20, 5), (50, 5), (50, 12), (20, 12)), SIZE, orientation)
    rows, columns = np.nonzero(turned)
    assert corners.min(axis=0).tolist() == [columns.min(), rows.min()]
    assert corners.max(axis=0).tolist() == [columns.max() + 1, rows.max() + 1]


def test_a_patch_beyond_the_border_is_cut() -> None:
    drawn = draw_parts((), (MaskPatch(-2, 38, np.ones((5, 5), bool)),), None, SIZE)
    assert drawn.sum() == 3 * 2
    assert drawn[38:, :3].all()


def test_a_net_of_two_loops_crosses_itself_and_a_square_does_not() -> None:
    assert crosses_itself(polygon((0, 0), (10, 10), (10, 0), (0, 10)))
    assert not crosses_itself(polygon((0, 0), (10, 0), (10, 10), (0, 10)))


def test_parts_joined_by_a_line_do_not_cross() -> None:
    # As YOLO's converters join the parts of an object: there and back on the same line.
    assert not crosses_itself(
        polygon((0, 0), (10, 0), (10, 10), (20, 20), (30, 20), (30, 30), (20, 20), (10, 10), (0, 10))
    )


def test_crossings_are_found_among_thousands_of_corners() -> None:
    angles = np.linspace(0, 2 * math.pi, 2500, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 1000
    assert not crosses_itself(circle)
    circle[[2000, 2010]] = circle[[2010, 2000]]
    assert crosses_itself(circle)


def test_an_ellipse_has_its_area() -> None:
    x, y = ellipse_polygon((100, 100), (50, 20), 30).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(math.pi * 50 * 20, rel=0.01)


def test_a_box_turns_clockwise_about_its_middle() -> None:
    np.testing.assert_allclose(box_polygon((0, 0, 4, 2), 90), [[3, -1], [3, 3], [1, 3], [1, -1]], atol=1e-9)
