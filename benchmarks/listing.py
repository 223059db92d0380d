"""Measures the planning of a million S3 keys: keys per second, and the process's peak memory.

A stub server on 127.0.0.1 answers ListObjectsV2 for a bucket of 40 folders, 1,000 keys a page. Four ways, each in a
separate process: `plan` is what `htc run` does (pages over HTTP, manifest parts written), `plan one folder` the same
without parallel listing, `plan only` gets its names from memory, and `find` is s3fs's own listing into a dict, to
compare with. `local flat` plans a folder of this machine's disk with `--local-files` files, `local tree` one with as
many in folders of 1,000. Prints one JSON line each.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pipeline.inputs.listing import list_images
from pipeline.job_spec.job import load_spec
from pipeline.planning.planner import Planner
from pipeline.planning.shard_size import ShardSizing
from pipeline.storage.config import StorageSection
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage

FOLDERS = 40
PAGE_KEYS = 1000
WAYS = ("plan", "plan one folder", "plan only", "find", "local flat", "local tree")
# ext4 allows 65,000 names of one file.
LINKS_PER_FILE = 50_000
STUB_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "stub", "AWS_SECRET_ACCESS_KEY": "stub", "AWS_DEFAULT_REGION": "us-east-1"}


def key_of(index: int, keys: int) -> str:
    """Return a key of usual length, in one of the folders."""
    return f"in/{index // -(-keys // FOLDERS):02d}/photo-2026-11-23-{index:012d}.jpg"


class StubS3(BaseHTTPRequestHandler):
    """Answers ListObjectsV2, and HeadObject with 404."""

    protocol_version = "HTTP/1.1"
    keys = 0
    latency_s = 0.0

    def do_HEAD(self) -> None:
        """Answer that there is no such object, so that every requested name is a prefix."""
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        """Answer with a page of keys, or with the folders."""
        time.sleep(self.latency_s)
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, token = asked.get("prefix", ""), asked.get("continuation-token")
        if asked.get("delimiter") and prefix == "in/":
            names = "".join(f"<CommonPrefixes><Prefix>in/{n:02d}/</Prefix></CommonPrefixes>" for n in range(FOLDERS))
            self._answer(names, None)
            return
        each = -(-self.keys // FOLDERS)
        first, end = 0, self.keys
        if prefix != "in/":
            first = int(prefix.split("/")[1]) * each
            end = min(first + each, self.keys)
        start = int(token) if token else first
        stop = min(start + int(asked.get("max-keys", PAGE_KEYS)), end)
        self._answer("".join(map(self._content, range(start, stop))), str(stop) if stop < end else None)

    def version_string(self) -> str:
        """Identify as S3, which lists in its documented order."""
        return "AmazonS3"

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

    def _content(self, index: int) -> str:
        return (
            f"<Contents><Key>{key_of(index, self.keys)}</Key><LastModified>2026-11-23T00:00:00.000Z</LastModified>"
            f'<ETag>"{index:032x}"</ETag><Size>{index % 500_000}</Size><StorageClass>STANDARD</StorageClass></Contents>'
        )

    def _answer(self, entries: str, token: str | None) -> None:
        more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
        body = (
            f'<?xml version="1.0"?><ListBucketResult><IsTruncated>{str(bool(token)).lower()}</IsTruncated>'
            f"<KeyCount>1</KeyCount>{more}{entries}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class CannedStorage(Storage):
    """A listing from memory, to measure the planning alone."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.keys = keys

    def kind(self, uri: str) -> str:  # type: ignore[override]
        """Return that the input is a folder."""
        return "folder" if uri.startswith("s3:") else super().kind(uri)

    def list(self, uri: str, glob: str | None = None, **options: Any) -> Iterator[ObjectInfo]:
        """Yield the same names as the stub server's."""
        if not uri.startswith("s3:"):
            yield from super().list(uri, glob, **options)
            return
        for index in range(self.keys):
            yield ObjectInfo(f"s3://stub/{key_of(index, self.keys)}", index % 500_000, f"{index:032x}")


