"""Measures what resuming a run of many committed shards costs before the first new shard: seconds, memory, requests.

A run is made whose shards but the last are committed: parts of 256 rows, hard-linked to a few files on a disk, uploaded
to a SeaweedFS server on 127.0.0.1 with `--s3`. Then a separate process resumes it as `htc run` does, up to where the
first shard is handed out: it finds the committed shards, counts their rows, and says what is left. Two resumes are
measured: `recorded`, of a run whose driver has recorded the counts of its shards, and `rows`, of one without records,
which reads the rows. Prints one JSON line each, and a last one with `resume_shards_per_cpu_s`.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.messages import ImageFailure, ShardResult
from pipeline.output.commit import encode_table, images_part, instances_part
from pipeline.output.run_record import RunRecord, write_record
from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.planning.manifest import Manifest
from pipeline.runs.counting import CountsRecorder
from pipeline.runs.shard_counts import list_counts
from pipeline.storage.storage import Storage

RUN = "resumed"
SHARD_IMAGES = 256
FINGERPRINT = {"preset": "htc_lite0_fpn", "weights_sha256": "a" * 64, "config_sha256": "c" * 64, "trained": True}
# Every tenth shard has images that are not ok.
FAILED_EVERY, FAILED_IMAGES = 10, 2
INSTANCES = 3
REASON = "the file is empty"
# ext4 allows 65,000 names of one file.
LINKS_PER_FILE = 50_000
WAYS = ("recorded", "rows")
# A part of SeaweedFS's own cost, which is the server's and not the client's.
UPLOAD_THREADS = 8


def failures_of(shard: int) -> int:
    """Return how many images of a shard are not ok."""
    return FAILED_IMAGES if shard % FAILED_EVERY == 0 else 0


def encode_images(failed: int) -> bytes:
    """Encode the images part of a shard; its last `failed` images are not ok."""
    ok = SHARD_IMAGES - failed
    columns: dict[str, list[Any]] = {
        "image_id": list(range(SHARD_IMAGES)),
        "uri": [f"s3://stub/in/photo-2026-11-23-{key:012d}.jpg" for key in range(SHARD_IMAGES)],
        "etag": [f"{key * 2654435761:032x}" for key in range(SHARD_IMAGES)],
        "bytes": [100_000 + key for key in range(SHARD_IMAGES)],
        "width": [640] * SHARD_IMAGES,
        "height": [480] * SHARD_IMAGES,
        "shard": [0] * SHARD_IMAGES,
        "status": ["ok"] * ok + ["unreadable"] * failed,
        "error": [None] * ok + [REASON] * failed,
        "attempts": [1] * SHARD_IMAGES,
        "instances": [INSTANCES] * ok + [0] * failed,
        "model": ["htc_lite0_fpn"] * SHARD_IMAGES,
        "changed": [False] * SHARD_IMAGES,
        "crs": pa.nulls(SHARD_IMAGES, pa.string()),
        "transform": pa.nulls(SHARD_IMAGES, pa.list_(pa.float64())),
    }
    return encode_table(pa.table(columns, schema=IMAGES_SCHEMA), RUN)


def report_of(shard: int) -> ShardResult:
    """Return the report of a shard as its worker sends it."""
    failed = failures_of(shard)
    statuses: dict[Any, int] = {"ok": SHARD_IMAGES - failed} | ({"unreadable": failed} if failed else {})
    names = (f"s3://stub/in/photo-2026-11-23-{SHARD_IMAGES - each - 1:012d}.jpg" for each in range(failed))
    failures = tuple(ImageFailure(name, "unreadable", REASON) for name in names)
    return ShardResult(shard, statuses, statuses["ok"] * INSTANCES, {}, 0, 0.0, failures)


def write_run(spec: JobSpec, storage: Storage, shards: int) -> None:
    """Write a run of `shards` committed shards and one that is not."""
    output = spec.output.uri
    payloads = {failed: encode_images(failed) for failed in (0, FAILED_IMAGES)}
    instances = encode_table(INSTANCES_SCHEMA.empty_table(), RUN)
    if "://" in output:

        def upload(shard: int) -> None:
            storage.write(images_part(output, RUN, shard), payloads[failures_of(shard)])

        with ThreadPoolExecutor(UPLOAD_THREADS) as pool:
            for _ in pool.map(upload, range(shards)):
                pass
    else:
        _link_parts(output, shards, payloads, instances)
    manifest = Manifest(
        image_count=(shards + 1) * SHARD_IMAGES,
        shard_count=shards + 1,
        shard_images=SHARD_IMAGES,
        part_shards=256,
        listed_bytes=0,
        unsized_images=0,
    )
    created = "2026-01-01T00:00:00+00:00"
    record = RunRecord(RUN, created, spec.to_dict(), spec.identity(), FINGERPRINT, {}, manifest.to_dict())
    write_record(storage, output, record)


def _link_parts(output: str, shards: int, payloads: dict[int, bytes], instances: bytes) -> None:
    for name in (images_part, instances_part):
        Path(name(output, RUN, 0)).parent.mkdir(parents=True, exist_ok=True)
    templates = Path(output, "templates")
    templates.mkdir()
    for shard in range(shards):
        kind = failures_of(shard)
        for name, payload in ((images_part, payloads[kind]), (instances_part, instances)):
            template = templates / f"{name.__name__}-{kind}-{shard // LINKS_PER_FILE}"
            if not template.exists():
                template.write_bytes(payload)
            os.link(template, name(output, RUN, shard))
    for template in templates.iterdir():
        template.unlink()
    templates.rmdir()


def record_counts(spec: JobSpec, storage: Storage, shards: int) -> None:
    """Record the counts of the committed shards, as a driver does while it works."""
    recorder = CountsRecorder(storage, spec.output.uri, RUN, check_lease=lambda: None)
    for shard in range(shards):
        recorder.add(report_of(shard))
    recorder.flush()


def remove_counts(spec: JobSpec, storage: Storage) -> None:
    """Remove the recorded counts: so is a run of a release that recorded none."""
    for file in list_counts(storage, spec.output.uri, RUN):
        storage.delete(file.uri)


def measure(spec: JobSpec, way: str, sink: "multiprocessing.connection.Connection") -> None:
    """Resume the run once, and send the measurements."""
    from pipeline.driver.progress import SilentProgress
    from pipeline.driver.run_job import _announce
    from pipeline.driver.run_totals import RunTotals
    from pipeline.runs.lease import take_lease
    from pipeline.runs.open import open_run
    from pipeline.telemetry import DriverMetrics

    storage = Storage(spec.storage)
    requests = count_requests(storage, spec.output.uri)
    base_mib = peak_mib()
    steps: dict[str, float] = {}
    start, start_cpu = time.perf_counter(), time.process_time()
    last = start_cpu

    def step(name: str) -> None:
        nonlocal last
        now = time.process_time()
        steps[name], last = round(now - last, 2), now

    run = open_run(spec, FINGERPRINT, storage, take_lease=lambda name: take_lease(storage, spec.output.uri, name))
    step("open")
    _announce(run, SilentProgress(), None)
    step("announce")
    totals = RunTotals(run, storage, DriverMetrics(RUN))
    step("count")
    left = run.take_new_shards()
    step("take")
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    shards = run.shard_count - len(left)
    asked = dict(requests)
    run.close()
    sink.send(
        {
            "benchmark": "resume",
            "way": way,
            "store": "s3" if "://" in spec.output.uri else "local",
            "shards": shards,
            "images": totals.rows.images,
            "errors": totals.rows.errors,
            "instances": totals.rows.instances,
            "seconds": round(seconds, 2),
            "cpu_s": round(cpu_s, 2),
            "cpu_s_by_step": steps,
            "shards_per_cpu_s": round(shards / cpu_s),
            "peak_mib": round(peak_mib()),
            "peak_before_mib": round(base_mib),
            "counts_files": len(list_counts(storage, spec.output.uri, RUN)),
            "requests": asked,
        }
    )


def count_requests(storage: Storage, uri: str) -> "Counter[str]":
    """Count the requests of the store's client by kind; stays empty for a local folder."""
    requests: Counter[str] = Counter()
    if "://" not in uri:
        return requests
    client, _ = storage.client(uri)
    send = client._call_s3

    async def counted(method: str, *arguments: Any, **keywords: Any) -> Any:
        requests[method] += 1
        return await send(method, *arguments, **keywords)

    client._call_s3 = counted
    return requests


