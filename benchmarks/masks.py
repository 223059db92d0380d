"""Compares two ways to encode an image's mask maps as COCO RLE: line crossings, and rasterising at full size.

The second samples every map over a canvas of the image's size (`grid_sample`), thresholds it and encodes the bitmap
with `pycocotools`. Both get the same maps and boxes, on one CPU thread; the masks are compared. Prints one JSON line
per image size.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import pycocotools.mask as coco
import torch
import torch.nn.functional as F
from torch import Tensor

from htc_model.masks.encode import encode_masks
from htc_model.structures import Rle

INSTANCES = 100
# Height and width in pixels, and the mean of the boxes' sides as a share of the image's.
CASES = ((480, 640, 0.3), (1080, 1920, 0.3), (3000, 4000, 0.3))
REPEATS = 5


def make_detections(height: int, width: int, share: float) -> tuple[Tensor, Tensor]:
    """Generate smooth random maps [N, 28, 28] and boxes_xyxy [N, 4] around random centres."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(INSTANCES, 1, 7, 7, generator=generator) * 5
    maps = torch.sigmoid(F.interpolate(coarse, size=(28, 28), mode="bicubic")[:, 0])
    scale = torch.tensor([width, height], dtype=torch.float32)
    centres = torch.rand(INSTANCES, 2, generator=generator) * scale
    sides = (0.5 + torch.rand(INSTANCES, 2, generator=generator)) * scale * share
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    return maps, torch.minimum(boxes.clamp(min=0), scale.repeat(2))


def paste_and_encode(maps: Tensor, boxes_xyxy: Tensor, size: tuple[int, int]) -> list[Rle]:
    """Encode by rasterising, one canvas at a time (a hundred at once would take gigabytes)."""
    height, width = size
    encoded = []
    for probs, (x0, y0, x1, y1) in zip(maps, boxes_xyxy.tolist(), strict=True):
        y = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
        x = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        canvas = F.grid_sample(probs[None, None], grid[None], align_corners=False)[0, 0]
        encoded.append(coco.encode(np.asfortranarray((canvas >= 0.5).to(torch.uint8).numpy())))
    return encoded


def median_s(action: Callable[[], object], repeats: int) -> float:
    """Measure the median wall seconds of an action, after one warm-up."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Measure every case."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    for height, width, share in CASES:
        maps, boxes = make_detections(height, width, share)
        size = (height, width)
        ours, theirs = encode_masks(maps, boxes, size), paste_and_encode(maps, boxes, size)
        ours_s = median_s(lambda: encode_masks(maps, boxes, size), REPEATS)  # noqa: B023 (called at once)
        theirs_s = median_s(lambda: paste_and_encode(maps, boxes, size), 1)  # noqa: B023
        result = {
            "benchmark": "masks",
            "compares": "htc_model.masks.encode.encode_masks with full-size grid_sample + pycocotools.encode",
            "height": height,
            "width": width,
            "instances": INSTANCES,
            "ours_s": round(ours_s, 4),
            "full_size_s": round(theirs_s, 3),
            "ratio": round(theirs_s / ours_s, 1),
            "identical_masks": sum(a == b for a, b in zip(ours, theirs, strict=True)),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
