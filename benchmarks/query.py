"""Measures `htc query` against plain DuckDB over the same files: many small parts, and the same rows compacted.

Both sides open everything anew for each query, which is timed apart: `htc query` lists the output, reads the run's
record and opens its views; DuckDB gets a new connection, and the explicit list of files. CPU seconds are of the whole
process, the best of the rounds, which are interleaved. Prints a table, and one line of JSON at the end.

    python benchmarks/query.py [--images 250000] [--parts 1000] [--rounds 3] [--small] [--folder KEPT]
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.maintenance.compaction import compact_run
from pipeline.output.commit import with_run_name
from pipeline.output.parts import Part, part_uri
from pipeline.output.results import Results
from pipeline.output.run_record import RunRecord, write_record
from pipeline.output.schema import BBOX_TYPE, IMAGES_SCHEMA, INSTANCES_SCHEMA, MASK_TYPE
from pipeline.output.views import open_database
from pipeline.planning.manifest import Manifest
from pipeline.storage.storage import Storage

RUN = "benchmark"
INSTANCES_PER_IMAGE = 8
CATEGORIES = 80
QUERIES = {
    "open": "SELECT 1",
    "count by category": "SELECT category, count(*) FROM instances GROUP BY 1",
    "one image by uri": "SELECT * FROM instances WHERE uri = '{uri}'",
    "one image by image_id": "SELECT * FROM instances WHERE image_id = {image_id}",
    "score > 0.99, count": "SELECT count(*) FROM instances WHERE score > 0.99",
    "category and score, with masks": "SELECT uri, mask FROM instances WHERE category = 'category 7' AND score > 0.9",
    "current, count": "SELECT count(*) FROM current",
    "current_instances by category": "SELECT category, count(*) FROM current_instances GROUP BY 1",
}


def main() -> None:
    """Write the two outputs, and query each in both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=250_000)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="20,000 images in 100 parts")
    parser.add_argument("--folder", type=Path, help="where the outputs are written, and kept for the next time")
    given = parser.parse_args()
    images, parts = (20_000, 100) if given.small else (given.images, given.parts)
    answer: dict[str, object] = {"benchmark": "query", "images": images, "parts": parts}
    with output_folder(given.folder) as folder:
        outputs = {"parts": folder / "parts", "compacted": folder / "compacted"}
        if not outputs["compacted"].is_dir():
            write_run(outputs["parts"], images, parts)
            answer["compact_cpu_s"] = compacted_copy(outputs["parts"], outputs["compacted"])
        for name, output in outputs.items():
            answer[name] = measure(output, images, given.rounds)
    print(json.dumps(answer))


@contextlib.contextmanager
def output_folder(kept: Path | None) -> Iterator[Path]:
    """Return the folder to keep, or a temporary one that is removed at the end."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    folder = tempfile.mkdtemp(prefix="htc-query-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


def write_run(output: Path, images: int, parts: int) -> None:
    """Write a complete run as workers would."""
    per_part = -(-images // parts)
    rng = np.random.default_rng(0)
    for shard in range(parts):
        numbers = np.arange(shard * per_part, min(images, (shard + 1) * per_part))
        for table, rows in (("instances", instance_rows(numbers, rng)), ("images", image_rows(numbers, shard))):
            target = Path(part_uri(str(output), table, RUN, Part(shard, shard)))  # type: ignore[arg-type]
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(with_run_name(rows, RUN), target, compression="zstd", write_page_checksum=True)
    manifest = Manifest(images, parts, per_part, parts, 0, 0)
    write_record(
        Storage(), str(output), RunRecord(RUN, "2026-01-01T00:00:00+00:00", {}, {}, {}, {}, manifest.to_dict())
    )


def compacted_copy(output: Path, copy: Path) -> float:
    """Compact a copy of an output; returns the CPU seconds."""
    shutil.copytree(output, copy, copy_function=os.link)
    start = time.process_time()
    compact_run(Storage(), str(copy), RUN, target_bytes=256 << 20, check=lambda: None)
    return round(time.process_time() - start, 2)


def uris_of(numbers: np.ndarray) -> list[str]:
    """Return the images' URIs; a folder has a thousand images."""
    return [f"s3://images/2026/{number // 1000:06d}/{number:09d}.jpg" for number in numbers.tolist()]


def ids_of(numbers: np.ndarray) -> np.ndarray:
    """Return numbers that are spread like hashes, [N] int64: splitmix64 (Steele and others, OOPSLA 2014)."""
    mixed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))).view(np.int64)


def image_rows(numbers: np.ndarray, shard: int) -> pa.Table:
    """Generate rows of `images`, one in a hundred unreadable."""
    rows = len(numbers)
    columns = {
        "image_id": ids_of(numbers),
        "uri": uris_of(numbers),
        "etag": [f"{number:032x}" for number in numbers.tolist()],
        "bytes": numbers % 100_000 + 100_000,
        "width": np.full(rows, 1024, np.int32),
        "height": np.full(rows, 768, np.int32),
        "shard": np.full(rows, shard, np.int32),
        "status": ["unreadable" if number % 100 == 0 else "ok" for number in numbers.tolist()],
        "error": [None] * rows,
        "attempts": np.ones(rows, np.int32),
        "instances": np.full(rows, INSTANCES_PER_IMAGE, np.int32),
        "model": ["htc_r50_fpn"] * rows,
        "changed": [False] * rows,
    }
    return pa.table(columns, schema=IMAGES_SCHEMA)


