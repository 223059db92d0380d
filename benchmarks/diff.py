"""Measures `htc diff` beside a loop over images with pycocotools and scipy, on the same tables.

    python benchmarks/diff.py [--images 20000] [--rounds 3]

The two runs are those of the bundled model over the bundled photos in fp32 and in bf16, each photo repeated under
other names. The peer reads the same files with pyarrow, sorts them, and for each image takes pycocotools' IoU and
scipy's optimal assignment (`linear_sum_assignment`), a common category first. Both are given the rows as files, and
end with counts by kind. Rounds alternate; CPU seconds are of one process. The last line is one JSON object: instances
(of both runs) per CPU second, the median of the rounds; whether the counts are those of the loop when that takes the
best pairs first, as `htc diff` does; the counts of the optimal assignment, which gives up a pair of nearly the same
masks where that makes two pairs with low scores (docs/adr/0051-diff-pairs-the-best-first.md); and the peak memory of
`htc diff` over a quarter of the images and over all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pycocotools.mask as coco
from scipy.optimize import linear_sum_assignment

import htc_batch
from jobs.results.diff import DiffRules, Kind, diff_runs
from pipeline.output.commit import with_run_name
from pipeline.output.parts import Part, part_uri
from pipeline.output.run_record import RunRecord, write_record
from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.planning.manifest import Manifest
from pipeline.storage.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "examples" / "photos"
PRECISIONS = {"a": "fp32", "b": "bf16"}
ROUNDS_PER_PART = 100
RULES = DiffRules()
Assign = Callable[[np.ndarray, np.ndarray], Iterator[tuple[int, int]]]


def segment(folder: Path) -> str:
    """Segment the bundled photos once in each precision; returns the output."""
    output = str(folder / "photos")
    for run, precision in PRECISIONS.items():
        words = ["run", str(PHOTOS), output, "--weights", "demo", "--run", run, "--precision", precision]
        command = [sys.executable, "-m", "jobs", *words, *(["--fresh"] if run == "b" else [])]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return output


def repeat(source: str, output: Path, images: int) -> None:
    """Write both runs again with all photos repeated, as workers would write so many; `images` is rounded down."""
    results = htc_batch.open(source)
    for run in PRECISIONS:
        photos = results.images(run=run).sort_by("uri")
        rows = results.instances(run=run).sort_by([("uri", "ascending"), ("instance", "ascending")])
        rounds = images // len(photos)
        for shard, begin in enumerate(range(0, rounds, ROUNDS_PER_PART)):
            repeats = range(begin, min(rounds, begin + ROUNDS_PER_PART))
            for table, one, schema in (("images", photos, IMAGES_SCHEMA), ("instances", rows, INSTANCES_SCHEMA)):
                target = Path(part_uri(str(output), table, run, Part(shard, shard)))  # type: ignore[arg-type]
                target.parent.mkdir(parents=True, exist_ok=True)
                joined = with_run_name(repeated(one, photos, repeats, schema), run)
                pq.write_table(joined, target, compression="zstd", write_page_checksum=True)
        manifest = Manifest(rounds * len(photos), shard + 1, ROUNDS_PER_PART * len(photos), shard + 1, 0, 0)
        record = RunRecord(run, f"2026-01-01T0{'ab'.index(run)}:00:00+00:00", {}, {}, {}, {}, manifest.to_dict())
        write_record(Storage(), str(output), record)


def repeated(table: pa.Table, photos: pa.Table, repeats: range, schema: pa.Schema) -> pa.Table:
    """Return the rows of all photos once for each number in `repeats`, the images under names of their own."""
    photo = np.asarray(pc.index_in(table.column("uri"), value_set=photos.column("uri").combine_chunks()))
    numbers = (np.array(repeats)[:, None] * len(photos) + photo[None, :]).ravel()
    joined = pa.concat_tables([table.select(schema.names)] * len(repeats))
    for name, values in {"uri": [f"/data/{number:09d}.jpg" for number in numbers], "image_id": numbers}.items():
        joined = joined.set_column(schema.get_field_index(name), schema.field(name), pa.array(values))
    return joined.cast(schema)


def through_htc(output: str) -> Counter[str]:
    """Count the instances by kind with `htc diff`'s function."""
    return Counter(diff_runs(output, "a", None, "b", rules=RULES).counts)


def through_loop(output: str, assign: Assign | None = None) -> Counter[str]:
    """Count the instances by kind with pycocotools, image by image; paired by scipy, or by another function."""
    sides = [by_image(output, run) for run in PRECISIONS]
    found: Counter[str] = Counter({kind.label: 0 for kind in Kind})
    for uri in sorted({*sides[0], *sides[1]}):
        compare_image(sides[0].get(uri, []), sides[1].get(uri, []), found, assign or optimal)
    return found