def serve(keys: int, latency_s: float, sink: "multiprocessing.connection.Connection") -> None:
    """Send the port, then serve until killed."""
    StubS3.keys, StubS3.latency_s = keys, latency_s
    server = ThreadingHTTPServer(("127.0.0.1", 0), StubS3)
    sink.send(server.server_address[1])
    server.serve_forever()


def make_files(folder: Path, count: int, *, is_flat: bool) -> None:
    """Make files of five bytes, all of them links to a few."""
    for number in range(count):
        place = folder if is_flat else folder / f"{number // PAGE_KEYS:05d}"
        if number == 0 or (not is_flat and number % PAGE_KEYS == 0):
            place.mkdir(parents=True)
        if number % LINKS_PER_FILE == 0:
            first = place / f"photo-{number:012d}.jpg"
            first.write_bytes(b"image")
        else:
            os.link(first, place / f"photo-{number:012d}.jpg")


def measure(way: str, keys: int, source: str, endpoint_url: str, sink: "multiprocessing.connection.Connection") -> None:
    """Plan or list once, and send the measurements."""
    os.environ.update(STUB_ENVIRONMENT)
    spec = load_spec(None, {"input.uri": source, "output.uri": "s3://stub/out", "model.preset": "htc_lite0_fpn"})
    storage = CannedStorage(keys) if way == "plan only" else Storage(StorageSection(endpoint_url=endpoint_url))
    start, start_cpu = time.perf_counter(), time.process_time()
    next(list_images(spec.input, storage))
    first_s, first_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    base_mib = peak_mib()
    start, start_cpu = time.perf_counter(), time.process_time()
    if way == "find":
        client, path = storage.client(source)
        count = len(client.find(path, detail=True))
    else:
        with tempfile.TemporaryDirectory() as folder:
            sizing = ShardSizing.of(spec.compute)
            planner = Planner(spec.input, storage, spec.output.uri, folder, sizing=sizing)
            count = list(planner.parts())[-1].image_count
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    sink.send(
        {
            "benchmark": "listing",
            "way": way,
            "keys": count,
            "seconds": round(seconds, 1),
            "cpu_s": round(cpu_s, 1),
            "keys_per_s": round(count / seconds),
            # Without waiting for the storage and for other processes of the machine.
            "keys_per_cpu_s": round(count / cpu_s),
            "first_key_s": round(first_s, 3),
            "first_key_cpu_s": round(first_cpu_s, 3),
            "peak_mib": round(peak_mib()),
            "peak_before_mib": round(base_mib),
        }
    )


def peak_mib() -> float:
    """Return the process's peak resident memory so far."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    """Measure the ways one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument(
        "--latency-s", type=float, default=0.0, help="seconds that the server takes for a page; S3: 0.05 to 0.2"
    )
    parser.add_argument("--local-files", type=int, default=200_000)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    chosen = parser.parse_args()
    keys = chosen.keys
    # A forked child would begin with this process's memory.
    context = multiprocessing.get_context("spawn")
    reader, sink = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(keys, chosen.latency_s, sink), daemon=True)
    server.start()
    endpoint_url = f"http://127.0.0.1:{reader.recv()}"
    folder = tempfile.mkdtemp()
    try:
        for way in chosen.ways:
            source = "s3://stub/in/07/" if way == "plan one folder" else "s3://stub/in/"
            if way.startswith("local"):
                source = f"{folder}/{way}"
                make_files(Path(source), chosen.local_files, is_flat=way == "local flat")
            child = context.Process(target=measure, args=(way, keys, source, endpoint_url, sink))
            child.start()
            while not reader.poll(1.0):
                if child.exitcode is not None:
                    sys.exit(child.exitcode or 1)
            print(json.dumps(reader.recv()), flush=True)
            child.join()
    finally:
        server.kill()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
