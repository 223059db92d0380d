"""Measures how long `htc browse` takes to answer: pages, filters, facets, thumbnails, one image, over a large output.

The server runs in a process of its own, as a user starts it; requests come one at a time over HTTP. Beside each page
stands its peer in the same rounds: DuckDB alone, in a connection that is kept, asking the same files for the same rows
by LIMIT and OFFSET. Rounds are interleaved; reported are the median, the slowest, and the least CPU seconds (of the
server, and of the peer), of the output as workers write it and of a compacted copy. Images are copies of one photo,
made where a page shows them. Prints tables, and one line of JSON at the end.

    python benchmarks/browse.py [--images 1000000] [--instances 10] [--parts 1000] [--rounds 5] [--folder KEPT]
"""

import argparse
import contextlib
import html
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

import duckdb
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import requests
from PIL import Image

from pipeline.maintenance.compaction import compact_run
from pipeline.output.commit import with_run_name
from pipeline.output.parts import Part, part_uri
from pipeline.output.run_record import RunRecord, write_record
from pipeline.output.schema import BBOX_TYPE, IMAGES_SCHEMA, INSTANCES_SCHEMA, MASK_TYPE
from pipeline.planning.manifest import MANIFEST_SCHEMA, Manifest, manifest_part_uri
from pipeline.storage.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "examples" / "photos" / "000000199055.jpg"
RUN = "benchmark"
CATEGORIES = 80
PAGE = 48


def main() -> None:
    """Write the output, start the server, ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--instances", type=int, default=10, help="of each image")
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the output is written, and kept for the next time")
    given = parser.parse_args()
    with output_folder(given.folder) as folder:
        if not (folder / "compacted").is_dir():
            shutil.rmtree(folder / "out", ignore_errors=True)
            write_output(folder, given.images, given.parts, given.instances)
            shutil.copytree(folder / "out", folder / "compacted", copy_function=os.link)
            compact_run(Storage(), str(folder / "compacted"), RUN, target_bytes=256 << 20, check=lambda: None)
        answer: dict[str, object] = {"benchmark": "browse", "images": given.images, "parts": given.parts}
        for name in ("out", "compacted"):
            answer[name] = measure(folder, name, given.images, given.rounds)
        print(json.dumps(answer))


@contextlib.contextmanager
def output_folder(kept: Path | None) -> Iterator[Path]:
    """Return the folder to keep, or a temporary one that is removed at the end."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    folder = tempfile.mkdtemp(prefix="htc-browse-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


