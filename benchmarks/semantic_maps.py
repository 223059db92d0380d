"""Compares two ways from a semantic branch's logits to COCO masks: in runs, and with all logits at full size.

The second interpolates every class's logits to the image's size (`F.interpolate`), takes the highest, and encodes each
class's bitmap with `pycocotools`. Both get the same made logits of 183 classes on one CPU thread, in turn, each in a
process of its own, whose peak memory beyond the logits is measured too. It is not run where it would take more than
--most-gib. Prints one JSON line per image size.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pycocotools.mask as coco
import torch
import torch.nn.functional as F

from htc_model.masks.semantic_runs import encode_semantic
from htc_model.structures import SemanticMap

CLASSES, STRIDE = 183, 8
# Height and width of the photo, and of the resized image.
CASES = (((480, 640), (800, 1067)), ((1080, 1920), (750, 1333)), ((3000, 4000), (800, 1067)))
ROUNDS = 5


def make_map(image_size: tuple[int, int]) -> SemanticMap:
    """Make smooth logits, with regions of some fifty of the classes."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, CLASSES, 8, 11, generator=generator) * 3
    coarse += torch.randn(1, CLASSES, 1, 1, generator=generator) * 3
    height, width = (-(-side // STRIDE) for side in image_size)
    return SemanticMap(F.interpolate(coarse, (height, width), mode="bicubic")[0], image_size, STRIDE)


def in_runs(seen: SemanticMap, size: tuple[int, int]) -> int:
    """Encode as a worker does; return the number of masks."""
    return len(encode_semantic([seen], size))


def at_full_size(seen: SemanticMap, size: tuple[int, int]) -> int:
    """Encode by way of all logits; return the number of masks."""
    labels = F.interpolate(seen.logits[None], size, mode="bilinear")[0].argmax(dim=0).to(torch.uint8).numpy()
    return len([coco.encode(np.asfortranarray(labels == label, np.uint8)) for label in np.unique(labels)])


WAYS: dict[str, Callable[[SemanticMap, tuple[int, int]], int]] = {"in_runs": in_runs, "full_size": at_full_size}


def measure(way: str, case: tuple[tuple[int, int], tuple[int, int]]) -> tuple[float, int, int]:
    """Return the seconds, the bytes of memory beyond the logits, and the number of masks."""
    torch.set_num_threads(1)
    size, image_size = case
    seen = make_map(image_size)
    WAYS[way](make_map((80, 80)), (64, 64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    masks = WAYS[way](seen, size)
    seconds = time.perf_counter() - start
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, masks


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--most-gib", type=float, default=4.0, help="of the full-size logits")
    arguments = parser.parse_args()
    for case in CASES:
        (height, width), _ = case
        full_bytes = height * width * CLASSES * 4
        ways = [way for way in WAYS if way == "in_runs" or full_bytes <= arguments.most_gib * 2**30]
        found: dict[str, list[tuple[float, int, int]]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way in ways:
                # A process of its own, because the peak of memory is one for a process.
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    found[way].append(pool.submit(measure, way, case).result())
        seconds = {way: statistics.median(second for second, _, _ in each) for way, each in found.items()}
        memory = {way: max(used for _, used, _ in each) for way, each in found.items()}
        result: dict[str, object] = {
            "benchmark": "semantic_maps",
            "compares": "htc_model.masks.semantic_runs with F.interpolate at full size + argmax + pycocotools.encode",
            "height": height,
            "width": width,
            "classes": CLASSES,
            "masks": found["in_runs"][0][2],
            "ours_s": round(seconds["in_runs"], 3),
            "ours_mib": round(memory["in_runs"] / 2**20),
            "full_size_logits_mib": round(full_bytes / 2**20),
        }
        if "full_size" in ways:
            result["full_size_s"] = round(seconds["full_size"], 3)
            result["full_size_mib"] = round(memory["full_size"] / 2**20)
            result["ratio"] = round(seconds["full_size"] / seconds["in_runs"], 1)
        print(json.dumps(result))


if __name__ == "__main__":
    main()
