"""Many masks at once give what pycocotools gives for each, and what the bitmaps say."""

import numpy as np
import pycocotools.mask as coco
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from htc_model.masks.many_runs import (
    ForegroundRuns,
    RunLengths,
    decode_counts,
    intersect,
    intersection_areas,
    join_texts,
    subtract,
    unite,
)
from htc_model.masks.rle import encode_bitmap

Bitmap = NDArray[np.uint8]


@st.composite
def bitmaps(draw: st.DrawFn, shape: tuple[int, int] | None = None) -> Bitmap:
    """Bitmaps of coarse or fine blocks, empty and full ones among them."""
    height, width = shape or (draw(st.integers(1, 24)), draw(st.integers(1, 24)))
    block = draw(st.integers(1, 4))
    seed, share = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    cells = np.random.default_rng(seed).random((-(-height // block), -(-width // block))) < share
    return np.kron(cells, np.ones((block, block)))[:height, :width].astype(np.uint8)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Bitmap, Bitmap]:
    shape = (draw(st.integers(1, 24)), draw(st.integers(1, 24)))
    return draw(bitmaps(shape)), draw(bitmaps(shape))


def encoded(masks: list[Bitmap]) -> list[dict[str, bytes]]:
    return [coco.encode(np.asfortranarray(mask)) for mask in masks]


def decoded(masks: list[Bitmap]) -> RunLengths:
    sizes = np.array([mask.shape for mask in masks], np.int64).reshape(-1, 2)
    return decode_counts(*join_texts([rle["counts"] for rle in encoded(masks)]), sizes)


def texts(masks: ForegroundRuns) -> list[bytes]:
    return [text.encode() for text in masks.encode()]


@given(st.lists(bitmaps(), max_size=5))
def test_areas_boxes_and_codes_are_those_of_pycocotools(masks: list[Bitmap]) -> None:
    lengths, expected = decoded(masks), encoded(masks)
    runs = lengths.runs()
    assert lengths.is_valid.all()
    assert lengths.areas().tolist() == runs.areas().tolist() == [int(coco.area(rle)) for rle in expected]
    assert runs.boxes_xywh().tolist() == [coco.toBbox(rle).tolist() for rle in expected]
    assert texts(runs) == [rle["counts"] for rle in expected]


@given(st.lists(pairs(), max_size=5))
def test_pairs_are_merged_as_pycocotools_merges_them(drawn: list[tuple[Bitmap, Bitmap]]) -> None:
    one, other = [pair[0] for pair in drawn], [pair[1] for pair in drawn]
    a, b = decoded(one).runs(), decoded(other).runs()
    both = [coco.merge(list(pair), intersect=True) for pair in zip(encoded(one), encoded(other), strict=True)]
    either = [coco.merge(list(pair)) for pair in zip(encoded(one), encoded(other), strict=True)]
    assert intersection_areas(a, b).tolist() == [int(coco.area(rle)) for rle in both]
    assert texts(intersect(a, b)) == [rle["counts"] for rle in both]
    assert texts(unite(a, b)) == [rle["counts"] for rle in either]
    only = encoded([first & ~second & 1 for first, second in zip(one, other, strict=True)])
    assert texts(subtract(a, b)) == [rle["counts"] for rle in only]


@given(st.lists(bitmaps(), max_size=5))
def test_centres_and_outlines_are_those_of_the_bitmaps(masks: list[Bitmap]) -> None:
    runs = decoded(masks).runs()
    for mask, centre, perimeter in zip(masks, runs.centroids(), runs.perimeters(), strict=True):
        rows, columns = np.nonzero(mask)
        expected = (columns.mean() + 0.5, rows.mean() + 0.5) if len(rows) else (np.nan, np.nan)
        np.testing.assert_allclose(centre, expected, rtol=1e-12)
        framed = np.pad(mask.astype(np.int64), 1)
        assert perimeter == np.abs(np.diff(framed, axis=0)).sum() + np.abs(np.diff(framed, axis=1)).sum()


@given(bitmaps(), st.data())
def test_a_crop_is_the_part_of_the_bitmap(mask: Bitmap, data: st.DataObject) -> None:
    height, width = mask.shape
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.floats(0.25, 30)), data.draw(st.floats(0.25, 30))
    part = mask[y : int(np.ceil(y + h)), x : int(np.ceil(x + w))]
    cut = decoded([mask]).runs().crop(np.array([[x, y, w, h]], np.float64))
    assert cut.sizes.tolist() == [list(part.shape)]
    assert texts(cut) == [encode_bitmap(part)["counts"]]


@pytest.mark.parametrize("box", [(4, 0, 3, 3), (0, 0, 0, 5), (-5, 0, 5, 2), (0, 0, float("nan"), 1)])
def test_a_crop_without_a_pixel_of_the_image_is_refused(box: tuple[float, ...]) -> None:
    masks = decoded([np.ones((4, 4), np.uint8)]).runs()
    with pytest.raises(ValueError, match=r"no pixel inside|not finite"):
        masks.crop(np.array([box], np.float64))


@given(st.lists(st.tuples(bitmaps(), st.integers(0, 7), st.data()), min_size=1, max_size=5))
def test_a_damaged_code_is_found_and_leaves_the_others_as_they_are(
    drawn: list[tuple[Bitmap, int, st.DataObject]],
) -> None:
    """Masks 0 to 3 stay whole; of the others a character is changed, dropped or added, or the text is cut."""
    masks, codes = [mask for mask, _, _ in drawn], []
    for mask, kind, data in drawn:
        code = bytearray(encode_bitmap(mask)["counts"])
        at = data.draw(st.integers(0, len(code) - 1))
        if kind == 4:
            code[at] = data.draw(st.integers(0, 127))
        elif kind == 5:
            del code[at]
        elif kind == 6:
            code.insert(at, data.draw(st.integers(0, 127)))
        elif kind == 7:
            del code[at:]
        codes.append(bytes(code))
    sizes = np.array([mask.shape for mask in masks], np.int64)
    lengths = decode_counts(*join_texts(codes), sizes)
    for i, (mask, code) in enumerate(zip(masks, codes, strict=True)):
        alone = decode_counts(*join_texts([code]), sizes[i : i + 1])
        assert lengths.is_valid[i] == alone.is_valid[0]
        if code == encode_bitmap(mask)["counts"]:
            assert lengths.is_valid[i]
            assert lengths.areas()[i] == mask.sum()
        elif lengths.is_valid[i]:
            # Another mask of the same size by chance: pycocotools reads the same one.
            assert coco.area({"size": list(mask.shape), "counts": code}) == lengths.areas()[i]


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ((2, 2), ""),
        ((2, 2), "4\x00"),
        ((0, 4), "0"),
        ((2, 2), "5"),
        ((2, 2), "P"),
        ((2, 2), "oooooooo4"),
        ((2, 2), "O5"),
    ],
)
def test_what_is_no_code_of_the_size_is_not_valid(size: tuple[int, int], counts: str) -> None:
    assert not decode_counts(*join_texts([counts]), np.array([size], np.int64)).is_valid[0]


def test_a_text_that_only_continues_leaves_the_next_one_whole() -> None:
    whole = encode_bitmap(np.eye(9, dtype=np.uint8))["counts"]
    lengths = decode_counts(*join_texts([whole, "damaged", whole]), np.array([(9, 9)] * 3, np.int64))
    assert lengths.is_valid.tolist() == [True, False, True]


def test_runs_of_no_pixels_and_of_touching_pixels_are_one() -> None:
    # Background 1, foreground 0, background 1, foreground 1, background 0, foreground 1: pixels 2 and 3.
    lengths = decode_counts(*join_texts(["101000"]), np.array([[2, 2]], np.int64))
    runs = RunLengths(
        np.array([1, 0, 1, 1, 0, 1]), np.array([0, 6]), np.array([[2, 2]], np.int64), np.array([True])
    ).runs()
    assert (runs.begins.tolist(), runs.ends.tolist()) == ([2], [4])
    assert lengths.first.tolist() == [0, 6]
    assert runs.boxes_xywh().tolist() == [[1, 0, 1, 2]]