def write_output(folder: Path, images: int, parts: int, instances: int) -> None:
    """Write a complete run as workers would, and the manifest that says where its images are."""
    with Image.open(PHOTO) as photo:
        width, height = photo.size
    size = PHOTO.stat().st_size
    per_part = -(-images // parts)
    # Parts of the manifest that are all of one size.
    part_shards = max(1, 65_536 // per_part)
    rng = np.random.default_rng(0)
    rows: list[pa.Table] = []
    for shard in range(parts):
        numbers = np.arange(shard * per_part, min(images, (shard + 1) * per_part))
        names = names_of(folder, numbers)
        for table, made in (
            ("instances", instance_rows(numbers, names, rng, (height, width), instances)),
            ("images", image_rows(numbers, names, shard, size=(height, width), size_bytes=size, instances=instances)),
        ):
            target = Path(part_uri(str(folder / "out"), table, RUN, Part(shard, shard)))  # type: ignore[arg-type]
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(with_run_name(made, RUN), target, compression="zstd", write_page_checksum=True)
        rows.append(manifest_rows(numbers, names, shard, size))
    target_folder = folder / "out" / "runs" / RUN / "manifest"
    target_folder.mkdir(parents=True)
    for number, first in enumerate(range(0, parts, part_shards)):
        pq.write_table(
            pa.concat_tables(rows[first : first + part_shards]), manifest_part_uri(str(target_folder), number)
        )
    manifest = Manifest(images, parts, per_part, part_shards, images * size, 0)
    record = RunRecord(RUN, "2026-01-01T00:00:00+00:00", {}, {}, {"trained": True}, {}, manifest.to_dict())
    write_record(Storage(), str(folder / "out"), record)


def names_of(folder: Path, numbers: np.ndarray) -> list[str]:
    """Return the images' names; a folder has a thousand images."""
    return [f"{folder}/images/{number // 1000:06d}/{number:09d}.jpg" for number in numbers.tolist()]


def manifest_rows(numbers: np.ndarray, names: list[str], shard: int, size: int) -> pa.Table:
    """Return a shard's rows of the manifest."""
    rows = len(numbers)
    columns = {name: [None] * rows for name in MANIFEST_SCHEMA.names}
    columns |= {"position": numbers, "shard": np.full(rows, shard, np.int32), "uri": names}
    columns |= {"bytes": np.full(rows, size), "failed_before": [False] * rows}
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def image_rows(
    numbers: np.ndarray, names: list[str], shard: int, *, size: tuple[int, int], size_bytes: int, instances: int
) -> pa.Table:
    """Generate rows of `images`, one in a hundred unreadable."""
    rows = len(numbers)
    is_bad = numbers % 100 == 99
    columns = {
        "image_id": numbers,
        "uri": names,
        "etag": [None] * rows,
        "bytes": np.full(rows, size_bytes),
        "width": np.full(rows, size[1], np.int32),
        "height": np.full(rows, size[0], np.int32),
        "shard": np.full(rows, shard, np.int32),
        "status": np.where(is_bad, "unreadable", "ok"),
        "error": np.where(is_bad, "the file is damaged", None),
        "attempts": np.ones(rows, np.int32),
        "instances": np.where(is_bad, 0, instances).astype(np.int32),
        "model": ["htc_r50_fpn"] * rows,
        "changed": [False] * rows,
        "crs": pa.nulls(rows, pa.string()),
        "transform": pa.nulls(rows, pa.list_(pa.float64())),
    }
    return pa.table(columns, schema=IMAGES_SCHEMA)


def instance_rows(
    numbers: np.ndarray, names: list[str], rng: np.random.Generator, size: tuple[int, int], instances: int
) -> pa.Table:
    """Generate rows of `instances`: rectangles as masks, of different places."""
    from htc_model.masks.rle import encode_bitmap

    height, width = size
    masks, boxes = [], []
    for _ in range(64):
        x, y = int(rng.integers(0, width - 80)), int(rng.integers(0, height - 80))
        mask = np.zeros((height, width), bool)
        mask[y : y + 60, x : x + 40 + int(rng.integers(0, 40))] = True
        masks.append({"size": [height, width], "counts": encode_bitmap(mask)["counts"].decode()})
        boxes.append({"x": x, "y": y, "width": int(mask[y].sum()), "height": 60})
    kept = np.flatnonzero(numbers % 100 != 99)
    chosen = np.repeat(kept, instances)
    rows = len(chosen)
    which = rng.integers(0, 64, rows)
    scores = -np.sort(-rng.random((len(kept), instances), dtype=np.float32), axis=1)
    categories = rng.integers(1, CATEGORIES + 1, rows, dtype=np.int32)
    names_of_categories = pa.array([f"category {number}" for number in range(CATEGORIES + 1)])
    columns = {
        "image_id": numbers[chosen],
        "uri": pa.array(names).take(pa.array(chosen)),
        "instance": np.tile(np.arange(instances, dtype=np.int32), len(kept)),
        "category_id": categories,
        "category": names_of_categories.take(pa.array(categories)),
        "score": scores.ravel(),
        "bbox": pa.array(boxes, BBOX_TYPE).take(pa.array(which)),
        "area": np.array([box["width"] * 60 for box in boxes])[which],
        "mask": pa.array(masks, MASK_TYPE).take(pa.array(which)),
        "model": ["htc_r50_fpn"] * rows,
    }
    return pa.table(columns, schema=INSTANCES_SCHEMA)


class Server:
    """The server as a user starts it."""

    def __init__(self, output: Path) -> None:
        begin = time.perf_counter()
        words = [sys.executable, "-m", "jobs", "browse", str(output), "--port", "0", "--no-open"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        address = self.process.stdout.readline().strip()
        self.start_s = time.perf_counter() - begin
        self.base = address.split("/?")[0]
        self.session = requests.Session()
        self.session.get(address, timeout=120)

    def get(self, path: str) -> requests.Response:
        """Ask for a path."""
        answer = self.session.get(self.base + path, timeout=300)
        answer.raise_for_status()
        return answer

    def cpu_s(self) -> float:
        """Return the CPU seconds that it has taken so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def memory_mib(self) -> int:
        """Return the most memory that it has held, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) >> 10  # type: ignore[index]

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)


def measure(folder: Path, name: str, images: int, rounds: int) -> dict[str, object]:
    """Ask everything of one output in turns, `rounds` times; returns seconds."""
    files = len(list((folder / name / "images").rglob("*.parquet")))
    print(f"\n{name}: {images:,} images in {files:,} parts")
    server = Server(folder / name)
    try:
        return ask(server, Peer(folder / name), folder, images, rounds)
    finally:
        server.close()


def ask(server: Server, peer: "Peer", folder: Path, images: int, rounds: int) -> dict[str, object]:
    """Ask, and print what was found."""
    middle = urlencode({"after": names_of(folder, np.array([images // 2]))[0]})
    last = urlencode({"after": names_of(folder, np.array([images - PAGE - 1]))[0]})
    name = names_of(folder, np.array([images // 2 + 17]))[0]
    make_photos(folder, [name])
    # Each round asks for another page's, because pictures are kept for a minute.
    pages = [names_of(folder, np.array([1000 * (turn + 1)]))[0] for turn in range(rounds)]
    thumbnails = [pictures_of(server, folder, f"/?{urlencode({'after': page})}") for page in pages]
    image = urlencode({"uri": name, "shard": shard_of(pictures_of(server, folder, f"/?{middle}")[0])})
    questions: dict[str, tuple[Callable[[], object], Callable[[], object] | None]] = {
        "first page": (lambda: server.get("/"), lambda: peer.page(0)),
        "page in the middle": (lambda: server.get(f"/?{middle}"), lambda: peer.page(images // 2)),
        "last page": (lambda: server.get(f"/?{last}"), lambda: peer.page(images - PAGE)),
        "category, score >= 0.9": (
            lambda: server.get("/?category=category+7&min_score=0.9"),
            lambda: peer.filtered("category = 'category 7' AND score >= 0.9"),
        ),
        "category, score >= 0.9999": (
            lambda: server.get("/?category=category+7&min_score=0.9999"),
            lambda: peer.filtered("category = 'category 7' AND score >= 0.9999::FLOAT"),
        ),
        "lowest scores first": (lambda: server.get("/?order=least"), None),
        "failed images": (lambda: server.get("/failures"), None),
        "count by category": (
            lambda: server.get("/sql/answer?" + urlencode({"sql": peer.count})),
            lambda: peer.ask(peer.count),
        ),
        "one image's values": (lambda: server.get(f"/api/image?{image}"), None),
        "a page's 48 thumbnails": (lambda: [server.get(each) for each in thumbnails.pop()], None),
    }
    taken: dict[str, list[list[Taken]]] = {each: [[], []] for each in questions}
    facets: list[Taken] = []
    for turn in range(rounds):
        for each, (own, other) in questions.items():
            taken[each][0].append(timed(own, server.cpu_s))
            if other is not None:
                taken[each][1].append(timed(other, time.process_time))
        # Counted once and kept, so each round asks for another search.
        facets.append(timed(lambda turn=turn: server.get(f"/facets?min_score=0.{turn + 1}"), server.cpu_s))
    taken["facets, counted anew"] = [facets, []]
    answer: dict[str, object] = {"start_s": round(server.start_s, 2)}
    print(f"{'seconds: median (slowest), CPU':30} {'htc browse':>22} {'DuckDB, OFFSET':>22} {'ratio of CPU':>13}")
    for each, sides in taken.items():
        shown = [
            f"{statistics.median(one.wall_s for one in side):.3f} ({max(one.wall_s for one in side):.3f}), "
            f"{min(one.cpu_s for one in side):.2f}"
            if side
            else "-"
            for side in sides
        ]
        ratio = f"{min(sides[0]).cpu_s / min(sides[1]).cpu_s:.2f}" if sides[1] else "-"
        print(f"{each:30} {shown[0]:>22} {shown[1]:>22} {ratio:>13}")
        answer[each] = [
            {"wall_s": round(statistics.median(one.wall_s for one in side), 4), "cpu_s": round(min(side).cpu_s, 3)}
            for side in sides
            if side
        ]
    answer["memory_mib"] = server.memory_mib()
    print(f"start {server.start_s:.2f} s, at most {answer['memory_mib']} MiB")
    return answer


class Taken(NamedTuple):
    """What one question took; compared by CPU seconds, which other processes disturb less."""

    cpu_s: float
    wall_s: float


def timed(way: Callable[[], object], cpu_s: Callable[[], float]) -> Taken:
    """Ask once."""
    cpu, begin = cpu_s(), time.perf_counter()
    way()
    return Taken(cpu_s() - cpu, time.perf_counter() - begin)


def pictures_of(server: Server, folder: Path, page: str) -> list[str]:
    """Return the addresses of a page's thumbnails, whose photos it makes; the server has not drawn them yet."""
    text = server.get(page).text
    found = [html.unescape(each) for each in re.findall(r'<img src="(/picture[^"]*)"', text)]
    make_photos(folder, [parse_qs(urlsplit(each).query)["uri"][0] for each in found])
    return found


def shard_of(picture: str) -> str:
    """Return the shard in a picture's address."""
    return parse_qs(urlsplit(picture).query)["shard"][0]


def make_photos(folder: Path, names: list[str]) -> None:
    """Make photos under their names, as links to one."""
    del folder
    for name in names:
        target = Path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(PHOTO, target)


class Peer:
    """DuckDB alone over the same files."""

    count = "SELECT category, count(*) AS n FROM instances GROUP BY category ORDER BY n DESC"

    def __init__(self, output: Path) -> None:
        self._database = duckdb.connect()
        for table in ("images", "instances"):
            files = sorted(map(str, (output / table / f"run={RUN}").glob("*.parquet")))
            self._database.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet({files})")

    def ask(self, sql: str) -> list[tuple[object, ...]]:
        """Ask, and fetch the whole answer."""
        return self._database.execute(sql).fetchall()

    def page(self, offset: int) -> object:
        """Return a page by its number of rows before."""
        return self.ask(
            "SELECT uri, image_id, shard, status, error, instances, width, height, etag, bytes FROM images "
            f"ORDER BY uri LIMIT {PAGE} OFFSET {offset}"
        )

    def filtered(self, condition: str) -> object:
        """Return the first page of images that have an instance."""
        return self.ask(
            f"SELECT uri, count(*), max(score) FROM instances WHERE {condition} GROUP BY uri ORDER BY uri LIMIT {PAGE}"
        )


if __name__ == "__main__":
    main()
