"""Joins the same tile detections with ours and with SAHI's GREEDYNMM: objects out, areas, seconds.

    pip install sahi
    python benchmarks/seams.py [--side 4000] [--objects 300] [--rounds 3]

Paints ellipses of many sizes that do not overlap on one image, gives both what an exact model finds in each tile of
1024 with an overlap of 128, in several interleaved rounds, and compares the results with what was painted. SAHI runs as
`get_sliced_prediction` configures it by default: GREEDYNMM, IOS, 0.5, on polygons. The last line is JSON.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def paint_objects(side: int, count: int) -> Any:
    """Return [side, side] int32, each ellipse with its own number; those that would overlap another are left out."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    objects = np.zeros((side, side), np.int32)
    number = 0
    for _ in range(20 * count):
        if number == count:
            break
        axes = [int(each) for each in np.exp(rng.uniform(math.log(10), math.log(side / 8), 2))]
        shape = np.zeros((side, side), np.uint8)
        centre = (int(rng.integers(side)), int(rng.integers(side)))
        cv2.ellipse(shape, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        if not objects[shape > 0].any():
            number += 1
            objects[shape > 0] = number
    return objects


def exact_tiles(objects: Any, grid: Any) -> list[tuple[Any, list[Any]]]:
    """Return the bitmaps that an exact model finds in each tile."""
    import numpy as np

    found = []
    for box in grid:
        part = objects[box.top : box.bottom, box.left : box.right]
        found.append((box, [part == number for number in np.unique(part) if number]))
    return found


def join_ours(tiles: list[tuple[Any, Any]], size: tuple[int, int]) -> list[int]:
    """Return the areas of what our joining gives."""
    from htc_model.masks.rle import rle_area
    from htc_model.masks.seams import join_tiles

    return [rle_area(mask) for mask in join_tiles(size, tiles).detections.masks or []]


def join_sahi(tiles: list[tuple[Any, list[Any]]], size: tuple[int, int]) -> list[int]:
    """Return the areas of what SAHI's postprocessing gives."""
    from sahi.postprocess.combine import GreedyNMMPostprocess
    from sahi.prediction import ObjectPrediction
    from shapely import Polygon, union_all

    predictions = [
        ObjectPrediction(
            bbox=bounds, category_id=0, category_name="thing", segmentation=polygons, score=0.75,
            shift_amount=[box.left, box.top], full_shape=list(size),
        ).get_shifted_object_prediction()
        for box, masks in tiles
        for polygons, bounds in masks
    ]  # fmt: skip
    joined = GreedyNMMPostprocess(match_threshold=0.5, match_metric="IOS")(predictions)
    areas = []
    for each in joined:
        parts = [list(zip(part[::2], part[1::2], strict=True)) for part in each.mask.segmentation if len(part) >= 8]
        areas.append(round(union_all([Polygon(part).buffer(0.5) for part in parts]).area) if parts else 0)
    return areas


def polygons_of(mask: Any) -> tuple[list[list[float]], list[float]]:
    """Return a bitmap as SAHI takes it: polygons, and its box."""
    import cv2
    import numpy as np

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    rows, columns = np.nonzero(mask)
    bounds = [float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)]
    polygons = [contour.reshape(-1).astype(float).tolist() for contour in contours if len(contour) >= 4]
    return polygons or [
        [bounds[0], bounds[1], bounds[2], bounds[1], bounds[2], bounds[3], bounds[0], bounds[3]]
    ], bounds


def judge(areas: list[int], painted: list[int]) -> dict[str, int]:
    """Count results, and the painted objects that have a result of their area, each used once.

    A polygon goes through the middles of pixels, so 40 pixels more or less are equal in any case.
    """
    counts = {"instances": len(areas)}
    for share in (0.01, 0.05):
        left = list(areas)
        counts[f"within_{share:.0%}"] = 0
        for area in painted:
            near = min(left, key=lambda each: abs(each - area), default=None)
            if near is not None and abs(near - area) <= max(share * area, 40):
                left.remove(near)
                counts[f"within_{share:.0%}"] += 1
    return counts


def main() -> None:
    """Run the benchmark."""
    import numpy as np
    import torch

    from htc_model.masks.rle import encode_bitmap
    from htc_model.structures import Detections
    from pipeline.job_spec.tiles import TilesSection
    from pipeline.worker.tiling import TileGrid

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4000)
    parser.add_argument("--objects", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    objects = paint_objects(options.side, options.objects)
    size = (options.side, options.side)
    painted = np.bincount(objects.ravel())[1:].tolist()
    found = exact_tiles(objects, TileGrid.plan(*size, TilesSection()))
    # Each gets the detections as its own pipeline has them before it joins: run lengths, or polygons.
    encoded, drawn = [], []
    for box, masks in found:
        shapes = [polygons_of(mask) for mask in masks]
        boxes = torch.tensor([bounds for _, bounds in shapes], dtype=torch.float32).reshape(-1, 4)
        count = len(masks)
        rles = [encode_bitmap(mask) for mask in masks]
        encoded.append(
            (box, Detections(boxes, torch.full((count,), 0.75), torch.zeros(count, dtype=torch.int64), rles))
        )
        drawn.append((box, shapes))
    rounds = []
    for _ in range(options.rounds):
        start = time.process_time()
        ours = join_ours(encoded, size)
        middle = time.process_time()
        theirs = join_sahi(drawn, size)
        rounds.append({"ours_s": round(middle - start, 3), "sahi_s": round(time.process_time() - middle, 3)})
    print(
        json.dumps(
            {
                "benchmark": "seams",
                "side": options.side,
                "painted": len(painted),
                "tile_detections": sum(len(masks) for _, masks in found),
                "ours": judge(ours, painted),
                "sahi": judge(theirs, painted),
                "rounds": rounds,
                "ratios": {"sahi_over_ours_cpu": [round(each["sahi_s"] / each["ours_s"], 2) for each in rounds]},
            }
        )
    )


if __name__ == "__main__":
    main()
