"""COCO's run-length code, byte for byte that of pycocotools."""

import subprocess
import sys

import numpy as np
import pycocotools.mask as coco
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from htc_model.masks.rle import decode_rle, encode_bitmap, encode_runs, rle_area

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70))


def reference(mask: np.ndarray) -> dict[str, object]:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def special_masks() -> dict[str, np.ndarray]:
    height, width = 37, 53
    empty = np.zeros((height, width), bool)
    masks = {"empty": empty, "full": ~empty}
    for name, where in {
        "top": np.s_[0, 5:9],
        "bottom": np.s_[-1, 5:9],
        "left": np.s_[5:9, 0],
        "right": np.s_[5:9, -1],
        "first pixel": np.s_[0, 0],
        "last pixel": np.s_[-1, -1],
        "bottom to next top": np.s_[:, 3:6],
    }.items():
        masks[name] = empty.copy()
        masks[name][where] = True
    masks |= {"1x1 set": np.ones((1, 1), bool), "1x1 clear": np.zeros((1, 1), bool)}
    masks |= {"one row": np.arange(400)[None] % 7 < 3, "one column": np.arange(400)[:, None] % 7 < 3}
    # A run of more than 2^20 pixels needs five digits, and a shorter one after it a negative difference.
    long = np.zeros((3000, 1000), bool)
    long[:, 400] = True
    long[5, 900] = True
    return masks | {"long runs": long}


@pytest.mark.parametrize("name", special_masks())
def test_special_masks_encode_as_pycocotools_does(name: str) -> None:
    mask = special_masks()[name]
    rle = encode_bitmap(mask)
    assert rle == reference(mask)
    assert rle_area(rle) == mask.sum()
    np.testing.assert_array_equal(decode_rle(rle), mask)


@settings(max_examples=300, deadline=None)
@given(mask=SHAPES.flatmap(lambda shape: hnp.arrays(bool, shape)))
def test_any_mask_encodes_as_pycocotools_does(mask: np.ndarray) -> None:
    rle = encode_bitmap(mask)
    assert rle == reference(mask)
    assert rle_area(rle) == mask.sum()
    np.testing.assert_array_equal(decode_rle(rle), mask)


@settings(max_examples=100, deadline=None)
@given(
    masks=SHAPES.flatmap(
        lambda shape: st.lists(hnp.arrays(bool, shape, elements=st.sampled_from([True, False])), max_size=5)
    )
)
def test_several_masks_are_encoded_each_on_its_own(masks: list[np.ndarray]) -> None:
    begins, ends, counts = [], [], []
    for mask in masks:
        padded = np.concatenate([[0], mask.ravel(order="F").astype(int), [0]])
        steps = np.diff(padded)
        begins += list(np.flatnonzero(steps == 1))
        ends += list(np.flatnonzero(steps == -1))
        counts.append(int((steps == 1).sum()))
    size = masks[0].shape if masks else (3, 4)
    encoded = encode_runs(*(np.array(part, np.int64) for part in (begins, ends, counts)), size)
    assert encoded == [reference(mask) for mask in masks]


def test_text_counts_are_read_too() -> None:
    mask = np.eye(9, dtype=bool)
    rle = encode_bitmap(mask)
    as_json = {"size": rle["size"], "counts": rle["counts"].decode()}
    np.testing.assert_array_equal(decode_rle(as_json), mask)


@pytest.mark.parametrize(
    "counts", [b"", b"\x01", b"~~", b"P", b"5", b"oooooooooo0"], ids=["empty", "low", "high", "cut", "short", "huge"]
)
def test_a_damaged_code_is_refused(counts: bytes) -> None:
    with pytest.raises(ValueError, match="mask"):
        decode_rle({"size": [2, 3], "counts": counts})


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (1, 2, 3)])
def test_a_mask_without_pixels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        encode_bitmap(np.zeros(shape, bool))


def test_reading_masks_needs_no_torch() -> None:
    code = "import sys; import htc_model.masks.rle, htc_model.weights.model_zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
