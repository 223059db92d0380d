"""Measures queries over one run before and after `htc compact`: over many small parts, and over a few large ones.

On this machine's disk; an object store gains more, because each file costs the time of a request. Prints one JSON line;
pairs are before and after.

    python benchmarks/compaction.py [--images 250000] [--shard-images 64]
"""

import argparse
import contextlib
import json
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.maintenance.compaction import compact_run
from pipeline.output.parts import Part, part_uri
from pipeline.output.results import Results
from pipeline.output.run_record import RunRecord, write_record
from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.output.views import open_database
from pipeline.planning.manifest import Manifest
from pipeline.storage.storage import Storage

RUN = "benchmark"
INSTANCES_PER_IMAGE = 4
QUERIES = {
    "count by status": "SELECT status, count(*) FROM images GROUP BY 1",
    "count by category": "SELECT category, count(*) FROM instances WHERE score > 0.5 GROUP BY 1",
    "one image": "SELECT uri, mask FROM instances WHERE uri = '{uri}'",
    "a folder": "SELECT count(*), avg(area) FROM instances WHERE uri >= '{folder}' AND uri < '{folder}~'",
}


def main() -> None:
    """Write a run, query it, compact it, query it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=250_000)
    parser.add_argument("--shard-images", type=int, default=64)
    parser.add_argument("--target-mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with output_folder() as output:
        shards = write_run(output, given.images, given.shard_images)
        before = measure(output, given.images, given.repeats)
        start = time.perf_counter()
        done = compact_run(Storage(), output, RUN, target_bytes=given.target_mib << 20, check=lambda: None)
        compact_s = time.perf_counter() - start
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        after = measure(output, given.images, given.repeats)
    answer = {
        "benchmark": "compaction",
        "images": given.images,
        "instances": given.images * INSTANCES_PER_IMAGE,
        "shards": shards,
        "compact_s": round(compact_s, 1),
        "peak_rss_mib": round(peak_mib),
        "files": [done.files_before, done.files_after],
        "mib": [round(done.bytes_before / 2**20, 1), round(done.bytes_after / 2**20, 1)],
        "query_s": {name: [before[name], after[name]] for name in before},
    }
    print(json.dumps(answer))


@contextlib.contextmanager
def output_folder() -> Iterator[str]:
    """Create a temporary folder, and remove it at the end."""
    folder = tempfile.mkdtemp(prefix="htc-compaction-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def write_run(output: str, images: int, shard_images: int) -> int:
    """Write a complete run as workers would; returns its number of shards."""
    shards = -(-images // shard_images)
    rng = np.random.default_rng(0)
    for shard in range(shards):
        count = min(shard_images, images - shard * shard_images)
        numbers = np.arange(shard * shard_images, shard * shard_images + count)
        for table, rows in (("instances", instance_rows(numbers, rng)), ("images", image_rows(numbers, shard))):
            target = Path(part_uri(output, table, RUN, Part(shard, shard)))  # type: ignore[arg-type]
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, target, compression="zstd")
    manifest = Manifest(images, shards, shard_images, shards, 0, 0)
    record = RunRecord(RUN, "2026-01-01T00:00:00+00:00", {}, {}, {}, {}, manifest.to_dict())
    write_record(Storage(), output, record)
    return shards


def uri_of(number: int) -> str:
    """Return an image's URI; a folder has a thousand images."""
    return f"s3://images/2026/{number // 1000:06d}/{number:09d}.jpg"


def image_rows(numbers: np.ndarray, shard: int) -> pa.Table:
    """Generate rows of `images`, one in a hundred unreadable."""
    rows = len(numbers)
    columns = {
        "image_id": numbers * 2654435761,
        "uri": [uri_of(number) for number in numbers],
        "etag": [f"{number:032x}" for number in numbers],
        "bytes": numbers % 100_000 + 100_000,
        "width": np.full(rows, 1024, np.int32),
        "height": np.full(rows, 768, np.int32),
        "shard": np.full(rows, shard, np.int32),
        "status": ["unreadable" if number % 100 == 0 else "ok" for number in numbers],
        "error": [None] * rows,
        "attempts": np.ones(rows, np.int32),
        "instances": np.full(rows, INSTANCES_PER_IMAGE, np.int32),
        "model": ["htc_r50_fpn"] * rows,
        "changed": [False] * rows,
        "crs": pa.nulls(rows, pa.string()),
        "transform": pa.nulls(rows, pa.list_(pa.float64())),
    }
    return pa.table(columns, schema=IMAGES_SCHEMA)


def instance_rows(numbers: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Generate rows of `instances`, with masks of 150 characters that do not compress well."""
    numbers = np.repeat(numbers, INSTANCES_PER_IMAGE)
    rows = len(numbers)
    letters = rng.integers(48, 111, size=(rows, 150), dtype=np.uint8)
    boxes = {name: rng.random(rows, dtype=np.float32) * 700 for name in ("x", "y", "width", "height")}
    columns = {
        "image_id": numbers * 2654435761,
        "uri": [uri_of(number) for number in numbers],
        "instance": np.tile(np.arange(INSTANCES_PER_IMAGE, dtype=np.int32), rows // INSTANCES_PER_IMAGE),
        "category_id": rng.integers(1, 91, rows, dtype=np.int32),
        "category": [f"category {number}" for number in rng.integers(1, 91, rows)],
        "score": rng.random(rows, dtype=np.float32),
        "bbox": [dict(zip(boxes, each, strict=True)) for each in zip(*boxes.values(), strict=True)],
        "area": rng.integers(100, 100_000, rows),
        "mask": [{"size": [768, 1024], "counts": row.tobytes().decode("ascii")} for row in letters],
        "model": ["htc_r50_fpn"] * rows,
    }
    return pa.table(columns, schema=INSTANCES_SCHEMA)


def measure(output: str, images: int, repeats: int) -> dict[str, float]:
    """Measure the median seconds per query, including the opening of the output."""
    uri = uri_of(images // 2)
    seconds = {}
    for name, sql in QUERIES.items():
        text, taken = sql.format(uri=uri, folder=uri.rpartition("/")[0] + "/"), []
        for _ in range(repeats):
            start = time.perf_counter()
            with contextlib.closing(open_database(Results(output, Storage()))) as database:
                database.execute(text).fetchall()
            taken.append(time.perf_counter() - start)
        seconds[name] = round(statistics.median(taken), 3)
    return seconds


if __name__ == "__main__":
    main()
