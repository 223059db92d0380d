"""Measures the SQL functions for masks, in DuckDB on one thread, beside a loop over pycocotools on the same masks.

    python benchmarks/mask_functions.py [--masks 40000] [--rounds 5]

The masks are those that the bundled model finds in the bundled photos, repeated; a pair is two neighbours on one photo.
The last line is one JSON object: operations per CPU
second, the median of the rounds, which alternate with the peer's, and whether all values are equal.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pycocotools.mask as coco

import htc_batch
from pipeline.output.mask_functions import register_mask_functions
from pipeline.output.schema import MASK_TYPE

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"


def make_pairs(count: int, folder: Path) -> pa.Table:
    """Make a table with the columns `a` and `b` of masks from a run over the bundled photos.

    A pair is two instances of one photo, the second the next one from left to right; the whole is repeated.
    """
    output = folder / "out"
    command = [sys.executable, "-m", "jobs", "run", str(PHOTOS), str(output), "--weights", "demo"]
    subprocess.run(command, check=True, capture_output=True)
    rows = htc_batch.open(str(output)).instances().select(["uri", "bbox", "mask"]).to_pylist()
    rows.sort(key=lambda row: (row["uri"], row["bbox"]["x"]))
    pairs = [(one["mask"], other["mask"]) for one, other in itertools.pairwise(rows) if one["uri"] == other["uri"]]
    chosen = list(itertools.islice(itertools.cycle(pairs), count))
    return pa.table({name: pa.array([pair[i] for pair in chosen], MASK_TYPE) for i, name in enumerate("ab")})


def cpu_s(action: Callable[[], object]) -> float:
    """Return the CPU seconds of an action."""
    start = time.process_time()
    action()
    return time.process_time() - start


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = make_pairs(options.masks, Path(folder))
    a, b = table["a"].to_pylist(), table["b"].to_pylist()
    database = duckdb.connect(config={"threads": 1})
    register_mask_functions(database)
    database.register("pairs", table)
    # What a user calls with one row's masks; the crowd flag 0 makes the IoU symmetric.
    peers: dict[str, tuple[str, Callable[[], list[float]]]] = {
        "mask_area(a)": ("areas", lambda: [float(coco.area(m)) for m in a]),
        "mask_bbox(a).width": ("boxes", lambda: [float(coco.toBbox(m)[2]) for m in a]),
        "mask_intersection_area(a, b)": (
            "intersections",
            lambda: [float(coco.area(coco.merge([m, n], intersect=True))) for m, n in zip(a, b, strict=True)],
        ),
        "mask_iou(a, b)": ("ious", lambda: [float(coco.iou([m], [n], [0])[0, 0]) for m, n in zip(a, b, strict=True)]),
        "mask_area(mask_union(a, b))": (
            "unions",
            lambda: [float(coco.area(coco.merge([m, n]))) for m, n in zip(a, b, strict=True)],
        ),
    }
    result: dict[str, object] = {
        "benchmark": "mask_functions",
        "compares": "DuckDB with our functions, one thread, and a loop over pycocotools.mask",
        "masks": len(a),
        "chars_per_mask": round(sum(len(m["counts"]) for m in a) / len(a), 1),
    }
    rounds: list[dict[str, float]] = [{} for _ in range(options.rounds)]
    for expression, (name, peer) in peers.items():
        values = np.array(database.execute(f"SELECT {expression}::DOUBLE FROM pairs").fetchnumpy().popitem()[1])
        result[f"{name}_equal"] = bool((values == np.array(peer())).all())
        for taken in rounds:
            ours = cpu_s(lambda sql=f"SELECT sum({expression}) FROM pairs": database.execute(sql).fetchall())  # type: ignore[misc]
            taken[f"{name}_per_s"] = round(len(a) / ours)
            taken[f"pycocotools_{name}_per_s"] = round(len(a) / cpu_s(peer))
    ratios = {}
    for name in (name for name, _ in peers.values()):
        for key in (f"{name}_per_s", f"pycocotools_{name}_per_s"):
            result[key] = round(statistics.median(taken[key] for taken in rounds))
        ratios[name] = round(
            statistics.median(taken[f"{name}_per_s"] / taken[f"pycocotools_{name}_per_s"] for taken in rounds), 2
        )
    outlines = cpu_s(lambda: database.execute("SELECT sum(length(mask_polygons(a))) FROM pairs LIMIT 1").fetchall())
    result["polygons_per_s"] = round(len(a) / outlines)
    result |= {"ratios": ratios, "rounds": rounds}
    database.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
