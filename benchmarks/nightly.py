"""Measures an incremental run over a million known keys: planning, and queries of the view `current`.

The history is generated: one full run in parts of 256 images, then incremental runs that each processed 1 % of them
again. For the planned run 5 % of the keys have changed, 1 % are deleted and 2 % are new; the listing comes from memory,
the tables are on the local disk. Each step runs in a separate process. Prints one JSON line per step, with seconds and
peak memory.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.image_ref import image_id
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.maintenance.needed_runs import needed_runs
from pipeline.output.commit import images_part, instances_part
from pipeline.output.results import open_results
from pipeline.output.run_record import RunRecord, write_record
from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.runs.open import open_run
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage

FINGERPRINT = {"preset": "htc_lite0_fpn", "weights_sha256": "a" * 64, "config_sha256": "c" * 64, "trained": True}
SHARD_IMAGES = 256
START = datetime(2026, 1, 1, tzinfo=UTC)


def name_of(key: int) -> str:
    """Return a key of usual length."""
    return f"s3://stub/in/photo-2026-11-23-{key:012d}.jpg"


def version_of(key: int, version: int) -> str:
    """Return the ETag of a key after this many changes."""
    return f"{key:020x}{version:012x}"


class CannedStorage(Storage):
    """The new listing, from memory: of a hundred keys five have changed, one is deleted, two are new."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.keys = keys

    def kind(self, uri: str) -> str:  # type: ignore[override]
        """Return that the input is a folder."""
        return "folder" if uri.startswith("s3:") else super().kind(uri)

    def list(self, uri: str, glob: str | None = None, **options: Any) -> Iterator[ObjectInfo]:
        """Yield the names in order."""
        if not uri.startswith("s3:"):
            yield from super().list(uri, glob, **options)
            return
        for key in range(self.keys + self.keys // 50):
            if key % 100 != 99 or key >= self.keys:
                yield ObjectInfo(name_of(key), 1000, version_of(key, 1_000_000 if key % 20 == 7 else 0))


def write_run(folder: Path, number: int, keys: "range | np.ndarray", spec: JobSpec) -> None:
    """Write one run's tables and record; every image is ok and has one instance."""
    run, output = f"run-{number:03d}", str(folder)
    for shard, start in enumerate(range(0, len(keys), SHARD_IMAGES)):
        own = [int(key) for key in keys[start : start + SHARD_IMAGES]]
        count, names = len(own), [name_of(key) for key in own]
        columns: dict[str, object] = {
            "image_id": [image_id(name) for name in names],
            "uri": names,
            "etag": [version_of(key, 0) for key in own],
            "bytes": [1000] * count,
            "width": [640] * count,
            "height": [480] * count,
            "shard": [shard] * count,
            "status": ["ok"] * count,
            "error": [None] * count,
            "attempts": [1] * count,
            "instances": [1] * count,
            "model": ["m"] * count,
            "changed": [False] * count,
            "crs": pa.nulls(count, pa.string()),
            "transform": pa.nulls(count, pa.list_(pa.float64())),
        }
        found = {
            "image_id": columns["image_id"],
            "uri": names,
            "instance": [0] * count,
            "category_id": [1] * count,
            "category": ["person"] * count,
            "score": [0.9] * count,
            "bbox": [{"x": 0, "y": 0, "width": 1, "height": 1}] * count,
            "area": [1] * count,
            "mask": [{"size": [480, 640], "counts": "x" * 200}] * count,
            "model": ["m"] * count,
        }
        for path, table, schema in (
            (images_part(output, run, shard), columns, IMAGES_SCHEMA),
            (instances_part(output, run, shard), found, INSTANCES_SCHEMA),
        ):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(table, schema=schema), path, compression="zstd")
    counts = {"image_count": len(keys), "shard_count": -(-len(keys) // SHARD_IMAGES), "is_planned": True}
    created = (START + timedelta(days=number)).isoformat()
    record = RunRecord(run, created, spec.to_dict(), spec.identity(), FINGERPRINT, {}, counts)
    write_record(Storage(), output, record)


def plan_incremental_run(spec: JobSpec, keys: int) -> dict[str, object]:
    """Plan the incremental run, and remove it again."""
    run = open_run(spec, FINGERPRINT, CannedStorage(keys), run="incremental")
    for table in ("runs", "deletions"):
        shutil.rmtree(Path(spec.output.uri, table, "incremental" if table == "runs" else "run=incremental"))
    return {"selection": run.manifest.selection}


def count_current(spec: JobSpec, keys: int) -> dict[str, object]:
    """Count the view `current`."""
    return {"rows": query_number(spec, "SELECT count(*) FROM current")}


def find_current(spec: JobSpec, keys: int) -> dict[str, object]:
    """Find one image's instances in the view `current_instances`."""
    sql = f"SELECT count(mask.counts) FROM current_instances WHERE uri = '{name_of(keys // 2)}'"
    return {"rows": query_number(spec, sql)}


def group_current(spec: JobSpec, keys: int) -> dict[str, object]:
    """Count all current instances by category."""
    return {"rows": query_number(spec, "SELECT count(*) FROM current_instances WHERE category = 'person'")}


def query_number(spec: JobSpec, sql: str) -> object:
    """Run a query that returns one number."""
    from pipeline.output.views import open_database

    with open_database(open_results(spec.output.uri)) as database:
        return database.execute(sql).fetchall()[0][0]


def count_needed_runs(spec: JobSpec, keys: int) -> dict[str, object]:
    """Count the runs that the view `current` needs."""
    return {"rows": len(needed_runs(open_results(spec.output.uri)))}


STEPS: dict[str, Callable[[JobSpec, int], dict[str, object]]] = {
    "plan": plan_incremental_run,
    "count current": count_current,
    "one image of current_instances": find_current,
    "current_instances by category": group_current,
    "needed runs": count_needed_runs,
}


def measure(step: str, spec: JobSpec, keys: int, sink: "multiprocessing.connection.Connection") -> None:
    """Run one step, and send the measurements."""
    own = OwnMemory()
    own.start()
    start, start_cpu, before = time.perf_counter(), time.process_time(), peak_mib()
    answer = STEPS[step](spec, keys)
    sink.send(
        {
            "benchmark": "nightly",
            "step": step,
            "keys": keys,
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_s": round(time.process_time() - start_cpu, 1),
            "peak_mib": peak_mib(),
            "peak_before_mib": before,
            # Without the pages of memory-mapped files, which the system can reclaim.
            "peak_own_mib": own.peak_mib,
            **answer,
        }
    )


class OwnMemory(threading.Thread):
    """Samples the peak of the process's private memory (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib = 0

    def run(self) -> None:
        """Sample twenty times a second."""
        while True:
            _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
            self.peak_mib = max(self.peak_mib, (resident - shared) * resource.getpagesize() // 2**20)
            time.sleep(0.05)


def peak_mib() -> int:
    """Return the process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Write the history, and measure the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--nights", type=int, default=10, help="incremental runs in the history")
    parser.add_argument("--steps", nargs="*", choices=[*STEPS], default=[*STEPS])
    parser.add_argument("--history", type=Path, help="store the history here, or use the one that is stored here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.history or Path(temporary, "out")
        overrides = {"input.uri": "s3://stub/in/", "output.uri": str(folder), "select.mode": "incremental"}
        spec = load_spec(None, overrides)
        if not folder.exists():
            write_run(folder, 0, range(arguments.keys), spec)
            for number in range(1, arguments.nights + 1):
                chosen = np.random.default_rng(number).choice(arguments.keys, arguments.keys // 100, replace=False)
                write_run(folder, number, np.sort(chosen), spec)
        spawn = multiprocessing.get_context("spawn")
        for step in arguments.steps:
            source, sink = spawn.Pipe()
            process = spawn.Process(target=measure, args=(step, spec, arguments.keys, sink))
            process.start()
            print(json.dumps(source.recv()), flush=True)
            process.join()


if __name__ == "__main__":
    main()
