"""Compares two ways to encode masks of the whole image: ours, and drawing them all at the photo's size.

    python benchmarks/frame_masks.py [--rounds 5]

The second is what a program around Hugging Face's models does: `interpolate` all maps of a photo to its size, compare
with the threshold, and `pycocotools.encode` each bitmap. Both get the same maps, on one CPU thread, and alternate; the
masks are compared. Maps are smooth logits of objects that cover some five percent of the photo each; bitmaps are of the
photo's size. The last line is one JSON object: CPU seconds per photo, medians of the rounds, and how much each way adds
to a process's peak memory.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as coco
import torch
import torch.nn.functional as F
from torch import Tensor

from htc_model.masks.frames import encode_maps
from htc_model.structures import Rle

Size = tuple[int, int]
# Instances, height and width of the maps (None: bitmaps of the photo's size), and of the photo. Drawing a hundred
# instances on 12 megapixels at once would take 4.8 GB, so that this way gets twenty there.
CASES: tuple[tuple[int, Size | None, Size], ...] = (
    (100, (96, 96), (480, 640)),
    (100, (120, 160), (480, 640)),
    (100, (200, 267), (1080, 1440)),
    (20, (200, 267), (3000, 4000)),
    (20, None, (3000, 4000)),
)


def make_maps(count: int, size: Size) -> Tensor:
    """Make smooth logits [N, h, w]: discs of several sizes with uneven borders."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    y, x = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    centres, radii = torch.rand(count, 2, 1, 1, generator=generator), torch.rand(count, 1, 1, generator=generator)
    discs = 0.02 + radii * 0.2 - ((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2).sqrt()
    uneven = F.interpolate(torch.randn(1, count, 12, 16, generator=generator), size=size, mode="bicubic")[0]
    return discs * 40 + uneven * 2


def make_case(count: int, maps: Size | None, photo: Size) -> Tensor:
    """Make the maps of a case; bool for bitmaps."""
    if maps is not None:
        return make_maps(count, maps)
    bitmaps = [
        F.interpolate(each[None, None], size=photo, mode="bilinear")[0, 0] > 0 for each in make_maps(count, (200, 267))
    ]
    return torch.stack(bitmaps)


def encode_ours(masks: Tensor, photo: Size) -> list[Rle]:
    """Encode without drawing."""
    return encode_maps(masks, photo, threshold=0.5 if masks.dtype == torch.bool else 0.0)[0]


def draw_and_encode(masks: Tensor, photo: Size) -> list[Rle]:
    """Draw all masks at the photo's size, and encode them."""
    if masks.dtype != torch.bool:
        masks = F.interpolate(masks[None], size=photo, mode="bilinear", align_corners=False)[0] > 0
    return [coco.encode(np.asfortranarray(each.astype(np.uint8))) for each in masks.numpy()]


WAYS: dict[str, Callable[[Tensor, Size], list[Rle]]] = {"ours": encode_ours, "drawn": draw_and_encode}


def cpu_s(action: Callable[[], object]) -> float:
    """Measure the CPU seconds of an action."""
    start = time.process_time()
    action()
    return time.process_time() - start


def peak_mib() -> float:
    """Return this process's peak memory."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def print_growth(case: int, way: str) -> None:
    """Print how much a way adds to the peak, in a process of its own."""
    count, maps, photo = CASES[case]
    masks = make_case(count, maps, photo)
    WAYS[way](make_maps(2, (20, 20)), (30, 30))  # the libraries' own memory
    # Linux: the peak is from now on that of what follows.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mib()
    WAYS[way](masks, photo)
    print(round(peak_mib() - before))


def growth_mib(case: int, way: str) -> int:
    """Measure how much a way adds to the peak."""
    command = [sys.executable, __file__, "--growth", str(case), way]
    # What was freed before goes back to the system, and does not hide what is needed now.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--growth", nargs=2, metavar=("CASE", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.growth:
        print_growth(int(options.growth[0]), options.growth[1])
        return
    cases = []
    for number, (count, maps, photo) in enumerate(CASES):
        masks = make_case(count, maps, photo)
        encoded = {way: encode(masks, photo) for way, encode in WAYS.items()}
        rounds = [
            {way: cpu_s(lambda encode=encode: encode(masks, photo)) for way, encode in WAYS.items()}  # type: ignore[misc]  # noqa: B023
            for _ in range(options.rounds)
        ]
        case = {
            "instances": count,
            "maps": "bitmaps" if maps is None else list(maps),
            "photo": list(photo),
            "ours_s": round(statistics.median(each["ours"] for each in rounds), 4),
            "drawn_s": round(statistics.median(each["drawn"] for each in rounds), 4),
            "ratio": round(statistics.median(each["drawn"] / each["ours"] for each in rounds), 1),
            "identical_masks": sum(a == b for a, b in zip(encoded["ours"], encoded["drawn"], strict=True)),
            "ours_mib": growth_mib(number, "ours"),
            "drawn_mib": growth_mib(number, "drawn"),
        }
        print(json.dumps(case), file=sys.stderr)
        cases.append(case)
    print(
        json.dumps(
            {"benchmark": "frame_masks", "compares": "encode_maps with interpolate + pycocotools", "cases": cases}
        )
    )


if __name__ == "__main__":
    main()