def by_image(output: str, run: str) -> dict[str, list[dict[str, Any]]]:
    """Read the instances of a run."""
    files = sorted((Path(output) / "instances" / f"run={run}").glob("*.parquet"))
    columns = ["uri", "instance", "category", "score", "mask"]
    tables = [pq.ParquetFile(path).read(columns=columns) for path in files]
    table = pa.concat_tables(tables).sort_by([("uri", "ascending"), ("instance", "ascending")])
    images: dict[str, list[dict[str, Any]]] = {}
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            images.setdefault(row["uri"], []).append(row)
    return images


def optimal(iou: np.ndarray, is_same: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pair so that the sum of IoUs is highest, with 2 more for a common category."""
    yield from zip(*linear_sum_assignment(-(iou + 2 * is_same * (iou > 0))), strict=True)


def best_first(iou: np.ndarray, is_same: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pair the highest IoU first, those of a common category before the others."""
    edges = [(not is_same[pair], -iou[pair], *pair) for pair in zip(*np.nonzero(iou), strict=True)]
    taken_a, taken_b = set(), set()
    for _, _, one, other in sorted(edges):
        if one not in taken_a and other not in taken_b:
            taken_a.add(one)
            taken_b.add(other)
            yield one, other


def compare_image(a: list[dict[str, Any]], b: list[dict[str, Any]], found: Counter[str], assign: Assign) -> None:
    """Count the instances of one image by kind."""
    paired_a, paired_b = set(), set()
    if a and b:
        iou = coco.iou([row["mask"] for row in a], [row["mask"] for row in b], [0] * len(b))
        scores = np.maximum.outer([row["score"] for row in a], [row["score"] for row in b])
        iou[(iou < RULES.match_iou) | (scores < RULES.min_score)] = 0
        is_same = np.equal.outer([row["category"] for row in a], [row["category"] for row in b])
        for one, other in assign(iou, is_same):
            if iou[one, other] > 0:
                paired_a.add(one)
                paired_b.add(other)
                found[kind_of(a[one], b[other], iou[one, other]).label] += 1
    for rows, paired, kind in ((a, paired_a, Kind.VANISHED), (b, paired_b, Kind.APPEARED)):
        found[kind.label] += sum(
            row["score"] >= RULES.min_score for place, row in enumerate(rows) if place not in paired
        )


def kind_of(a: dict[str, Any], b: dict[str, Any], iou: float) -> Kind:
    """Return what became of a pair."""
    if a["category"] != b["category"]:
        return Kind.CLASS_CHANGED
    if iou < RULES.same_iou:
        return Kind.MOVED
    return Kind.SCORE_CHANGED if abs(a["score"] - b["score"]) > RULES.score_change else Kind.SAME


def cpu_s(action: Callable[[], object]) -> float:
    """Return the CPU seconds of an action."""
    start = time.process_time()
    action()
    return time.process_time() - start


def peak_mib(output: str) -> int:
    """Return the peak memory of `htc diff` in a process of its own, with the pages of files that it maps."""
    # Not `ru_maxrss`, which a new process takes over from the one that started it.
    code = f"""
from pathlib import Path
from jobs.results.diff import diff_runs
diff_runs({output!r}, "a", None, "b")
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return int(done.stdout) >> 10


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = segment(folder)
        outputs = {images: str(folder / f"out-{images}") for images in (options.images // 4, options.images)}
        for images, output in outputs.items():
            repeat(source, Path(output), images)
        output = outputs[options.images]
        instances = sum(len(htc_batch.open(output).instances(run=run, columns=["instance"])) for run in PRECISIONS)
        found, greedy, peer = through_htc(output), through_loop(output, best_first), through_loop(output)
        rounds = []
        for _ in range(options.rounds):
            taken = {"htc_cpu_s": cpu_s(lambda: through_htc(output)), "loop_cpu_s": cpu_s(lambda: through_loop(output))}
            rounds.append({key: round(value, 2) for key, value in taken.items()})
        memory = {images: peak_mib(each) for images, each in outputs.items()}
    rates = {
        way: round(instances / statistics.median(taken[f"{way}_cpu_s"] for taken in rounds)) for way in ("htc", "loop")
    }
    counted = sum(found.values())
    result = {
        "benchmark": "diff",
        "compares": "htc diff, and a loop over pycocotools.mask.iou and scipy.optimize.linear_sum_assignment",
        "images": options.images,
        "instances": instances,
        "counted": counted,
        "counts": dict(found),
        "counts_equal_a_loop_that_takes_the_best_first": found == greedy,
        "optimal_assignment_counts": dict(peer),
        "htc_instances_per_s": rates["htc"],
        "loop_instances_per_s": rates["loop"],
        "peak_mib_by_images": memory,
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "rounds": rounds,
        "ratios": {"instances_per_s": round(statistics.median(t["loop_cpu_s"] / t["htc_cpu_s"] for t in rounds), 2)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
