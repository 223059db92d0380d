"""Masks of the whole image, of any resolution, are encoded as if they had been drawn at the image's size."""

import os
import subprocess
import sys

import numpy as np
import pycocotools.mask as coco
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from htc_model.finite import NonFiniteError
from htc_model.masks.frames import encode_frames, encode_maps
from htc_model.masks.rle import decode_rle
from htc_model.structures import FrameDetections
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# F.interpolate rounds in another order: this near to the threshold, relative to the largest value, it may differ.
TIE = 1e-5


def stretch(maps: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Sample maps [N, h, w] at every pixel, by the formula that the module states, in NumPy: [N, H, W]."""

    def taps(new: int, old: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        scale = np.float32(old) / np.float32(new)
        place = np.maximum(scale * (np.arange(new).astype(np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
        low = np.minimum(place.astype(np.int64), old - 1)
        return low, np.minimum(low + 1, old - 1), np.minimum(place - low.astype(np.float32), 1).astype(np.float32)

    values = maps.float().numpy()
    for axis, new in ((2, size[1]), (1, size[0])):
        low, high, weight = taps(new, values.shape[axis])
        before, after = values.take(low, axis), values.take(high, axis)
        values = before + weight.reshape((-1, 1) if axis == 1 else -1) * (after - before)
    return values


def draw_and_encode(is_set: NDArray[np.bool_]) -> list[dict[str, object]]:
    return [dict(coco.encode(np.asfortranarray(each.astype(np.uint8)))) for each in is_set]


def detections(masks: Tensor, size: tuple[int, int], *, is_logits: bool = True) -> FrameDetections:
    scores = torch.linspace(0.9, 0.1, len(masks))
    return FrameDetections(None, scores, torch.zeros(len(masks), dtype=torch.int64), masks, is_logits, size)


SIDES = st.integers(1, 40)
# Ties and flat stretches are common among few values.
VALUES = st.sampled_from(["normal", "few", "tiny", "ramps"])


def make_maps(count: int, height: int, width: int, kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "few":
        return torch.randint(-2, 3, (count, height, width), generator=generator).float()
    values = torch.randn(count, height, width, generator=generator)
    if kind == "tiny":
        return values * 1e-7 + torch.randint(0, 2, values.shape, generator=generator) * 1e-7
    return values.cumsum(1) if kind == "ramps" else values * 3


@settings(max_examples=120)
@given(
    count=st.integers(0, 4),
    shape=st.tuples(SIDES, SIDES),
    size=st.tuples(SIDES, SIDES),
    kind=VALUES,
    seed=st.integers(0, 10_000),
    chunk_pixels=st.sampled_from([1, 37, 500, 2**19]),
    is_logits=st.booleans(),
)
@example(count=1, shape=(1, 1), size=(1, 1), kind="normal", seed=0, chunk_pixels=1, is_logits=True)
@example(count=2, shape=(40, 40), size=(1, 1), kind="normal", seed=0, chunk_pixels=1, is_logits=True)
def test_maps_are_encoded_as_if_drawn(
    *,
    count: int,
    shape: tuple[int, int],
    size: tuple[int, int],
    kind: str,
    seed: int,
    chunk_pixels: int,
    is_logits: bool,
) -> None:
    maps = make_maps(count, *shape, kind, seed)
    if not is_logits:
        maps = maps + 0.5
    threshold = 0.0 if is_logits else 0.5
    masks, boxes = encode_maps(maps, size, threshold=threshold, chunk_pixels=chunk_pixels)
    drawn = stretch(maps, size) > threshold
    assert masks == draw_and_encode(drawn)
    for box, is_set in zip(boxes.tolist(), drawn, strict=True):
        y, x = np.nonzero(is_set)
        assert box == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])


@settings(max_examples=60)
@given(
    count=st.integers(1, 3),
    shape=st.tuples(SIDES, SIDES),
    size=st.tuples(SIDES, SIDES),
    seed=st.integers(0, 10_000),
    chunk_pixels=st.sampled_from([1, 90, 2**19]),
)
def test_stretching_is_that_of_torch_but_for_ties(
    count: int, shape: tuple[int, int], size: tuple[int, int], seed: int, chunk_pixels: int
) -> None:
    maps = make_maps(count, *shape, "normal", seed)
    masks, _ = encode_maps(maps, size, threshold=0.0, chunk_pixels=chunk_pixels)
    values = F.interpolate(maps[None].double(), size=size, mode="bilinear", align_corners=False)[0].numpy()
    for rle, wanted in zip(masks, values, strict=True):
        is_clear = np.abs(wanted) > TIE * float(maps.abs().max())
        np.testing.assert_array_equal(decode_rle(rle)[is_clear], (wanted > 0)[is_clear])


@settings(max_examples=60)
@given(
    size=st.tuples(SIDES, SIDES),
    seed=st.integers(0, 10_000),
    share=st.sampled_from([0.0, 0.03, 0.5, 0.97, 1.0]),
    chunk_pixels=st.sampled_from([1, 90, 2**19]),
)
def test_bitmaps_of_the_images_size_are_encoded_as_they_are(
    size: tuple[int, int], seed: int, share: float, chunk_pixels: int
) -> None:
    bitmaps = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) < share
    masks, _ = encode_maps(bitmaps, size, threshold=0.5, chunk_pixels=chunk_pixels)
    assert masks == draw_and_encode(bitmaps.numpy())
    as_floats, _ = encode_maps(bitmaps.float(), size, threshold=0.5, chunk_pixels=chunk_pixels)
    assert as_floats == masks


def test_bitmaps_of_another_size_are_sampled_as_zeros_and_ones() -> None:
    bitmaps = torch.rand(4, 17, 23, generator=torch.Generator().manual_seed(1)) < 0.4
    for size in ((34, 46), (100, 31), (9, 12), (1, 1)):
        masks, _ = encode_maps(bitmaps, size, threshold=0.5)
        assert masks == draw_and_encode(stretch(bitmaps.float(), size) > 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_other_dtypes(dtype: torch.dtype) -> None:
    maps = make_maps(2, 13, 9, "normal", seed=3).to(dtype)
    masks, _ = encode_maps(maps, (52, 70), threshold=0.0)
    assert masks == draw_and_encode(stretch(maps.float(), (52, 70)) > 0)


def test_maps_need_not_be_contiguous() -> None:
    maps = make_maps(3, 20, 30, "normal", seed=4)
    padded = torch.zeros(3, 32, 48)
    padded[:, :20, :30] = maps
    assert encode_maps(padded[:, :20, :30], (61, 77), threshold=0.0)[0] == encode_maps(maps, (61, 77), threshold=0.0)[0]


def test_the_most_confident_comes_first_and_what_has_no_pixel_is_left_out() -> None:
    masks = torch.full((4, 5, 5), -1.0)
    masks[0, 1, 2] = masks[1, 3:, :] = masks[3, :, 4] = 1.0
    found = FrameDetections(
        None,
        torch.tensor([0.2, 0.9, 0.8, 0.5]),
        torch.tensor([0, 1, 2, 3]),
        masks,
        is_logits=True,
        original_size=(5, 5),
    )
    encoded = encode_frames(found)
    assert encoded.labels.tolist() == [1, 3, 0]
    assert encoded.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert encoded.boxes_xyxy.tolist() == [[0, 3, 5, 5], [4, 0, 5, 5], [2, 1, 3, 2]]
    assert encoded.masks is not None
    assert [int(decode_rle(rle).sum()) for rle in encoded.masks] == [10, 5, 1]


def test_boxes_of_the_model_are_kept_with_empty_masks_too() -> None:
    boxes = torch.tensor([[0.5, 0.5, 3.0, 2.0], [1.0, 1.0, 2.0, 2.0]])
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[1] = True
    found = FrameDetections(boxes, torch.tensor([0.3, 0.6]), torch.tensor([1, 0]), masks, False, (4, 6))
    encoded = encode_frames(found)
    assert encoded.boxes_xyxy.tolist() == boxes.flip(0).tolist()
    assert encoded.masks is not None
    assert [int(decode_rle(rle).sum()) for rle in encoded.masks] == [24, 0]


def test_no_instances() -> None:
    encoded = encode_frames(detections(torch.zeros(0, 7, 9), (70, 90)))
    assert len(encoded) == 0
    assert encoded.masks == []
    assert encoded.boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["masks", "scores", "boxes"])
def test_numbers_that_are_not_finite(value: float, where: str) -> None:
    tensors = {"masks": torch.zeros(2, 6, 6), "scores": torch.tensor([0.5, 0.4]), "boxes": torch.zeros(2, 4)}
    tensors[where].view(-1)[1] = value
    found = FrameDetections(
        tensors["boxes"], tensors["scores"], torch.zeros(2, dtype=torch.int64), tensors["masks"], True, (20, 20)
    )
    with pytest.raises(NonFiniteError, match=where):
        encode_frames(found)


def test_numbers_that_do_not_fit_together() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    for boxes, masks in (
        (None, torch.zeros(3, 4, 4)),
        (None, torch.zeros(2, 4)),
        (None, torch.zeros(2, 0, 4)),
        (torch.zeros(3, 4), torch.zeros(2, 4, 4)),
    ):
        with pytest.raises(ValueError, match=r"masks|boxes"):
            encode_frames(FrameDetections(boxes, torch.ones(2), labels, masks, True, (4, 4)))


_GROWTH_CODE = """
import re, sys, torch
from pathlib import Path
from htc_model.masks.frames import encode_frames
from htc_model.structures import FrameDetections
from tests.support.paths import ROOT
torch.set_num_threads(1)
def encode(masks, size):
    scores, labels = torch.ones(len(masks)), torch.zeros(len(masks), dtype=torch.int64)
    return len(encode_frames(FrameDetections(None, scores, labels, masks, True, size)))
def peak_kib():  # getrusage would begin with the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
if sys.argv[1] == "maps":
    maps = torch.nn.functional.interpolate(torch.randn(1, 100, 9, 12), size=(200, 267), mode="bicubic")[0]
else:
    maps = torch.zeros(10, 3000, 4000, dtype=torch.bool)
if sys.argv[1] == "bitmaps":
    for place, bitmap in enumerate(maps):
        bitmap[:, place : place + 2000] = True
encode(torch.randn(2, 20, 20), (30, 30))  # the libraries' own memory
try:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on that of what follows
except OSError:
    pass
before = peak_kib()
count = encode(maps, (3000, 4000))
print((peak_kib() - before) // 1024, count)
"""


@pytest.mark.parametrize(("masks", "instances"), [("maps", 100), ("bitmaps", 10)])
def test_instances_on_twelve_megapixels_take_little_memory(masks: str, instances: int) -> None:
    """Peak growth in MiB, for masks all over the image; a hundred drawn at full size take 4.8 GB."""
    command = [sys.executable, "-c", _GROWTH_CODE, masks]
    # What was freed before goes back to the system, and does not hide what is needed now.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    growth_mib, count = map(int, printed.split())
    assert count == instances
    assert growth_mib < 64
