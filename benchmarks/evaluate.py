"""Measures `htc evaluate` beside pycocotools: the same photos' annotations, the same detections.

    python benchmarks/evaluate.py [--images 5000] [--rounds 3] [--folder KEPT]

The annotations and the output's tables are written for the purpose: objects with polygons of 24 corners in 80
categories, COCO's numbers a photo (7.3 objects, 1 in 100 a crowd), and detections near most of them.
Both sides read the same JSON and the same detections, htc from its tables and pycocotools from a result file, and
compute the twelve numbers of boxes and of masks; htc computes curves, costs of errors, the confusion matrix and the
worst images as well. The same engine alone, without what htc adds, is timed too. Every run is a process of its own;
rounds are interleaved. Prints a table, and one line of JSON at the end: seconds of wall time and of CPU, the median of
the rounds, and the largest difference of any of the 24 numbers. faster-coco-eval uses several threads for masks; on a
machine that does other work, CPU seconds are the fairer ones.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask

from pipeline.job_spec.job import load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.rows import InstanceRow, build_image_row
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage

HEIGHT, WIDTH = 480, 640
CATEGORIES = 80
OBJECTS = 7.3
CROWDS = 0.01
SHARD_IMAGES = 500
# Weights that are not here: then the classes are those of the annotations.
SPEC = {"model.preset": "htc_lite0_fpn", "model.weights": "gone.pth"}
FINGERPRINT = {"preset": "htc_lite0_fpn", "weights_sha256": "a" * 64, "config_sha256": "0" * 64, "trained": True}
WAYS = {
    "htc evaluate": """
import json, sys
from jobs.results.evaluation import evaluate
found = evaluate(sys.argv[1], sys.argv[2])
print(json.dumps(found.metrics))
""",
    "faster-coco-eval": """
import json, sys
from faster_coco_eval import COCO, COCOeval_faster as COCOeval
""",
    "pycocotools": """
import json, sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
""",
}
# As pycocotools' own page shows it (github.com/cocodataset/cocoapi, PythonAPI/pycocoEvalDemo.ipynb).
PLAIN = """
import contextlib, io
names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
metrics = {}
with contextlib.redirect_stdout(io.StringIO()):
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        truth = COCO(sys.argv[2])
        results = json.load(open(sys.argv[3]))
        if kind == "segm":
            results = [{key: value for key, value in each.items() if key != "bbox"} for each in results]
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        metrics[name] = dict(zip(names, map(float, evaluation.stats)))
print(json.dumps(metrics))
"""


def main() -> None:
    """Write the output once, and time each way in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where output and annotations are written, and kept")
    given = parser.parse_args()
    with output_folder(given.folder) as folder:
        if not (folder / "results.json").is_file():
            write_all(folder, given.images)
        taken: dict[str, list[Taken]] = {way: [] for way in WAYS}
        metrics: dict[str, dict[str, dict[str, float]]] = {}
        for _ in range(given.rounds):
            for way, program in WAYS.items():
                seconds, metrics[way] = run(program if way == "htc evaluate" else program + PLAIN, folder)
                taken[way].append(seconds)
        counts = {
            "objects": len(json.loads((folder / "truth.json").read_text())["annotations"]),
            "detections": len(json.loads((folder / "results.json").read_text())),
        }
    judge = metrics["pycocotools"]
    difference = max(
        abs(metrics[way][kind][name] - value)
        for way in WAYS
        for kind, values in judge.items()
        for name, value in values.items()
    )
    wall = {way: round(statistics.median(each.wall_s for each in rounds), 2) for way, rounds in taken.items()}
    cpu = {way: round(statistics.median(each.cpu_s for each in rounds), 2) for way, rounds in taken.items()}
    print(f"{'':18} {'wall s':>8} {'CPU s':>8}   of pycocotools' CPU")
    for way in WAYS:
        print(f"{way:18} {wall[way]:8.2f} {cpu[way]:8.2f}   1 / {cpu['pycocotools'] / cpu[way]:.1f}")
    answer: dict[str, Any] = {
        "benchmark": "evaluate",
        "images": given.images,
        **counts,
        "rounds": given.rounds,
        "wall_s": wall,
        "cpu_s": cpu,
        "pycocotools_over_htc": {
            name: round(values["pycocotools"] / values["htc evaluate"], 2)
            for name, values in (("wall", wall), ("cpu", cpu))
        },
        "largest_difference": difference,
        "mask_AP": judge["mask"]["AP"],
    }
    print(json.dumps(answer))


