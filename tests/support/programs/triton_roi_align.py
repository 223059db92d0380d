"""Compares the Triton RoIAlign, in Triton's interpreter on the CPU, with `network.roi_align`; prints JSON.

The interpreter takes milliseconds per bin, so maps, channels and bins are few. The last line maps each case to the
largest difference of any pooled value, and to the RoI with it.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch
from torch import Tensor

from htc_model.inference.triton_roi_align import pool_levels
from htc_model.network.roi_align import pool_map, pool_pyramid

HEIGHT, WIDTH, CHANNELS = 96, 128, 5
ROIS = {
    "P2": (0, 10.3, 12.7, 40.1, 70.9),
    "P2, second image": (1, 3.5, 2.25, 90.0, 60.5),
    "whole image, P2": (1, 0.0, 0.0, 128.0, 96.0),
    "exactly the border of P3": (0, 0.0, 0.0, 112.0, 112.0),
    "P3, beyond the image": (0, -20.0, -30.0, 130.0, 140.0),
    "P4, beyond the image": (1, -100.0, -100.0, 150.0, 160.0),
    "P5, far beyond the image": (0, -300.0, -200.0, 300.0, 310.0),
    "outside": (1, -90.0, -80.0, -50.0, -40.0),
    "the last cell": (0, 125.0, 93.0, 128.0, 96.0),
    "within one cell": (1, 50.1, 50.2, 50.4, 50.3),
    "wide and flat": (0, 0.0, 40.0, 128.0, 43.0),
    "no width": (0, 30.0, 10.0, 30.0, 60.0),
    "empty slot": (0, 0.0, 0.0, 0.0, 0.0),
}
# dtype, averaged, with the semantic map, and every how many RoIs are taken.
CASES = {
    "boxes": (torch.float32, 2, True, 1),
    "masks": (torch.float32, 1, True, 3),
    "without semantic": (torch.float32, 1, False, 4),
    "bfloat16": (torch.bfloat16, 2, True, 4),
    "float16": (torch.float16, 1, True, 4),
}
SIDE = 2


def reference(pyramid: list[Tensor], semantic: Tensor | None, rois: Tensor, side: int, averaged: int) -> Tensor:
    pooled = pool_pyramid([level.float() for level in pyramid], rois, side)
    return pooled if semantic is None else pooled + pool_map(semantic.float(), rois, 8, side, averaged=averaged)


def compare(dtype: torch.dtype, averaged: int, with_semantic: bool, every: int) -> tuple[float, str]:
    generator = torch.Generator().manual_seed(0)
    pyramid = [
        torch.randn(2, CHANNELS, -(-HEIGHT // stride), -(-WIDTH // stride), generator=generator).to(dtype)
        for stride in (4, 8, 16, 32, 64)
    ]
    semantic = torch.randn(pyramid[1].shape, generator=generator).to(dtype) if with_semantic else None
    names = list(ROIS)[::every]
    rois = torch.tensor([ROIS[name] for name in names])
    found = pool_levels(pyramid, semantic, rois, SIDE, semantic_averaged=averaged)
    if found.shape != (len(names), CHANNELS, SIDE, SIDE) or found.dtype != dtype:
        sys.exit(f"shape {found.shape}, {found.dtype}")
    if not found.is_contiguous(memory_format=torch.channels_last):
        sys.exit("not channels-last")
    different = (found.float() - reference(pyramid, semantic, rois, SIDE, averaged)).abs().amax((1, 2, 3))
    return float(different.max()), names[int(different.argmax())]


def main() -> None:
    with torch.inference_mode():
        found = {name: compare(*case) for name, case in CASES.items()}
        none = pool_levels([torch.randn(1, 4, 8, 8)] * 5, None, torch.zeros(0, 5), 7)
    found["no RoIs"] = (float(none.shape != (0, 4, 7, 7)), "")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
