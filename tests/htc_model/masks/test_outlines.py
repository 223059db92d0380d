"""Outlines are valid polygons that cover the mask's pixels, and no others."""

import numpy as np
import shapely
import shapely.wkt
from hypothesis import given
from hypothesis import strategies as st

from htc_model.masks.outlines import multipolygon_wkt, signed_area, trace_outlines
from tests.htc_model.masks.test_many_runs import Bitmap, bitmaps, decoded


@given(st.lists(bitmaps(), max_size=5))
def test_outlines_are_valid_and_cover_the_mask(masks: list[Bitmap]) -> None:
    runs = decoded(masks).runs()
    for mask, polygons, perimeter in zip(masks, trace_outlines(runs), runs.perimeters(), strict=True):
        shape = shapely.wkt.loads(multipolygon_wkt(polygons))
        assert shape.is_valid
        assert (shape.area, shape.length) == (mask.sum(), perimeter)
        rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
        assert (shapely.contains_xy(shape, columns.ravel(), rows.ravel()) == mask.astype(bool).ravel()).all()


@given(bitmaps())
def test_rings_have_corners_only_and_an_orientation(mask: Bitmap) -> None:
    for polygon in trace_outlines(decoded([mask]).runs())[0]:
        for number, ring in enumerate(polygon):
            steps = np.roll(ring, -1, axis=0) - ring
            is_sideways = steps[:, 0] != 0
            assert (is_sideways != (steps[:, 1] != 0)).all()
            assert (is_sideways != np.roll(is_sideways, 1)).all()
            assert (signed_area(ring) > 0) == (number == 0)


def drawn(text: str) -> Bitmap:
    return np.array([[pixel == "#" for pixel in row] for row in text.split()], np.uint8)


def test_parts_that_touch_at_a_corner_are_two_polygons_and_a_hole_that_does_stays_a_hole() -> None:
    diagonal, ring = trace_outlines(decoded([drawn("#. .#"), drawn("### #.# ##.")]).runs())
    assert [len(polygon) for polygon in diagonal] == [1, 1]
    assert [len(polygon) for polygon in ring] == [2]


def test_a_part_inside_the_hole_of_another_is_a_polygon_of_its_own() -> None:
    polygons = trace_outlines(decoded([drawn("##### #...# #.#.# #...# #####")]).runs())[0]
    assert sorted(len(polygon) for polygon in polygons) == [1, 2]
    assert multipolygon_wkt([polygon for polygon in polygons if len(polygon) == 1]) == (
        "MULTIPOLYGON (((2 2, 3 2, 3 3, 2 3, 2 2)))"
    )