@contextlib.contextmanager
def output_folder(kept: Path | None) -> Iterator[Path]:
    """Yield the folder to keep, or a temporary one."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="htc-evaluate-") as folder:
        yield Path(folder)


class Taken(NamedTuple):
    """Seconds of a program, without the start of Python."""

    wall_s: float
    cpu_s: float


def run(program: str, folder: Path) -> tuple[Taken, dict[str, dict[str, float]]]:
    """Run a program in a process of its own; returns its seconds and its metrics."""
    timed = (
        "import time\nstart = time.perf_counter(), time.process_time()\n"
        f"{program}\nprint(time.perf_counter() - start[0], time.process_time() - start[1])"
    )
    words = [str(folder / "out"), str(folder / "truth.json"), str(folder / "results.json")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", timed, *words], check=True, capture_output=True, text=True
    )
    metrics, seconds = done.stdout.splitlines()[-2:]
    return Taken(*map(float, seconds.split())), json.loads(metrics)


def write_all(folder: Path, images: int) -> None:
    """Write the annotations, the output, and the same detections as COCO's result file."""
    names = folder / "names.txt"
    names.write_text("\n".join(f"/photos/{number:012d}.jpg" for number in range(1, images + 1)))
    spec = load_spec(
        None, {"input.uri": str(names), "output.uri": str(folder / "out"), "compute.shard_images": SHARD_IMAGES} | SPEC
    )
    storage = Storage()
    run_handle = open_run(spec, FINGERPRINT, storage, run="judged")
    random = np.random.default_rng(0)
    truth: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": f"category {number}"} for number in range(1, CATEGORIES + 1)],
    }
    results: list[dict[str, Any]] = []
    for shard in range(run_handle.shard_count):
        image_rows, instance_rows = [], []
        for ref in run_handle.read_shard(shard).images:
            number = int(Path(ref.uri).stem)
            truth["images"].append({"id": number, "file_name": Path(ref.uri).name, "height": HEIGHT, "width": WIDTH})
            found = [each for _ in range(random.poisson(OBJECTS)) for each in object_of(truth, number, random)]
            row = build_image_row(ref, shard=shard, model="m", size=(HEIGHT, WIDTH), instances=len(found))
            image_rows.append(row)
            for place, each in enumerate(sorted(found, key=lambda each: -each["score"])[:100]):
                results.append({"image_id": number, **each})
                instance_rows.append(
                    InstanceRow(
                        image_id=row.image_id,
                        uri=row.uri,
                        instance=place,
                        category_id=each["category_id"],
                        category=f"category {each['category_id']}",
                        score=each["score"],
                        bbox=dict(zip(("x", "y", "width", "height"), each["bbox"], strict=True)),
                        area=int(pycocotools.mask.area(each["segmentation"])),
                        mask=each["segmentation"],
                        model="m",
                    )
                )
        commit_shard(storage, run_handle.output_uri, run_handle.name, shard, image_rows, instance_rows)
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))


def object_of(
    truth: dict[str, list[dict[str, Any]]], image: int, random: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Annotate one object, and yield what a model may find there."""
    category = int(random.integers(1, CATEGORIES + 1))
    centre = random.uniform((0, 0), (WIDTH, HEIGHT))
    radius = float(np.exp(random.uniform(2, 5)))
    polygon = blob(centre, radius, random)
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects([polygon], HEIGHT, WIDTH))
    if not pycocotools.mask.area(rle):
        return
    is_crowd = bool(random.uniform() < CROWDS)
    truth["annotations"].append(
        {
            "id": len(truth["annotations"]) + 1,
            "image_id": image,
            "category_id": category,
            "bbox": pycocotools.mask.toBbox(rle).tolist(),
            "area": float(pycocotools.mask.area(rle)),
            "iscrowd": int(is_crowd),
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()} if is_crowd else [polygon],
        }
    )
    for _ in range(int(random.integers(0, 5))):
        moved = centre + 0.2 * radius * random.standard_normal(2)
        rle = pycocotools.mask.merge(
            pycocotools.mask.frPyObjects([blob(moved, radius * random.uniform(0.8, 1.2), random)], HEIGHT, WIDTH)
        )
        if pycocotools.mask.area(rle):
            yield {
                "category_id": category if random.uniform() < 0.8 else int(random.integers(1, CATEGORIES + 1)),
                # As the tables hold it.
                "score": float(np.float32(random.uniform())),
                "bbox": pycocotools.mask.toBbox(rle).tolist(),
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
            }


def blob(centre: np.ndarray, radius: float, random: np.random.Generator) -> list[float]:
    """Return a polygon of 24 corners around a point, inside the photo."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radii = radius * (1 + 0.25 * np.sin(3 * angles + random.uniform(0, 6)) + 0.08 * random.standard_normal(24))
    corners = np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)
    flat: list[float] = np.round(np.clip(corners, 0, (WIDTH - 1, HEIGHT - 1)), 2).ravel().tolist()
    return flat


if __name__ == "__main__":
    main()