def instance_rows(numbers: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Generate rows of `instances`, with masks of 60 to 259 characters that do not compress well."""
    numbers = np.repeat(numbers, INSTANCES_PER_IMAGE)
    rows = len(numbers)
    ends = np.concatenate([[0], np.cumsum(rng.integers(60, 260, rows))]).astype(np.int32)
    letters = rng.integers(48, 111, size=int(ends[-1]), dtype=np.uint8)
    counts = pa.StringArray.from_buffers(rows, pa.py_buffer(ends), pa.py_buffer(letters))
    sizes = pa.ListArray.from_arrays(
        np.arange(0, 2 * rows + 1, 2, np.int32), np.tile(np.array([768, 1024], np.int32), rows)
    )
    boxes = [pa.array(rng.random(rows, dtype=np.float32) * 700) for _ in range(4)]
    categories = rng.integers(1, CATEGORIES + 1, rows, dtype=np.int32)
    names = pa.array([f"category {number}" for number in range(CATEGORIES + 1)])
    columns = {
        "image_id": ids_of(numbers),
        "uri": uris_of(numbers),
        "instance": np.tile(np.arange(INSTANCES_PER_IMAGE, dtype=np.int32), rows // INSTANCES_PER_IMAGE),
        "category_id": categories,
        "category": names.take(pa.array(categories)),
        "score": rng.random(rows, dtype=np.float32),
        "bbox": pa.StructArray.from_arrays(boxes, fields=list(BBOX_TYPE)),
        "area": rng.integers(100, 100_000, rows),
        "mask": pa.StructArray.from_arrays([sizes, counts], fields=list(MASK_TYPE)),
        "model": ["htc_r50_fpn"] * rows,
    }
    return pa.table(columns, schema=INSTANCES_SCHEMA)


def measure(output: Path, images: int, rounds: int) -> dict[str, object]:
    """Measure each query in both ways, interleaved; returns the best seconds of each, and the ratios of CPU seconds."""
    number = np.array([images // 2 + 17])
    wanted = {"uri": uris_of(number)[0], "image_id": int(ids_of(number)[0])}
    files = {
        table: sorted(map(str, (output / table / f"run={RUN}").glob("*.parquet"))) for table in ("images", "instances")
    }
    answer: dict[str, object] = {"files": len(files["images"]) + len(files["instances"])}
    print(f"{output.name}: {answer['files']} files")
    print(f"{'CPU s to open + to query | wall s':34} {'htc':>23} {'DuckDB':>23} {'ratio of query':>14} {'of both':>8}")
    for name, sql in QUERIES.items():
        text = sql.format(**wanted)
        ways: dict[str, Callable[[], Taken]] = {"htc": lambda text=text: through_htc(output, text)}
        if "current" not in text:
            ways["duckdb"] = lambda text=text: through_duckdb(files, text)
        taken: dict[str, list[Taken]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, ask in ways.items():
                taken[way].append(ask())
        if len({each.rows for pairs in taken.values() for each in pairs}) != 1:
            raise SystemExit(f"{name}: the two ways return different numbers of rows")
        best = {way: Taken(*map(min, zip(*each, strict=True))) for way, each in taken.items()}
        answer[name] = {way: [round(seconds, 4) for seconds in each[:3]] for way, each in best.items()}
        shown = [f"{each.open_cpu_s:.3f} + {each.query_cpu_s:.3f} | {each.wall_s:.3f}" for each in best.values()]
        line = f"{name:34} {shown[0]:>23} {shown[1] if len(shown) > 1 else '-':>23}"
        if "duckdb" in best:
            htc, peer = best["htc"], best["duckdb"]
            ratios = {
                "query_ratio": round(htc.query_cpu_s / peer.query_cpu_s, 2),
                "ratio": round((htc.open_cpu_s + htc.query_cpu_s) / (peer.open_cpu_s + peer.query_cpu_s), 2),
            }
            answer[name] |= ratios  # type: ignore[operator]
            line += f" {ratios['query_ratio']:>14} {ratios['ratio']:>8}"
        print(line, flush=True)
    return answer


class Taken(NamedTuple):
    """What one query took, and its number of rows."""

    open_cpu_s: float
    query_cpu_s: float
    wall_s: float
    rows: int


def through_htc(output: Path, sql: str) -> Taken:
    """Query as `htc query` does."""
    return timed(lambda: open_database(Results(str(output), Storage())), sql)


def through_duckdb(files: dict[str, list[str]], sql: str) -> Taken:
    """Query with DuckDB alone."""
    for table, paths in files.items():
        sql = sql.replace(f"FROM {table}", f"FROM read_parquet({paths})")
    return timed(duckdb.connect, sql)


def timed(connect: Callable[[], duckdb.DuckDBPyConnection], sql: str) -> Taken:
    """Open a database, query it and close it; closing counts as opening."""
    begin, wall = time.process_time(), time.perf_counter()
    with contextlib.closing(connect()) as database:
        opened = time.process_time()
        rows = len(database.execute(sql).fetchall())
        queried = time.process_time()
    end = time.process_time()
    return Taken(opened - begin + end - queried, queried - opened, time.perf_counter() - wall, rows)


if __name__ == "__main__":
    main()