def peak_mib() -> float:
    """Return the process's peak resident memory so far."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


@contextmanager
def s3_output(folder: Path) -> Iterator[tuple[str, str]]:
    """Start a server; yield an output in a bucket of it, and its endpoint."""
    from tests.support.servers.s3_server import WRITER, S3Server

    os.environ.update(WRITER.environment())
    server = S3Server(folder)
    server.start()
    try:
        yield f"{server.make_bucket('resume')}/out", server.endpoint_url
    finally:
        server.kill()


def main() -> None:
    """Make the run, and resume it in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000, help="committed shards (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="1,000 shards")
    parser.add_argument("--s3", action="store_true", help="in a bucket of a server on this machine")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    chosen = parser.parse_args()
    shards = 1000 if chosen.small else chosen.shards
    context = multiprocessing.get_context("spawn")
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        output, endpoint = f"{folder}/out", ""
        if chosen.s3:
            output, endpoint = stack.enter_context(s3_output(Path(folder, "server")))
        values = {"input.uri": "s3://stub/in/", "output.uri": output, "model.preset": "htc_lite0_fpn"}
        if endpoint:
            values["storage.endpoint_url"] = endpoint
        spec = load_spec(None, values)
        write_run(spec, Storage(spec.storage), shards)
        for way in chosen.ways:
            if way == "recorded":
                record_counts(spec, Storage(spec.storage), shards)
            else:
                remove_counts(spec, Storage(spec.storage))
            results[way] = measured(context, spec, way)
            print(json.dumps(results[way]), flush=True)
    print(json.dumps(last_line(results)))


def measured(context: Any, spec: JobSpec, way: str) -> dict[str, Any]:
    """Measure a way in a process of its own."""
    reader, sink = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(spec, way, sink))
    child.start()
    while not reader.poll(1.0):
        if child.exitcode is not None:
            sys.exit(child.exitcode or 1)
    result: dict[str, Any] = reader.recv()
    child.join()
    return result


def last_line(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers to compare between versions."""
    best = results.get("recorded") or results["rows"]
    line = {"benchmark": "resume", "store": best["store"], "shards": best["shards"]}
    line |= {"resume_shards_per_cpu_s": best["shards_per_cpu_s"], "peak_mib": best["peak_mib"]}
    if "rows" in results:
        line["resume_rows_shards_per_cpu_s"] = results["rows"]["shards_per_cpu_s"]
    return line


if __name__ == "__main__":
    main()
