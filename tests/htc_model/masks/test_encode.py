"""Masks from line crossings are equal to those of bilinear pasting."""

import subprocess
import sys

import numpy as np
import pycocotools.mask as coco
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from htc_model.masks.encode import encode_detections, encode_masks
from htc_model.masks.rle import decode_rle
from htc_model.structures import RawDetections
from tests.support.paths import DATA, ROOT

# pycocotools' compiled `decode` uses a protocol of numpy 1; `decode_rle` does not use it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TIE = 2e-5  # at this distance from the threshold, float32 sampling may give the other side


def paste(probs: Tensor, box: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Sample a map over a canvas as large as the image, the published way; [H, W] float."""
    height, width = size
    x0, y0, x1, y1 = box.double()
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - y0) / (y1 - y0) * 2 - 1
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - x0) / (x1 - x0) * 2 - 1
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
    sampled = F.grid_sample(probs.double()[None, None], grid[None], align_corners=False)
    return sampled[0, 0].numpy()


def smooth_maps(count: int, seed: int, cells: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, cells, cells, generator=generator) * 5
    return torch.sigmoid(F.interpolate(coarse, size=(28, 28), mode="bicubic")[:, 0])


def assert_same_masks(
    probs: Tensor, boxes: Tensor, size: tuple[int, int], *, threshold: float = 0.5, chunk_columns: int = 32_768
) -> None:
    encoded = encode_masks(probs, boxes, size, threshold=threshold, chunk_columns=chunk_columns)
    assert len(encoded) == len(probs)
    for rle, map_probs, box in zip(encoded, probs, boxes, strict=True):
        values = paste(map_probs, box, size)
        drawn = coco.decode(rle).astype(bool)
        is_clear = np.abs(values - threshold) > TIE
        np.testing.assert_array_equal(drawn[is_clear], values[is_clear] >= threshold)
        assert rle == coco.encode(np.asfortranarray(drawn.astype(np.uint8)))


# The ten best detections of two images: mask maps, boxes, and the RLE that MMDetection 3.3.0 gave.
PUBLISHED_FILE = DATA / "masks" / "published.npz"


@pytest.mark.parametrize("name", ["photo", "tiny"])
def test_masks_are_bit_identical_to_the_published_pipelines(name: str) -> None:
    with np.load(PUBLISHED_FILE) as stored:
        probs, boxes = (torch.from_numpy(stored[f"{name}.{part}"]) for part in ("mask_probs", "boxes_xyxy"))
        height, width = stored[f"{name}.size"].tolist()
        counts = [str(text).encode() for text in stored[f"{name}.counts"]]
    assert [rle["counts"] for rle in encode_masks(probs, boxes, (height, width))] == counts


BOXES = {
    "inside": (10.25, 20.75, 60.5, 70.125),
    "integer corners": (10.0, 20.0, 40.0, 60.0),
    "half-pixel corners": (10.5, 20.5, 40.5, 60.5),
    "whole image": (0.0, 0.0, 120.0, 90.0),
    "sticks out everywhere": (-31.5, -17.0, 150.0, 111.0),
    "over the left top": (-20.0, -20.0, 30.0, 30.0),
    "over the right bottom": (100.0, 70.0, 140.0, 130.0),
    "outside": (200.0, 10.0, 240.0, 50.0),
    "smaller than a pixel": (10.1, 10.1, 10.6, 10.6),
    "one column": (10.0, 0.0, 11.0, 90.0),
    "one row": (0.0, 10.0, 120.0, 11.0),
    "less than a pixel high": (0.0, 10.2, 120.0, 10.9),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("kind", ["smooth", "noise", "ones", "zeros"])
def test_masks_are_those_of_pasting(kind: str, box: tuple[float, ...]) -> None:
    probs = {
        "smooth": smooth_maps(2, seed=1),
        "noise": torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(2)),
        "ones": torch.ones(2, 28, 28),
        "zeros": torch.zeros(2, 28, 28),
    }[kind]
    assert_same_masks(probs, torch.tensor([box, box]), (90, 120))


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    corners=st.lists(
        st.tuples(*[st.floats(-40, 130, width=32)] * 2, *[st.floats(0.125, 150, width=32)] * 2),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 1000),
    chunk_columns=st.sampled_from([1, 7, 50, 32_768]),
    threshold=st.sampled_from([0.5, 0.3, 0.75]),
)
def test_any_boxes_and_chunks_give_the_same_masks(
    size: tuple[int, int],
    corners: list[tuple[float, float, float, float]],
    seed: int,
    chunk_columns: int,
    threshold: float,
) -> None:
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in corners])
    probs = smooth_maps(len(boxes), seed, cells=4 + seed % 20)
    assert_same_masks(probs, boxes, size, threshold=threshold, chunk_columns=chunk_columns)


def test_a_box_without_area_gives_an_empty_mask() -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0, 20.0], [5.0, 5.0, 20.0, 5.0], [9.0, 9.0, 3.0, 3.0]])
    boxes = torch.cat([boxes, torch.tensor([[float("nan"), 0.0, 5.0, 5.0]])])
    for rle in encode_masks(torch.ones(4, 28, 28), boxes, (30, 40)):
        assert rle == coco.encode(np.zeros((30, 40), np.uint8, order="F"))


def test_no_instances_give_no_masks() -> None:
    assert encode_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (30, 40)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_maps_are_worked_on_in_float32(dtype: torch.dtype) -> None:
    probs = smooth_maps(3, seed=4).to(dtype)
    boxes = torch.tensor([[3.3, 4.4, 50.5, 61.6]]).expand(3, 4)
    assert encode_masks(probs, boxes, (70, 60)) == encode_masks(probs.float(), boxes, (70, 60))


def test_detections_of_inference_mode_are_encoded() -> None:
    with torch.inference_mode():
        raw = RawDetections(
            boxes_xyxy=torch.tensor([[1.0, 2.0, 30.0, 40.0]]),
            scores=torch.tensor([0.9]),
            labels=torch.tensor([7]),
            mask_probs=torch.ones(1, 28, 28),
            original_size=(50, 40),
        )
    detections = encode_detections(raw)
    assert detections.masks is not None
    drawn = decode_rle(detections.masks[0])
    assert drawn.shape == (50, 40)
    assert drawn[3:39, 2:29].all()
    assert drawn.sum() == pytest.approx(29 * 38, rel=0.01)  # the corners are rounded off
    assert (len(detections), detections.labels.tolist()) == (1, [7])


def test_a_model_without_masks_has_none() -> None:
    raw = RawDetections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), None, (5, 5))
    assert encode_detections(raw).masks is None


_GROWTH_CODE = """
import re, torch
from pathlib import Path
from htc_model.masks.encode import encode_masks
torch.set_num_threads(1)
probs, boxes = torch.rand(100, 28, 28), torch.tensor([[0.0, 0.0, 4000.0, 3000.0]]).expand(100, 4)
encode_masks(probs[:1, :2, :2], boxes[:1], (3, 4))  # the libraries' own memory
def peak_kib():  # getrusage would begin with the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak_kib()
masks = encode_masks(probs, boxes, (3000, 4000))
print((peak_kib() - before) // 1024, len(masks))
"""


def test_a_hundred_instances_on_twelve_megapixels_take_little_memory() -> None:
    """The worst case: every box is the whole image, every map is noise; peak growth in MiB."""
    printed = subprocess.run(
        [sys.executable, "-c", _GROWTH_CODE],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    growth_mib, masks = map(int, printed.split())
    assert masks == 100
    assert growth_mib < 300
