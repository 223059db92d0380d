"""Drawn pictures: masks where they are, smooth outlines, sizes, damaged masks, what is left alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from htc_model.masks.rle import encode_bitmap
from jobs.results.drawing import DrawnInstance, Style, colour_of, crop, damaged_masks, draw_overlay, render_overlay
from jobs.results.drawing.fonts import check_font, writable
from jobs.results.drawing.instances import Masks
from pipeline.errors import SpecError

PLAIN = Style(has_labels=False)


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.hypot(columns + 0.5 - x, rows + 0.5 - y) < radius


def grey(height: int, width: int, value: int = 100) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@settings(max_examples=settings.default.max_examples // 2)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.data())
def test_a_part_of_a_mask_from_its_runs_is_that_part_of_the_bitmap(mask: np.ndarray, data: st.DataObject) -> None:
    height, width = mask.shape
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    masks = Masks([DrawnInstance("a", mask=encode_bitmap(mask)), DrawnInstance("b", mask=mask)], height, width)
    assert masks.damaged == {}
    assert set(masks.boxes) == ({0, 1} if mask.any() else set())
    for place in masks.boxes:
        part = np.asarray(masks.bitmap(place, (left, top, right, bottom)))
        np.testing.assert_array_equal(part, mask[top:bottom, left:right] * 255)
        x, y, box_width, box_height = masks.boxes[place]
        assert mask[y : y + box_height, x : x + box_width].sum() == mask.sum()


def test_the_mask_is_tinted_outlined_and_the_rest_left_alone() -> None:
    mask = disc(200, 300, 150, 100, 60)
    image = grey(200, 300)
    drawn = draw_overlay(image, [DrawnInstance("dog", 0.9, mask=encode_bitmap(mask))], PLAIN)
    np.testing.assert_array_equal(drawn, draw_overlay(image, [DrawnInstance("dog", 0.9, mask=mask)], PLAIN))
    assert (image == 100).all()
    assert (drawn[~disc(200, 300, 150, 100, 65)] == 100).all()
    tint = np.array(colour_of("dog")) * 0.38 + 100 * 0.62
    assert np.abs(drawn[disc(200, 300, 150, 100, 52)].astype(int) - tint).max() <= 2
    ring = disc(200, 300, 150, 100, 60.4) & ~disc(200, 300, 150, 100, 59.6)
    assert np.abs(drawn[ring].astype(int) - colour_of("dog")).mean() < 40


def test_an_outline_is_smooth() -> None:
    """Along a slanted edge, the picture has many values between outside and line: no staircase."""
    rows, columns = np.mgrid[0:200, 0:200]
    mask = columns > 60 + rows * 0.37
    style = Style(has_labels=False, opacity=0, line_px=3)
    drawn = draw_overlay(grey(200, 200, 0), [DrawnInstance("x", mask=mask, colour=(255, 255, 255))], style)
    middle = drawn[40:160, 60:140, 0]
    assert len(np.unique(middle)) > 6
    # The line is 3 pixels wide across the edge, so wider along a row.
    width = middle.astype(float).sum(axis=1) / 255
    assert np.abs(width - 3 * np.hypot(1, 0.37)).max() < 0.5


def test_a_mask_that_touches_the_border_keeps_its_outline_there() -> None:
    drawn = draw_overlay(grey(100, 100), [DrawnInstance("dog", mask=np.ones((100, 100), bool))], PLAIN)
    inner = drawn[50, 50].astype(int)
    for edge in (drawn[0, 50], drawn[-1, 50], drawn[50, 0], drawn[50, -1]):
        assert np.abs(edge.astype(int) - colour_of("dog")).sum() < np.abs(inner - colour_of("dog")).sum() / 2


def test_small_instances_stay_visible_under_large_ones() -> None:
    small, large = disc(500, 500, 250, 250, 10), np.ones((500, 500), bool)
    found = [DrawnInstance("ball", 0.9, mask=small), DrawnInstance("wall", 0.8, mask=large)]
    drawn = draw_overlay(grey(500, 500, 0), found, PLAIN)
    alone = draw_overlay(grey(500, 500, 0), found[1:], PLAIN)
    assert (drawn != alone).any(axis=2)[small].all()
    np.testing.assert_array_equal(drawn, draw_overlay(grey(500, 500, 0), found[::-1], PLAIN))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (33, 47)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    height, width = size
    found = [DrawnInstance("person", 0.5, (0, 0, width, height), np.ones(size, bool))]
    for style, longer in ((Style(), max(size)), (Style(long_side=200), 200), (Style(min_long_side=480), None)):
        drawn = draw_overlay(grey(height, width), found, style)
        assert max(drawn.shape[:2]) == (longer or max(480, *size))
        assert (drawn != 100).any()


@pytest.mark.parametrize("long_side", [200, 1000])
def test_a_mask_of_a_scaled_picture_is_where_it_was(long_side: int) -> None:
    mask = disc(300, 400, 130, 170, 60)
    style = Style(has_labels=False, opacity=1, long_side=long_side)
    white = DrawnInstance("x", mask=encode_bitmap(mask), colour=(255, 255, 255))
    drawn = draw_overlay(grey(300, 400, 0), [white], style)
    covered = drawn[..., 0] > 127
    scale = long_side / 400
    rows, columns = np.nonzero(covered)
    assert abs(columns.mean() + 0.5 - 130 * scale) < 0.5
    assert abs(rows.mean() + 0.5 - 170 * scale) < 0.5
    # The line's outer half lies outside.
    assert 0 < np.sqrt(covered.sum() / np.pi) - 60 * scale < 2.5


def test_boxes_alone_empty_masks_and_odd_boxes_are_drawn() -> None:
    image = grey(500, 500)
    box_only = DrawnInstance("dog", 0.5, (100, 100, 50, 50))
    empty = DrawnInstance("cat", 0.5, (300, 300, 50, 50), np.zeros((500, 500), bool))
    beyond = DrawnInstance("cow", 0.5, (450, 450, 500, 500))
    no_number = DrawnInstance("owl", 0.5, (float("nan"), 0, 5, 5))
    drawn = draw_overlay(image, [box_only, empty, beyond, no_number], PLAIN)
    assert (drawn[100, 100:150] == colour_of("dog")).all()
    assert (drawn[120:140, 120:140] == 100).all()
    assert (drawn[300:350, 300:350] == 100).all()
    assert (drawn[499, 450:] == colour_of("cow")).all()


def test_colours_by_category_or_by_instance() -> None:
    found = [DrawnInstance("dog", mask=disc(60, 200, 30 + 60 * n, 30, 20), number=n) for n in range(3)]
    style = Style(has_labels=False, opacity=1)
    centres = [30, 90, 150]
    by_category = draw_overlay(grey(60, 200), found, style)[30, centres]
    assert {tuple(pixel) for pixel in by_category.tolist()} == {colour_of("dog")}
    by_instance = draw_overlay(grey(60, 200), found, Style(colour_by="instance", has_labels=False, opacity=1))
    assert len({tuple(pixel) for pixel in by_instance[30, centres].tolist()}) == 3
    # Of a filtered image, each instance keeps its colour.
    alone = draw_overlay(grey(60, 200), found[2:], Style(colour_by="instance", has_labels=False, opacity=1))
    np.testing.assert_array_equal(alone[30, 150], by_instance[30, 150])


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ({"size": [60, 200], "counts": "zzz"}, "run lengths cannot be read"),
        ({"size": [60, 200], "counts": "ü"}, "run lengths cannot be read"),
        ({"size": [60, 200], "counts": ""}, "run lengths cannot be read"),
        ({"size": None, "counts": "PXg0"}, "lacks the size"),
        ({"size": [60, None], "counts": "PXg0"}, "lacks the size"),
        ({"size": [60, 200], "counts": None}, "lacks the size"),
        ({"size": [6, 4], "counts": "h0"}, "has 4 x 6 pixels, the image 200 x 60"),
        (np.ones((6, 4), bool), "has 4 x 6 pixels, the image 200 x 60"),
    ],
)
def test_a_damaged_mask_is_left_out_and_named_and_the_others_are_drawn(mask: object, reason: str) -> None:
    good = DrawnInstance("dog", 0.9, mask=disc(60, 200, 150, 30, 20), number=8)
    bad = DrawnInstance("cat", 0.8, (5, 5, 50, 30), mask, number=7)  # type: ignore[arg-type]
    overlay = render_overlay(grey(60, 200), [bad, good], PLAIN)
    assert list(overlay.damaged) == [0]
    assert reason in overlay.damaged[0]
    assert damaged_masks([good, bad], 60, 200) == {1: overlay.damaged[0]}
    right = overlay.pixels[:, 110:]
    np.testing.assert_array_equal(right[:40], draw_overlay(grey(60, 200), [good], PLAIN)[:40, 110:])
    # The note, at the bottom.
    assert (overlay.pixels[-1, 5] != 100).any()
    assert (overlay.pixels[:40, :100] == 100).all()
    with pytest.raises(ValueError, match="mask"):
        crop(grey(60, 200), bad)


def test_a_crop_shows_the_instance_and_not_the_others() -> None:
    image = grey(400, 400)
    image[:, :, 0] = np.arange(400)[None] // 2
    found = DrawnInstance("dog", 0.9, mask=encode_bitmap(disc(400, 400, 200, 100, 50)))
    drawn = crop(image, found, PLAIN)
    assert abs(drawn.shape[0] - 130) <= 2 or max(drawn.shape[:2]) == 160
    assert (crop(image, found, Style(long_side=300, has_labels=False)).shape[:2]) == (300, 300)
    # Eight times at most.
    tiny = DrawnInstance("fly", mask=disc(400, 400, 10, 10, 1))
    assert max(crop(image, tiny, Style(long_side=3000)).shape[:2]) <= 8 * 8
    other = DrawnInstance("cat", mask=disc(400, 400, 220, 120, 30))
    assert (crop(image, found, PLAIN, others=[other]) != drawn).any()
    for nothing in (DrawnInstance("x", mask=np.zeros((400, 400), bool)), DrawnInstance("x", box_xywh=(900, 0, 5, 5))):
        with pytest.raises(ValueError, match=r"neither|outside"):
            crop(image, nothing)


def test_names_in_any_script_are_written_or_escaped(tmp_path: Path) -> None:
    assert writable("naïve Straße") == "naïve Straße"
    assert writable("a\nb\x1b[1m") == "a b\\x1b[1m"
    # A character that no font has.
    assert writable("x\U000e0fff") == "x\\U000e0fff"
    # It alone is escaped.
    assert writable("naïve \U000e0fff Straße") == "naïve \\U000e0fff Straße"
    names = ["猫", "кошка", "قطة", "", "x" * 500, '"><script>', "a/../b"]
    found = [DrawnInstance(name, 0.5, (10, 20 + 50 * n, 300, 30)) for n, name in enumerate(names)]
    assert (draw_overlay(grey(400, 400), found) != 100).any()
    (tmp_path / "no.ttf").write_bytes(b"no font")
    for path in (tmp_path / "no.ttf", tmp_path / "gone.ttf"):
        with pytest.raises(SpecError, match="cannot be used as a font"):
            check_font(path)
