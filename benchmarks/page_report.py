"""Measures `htc report` on a large run: wall seconds, memory and the file's size, beside a plain script.

    python benchmarks/page_report.py [--images 1000000] [--rounds 3]

The output is written for the purpose: so many images with three instances each, of 80 categories; the images of the
gallery's sample are the bundled photos under other names. The peer is what a user would write: the same counts by plain
DuckDB over the same files, and the same 500 photos as a thumbnail and a view of 1,024 pixels with Pillow, without
masks. Rounds are interleaved. The last line is one JSON object.
"""

import argparse
import base64
import io
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from PIL import Image
from pycocotools import mask as coco_mask

from jobs.results.report.counts import count_run
from jobs.results.report.sample import choose_sample
from pipeline.inputs.image_ref import image_id
from pipeline.job_spec.job import load_spec
from pipeline.output.commit import encode_table, images_part, instances_part
from pipeline.output.results import open_results
from pipeline.output.schema import BBOX_TYPE, IMAGES_SCHEMA, INSTANCES_SCHEMA, MASK_TYPE
from pipeline.output.views import open_database
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage

PHOTOS = sorted((Path(__file__).resolve().parent.parent / "examples" / "photos").glob("*.jpg"))
FINGERPRINT = {"preset": "htc_r50_fpn", "weights_sha256": "a" * 64, "config_sha256": "0" * 64, "trained": True}
RUN, SHARD_IMAGES, INSTANCES, CATEGORIES, SAMPLE = "many", 2000, 3, 80, 500
GROUPS = (
    "SELECT status, count(*) FROM read_parquet('{images}') GROUP BY 1",
    "SELECT category, count(*), count(DISTINCT image_id), avg(score) FROM read_parquet('{instances}') GROUP BY 1",
    "SELECT floor(score * 20), count(*) FROM read_parquet('{instances}') GROUP BY 1",
    "SELECT floor(log2(sqrt(area) + 1)), count(*) FROM read_parquet('{instances}') GROUP BY 1",
)


def write_output(folder: Path, images: int) -> Path:
    """Write the output, and the photos of its sample."""
    photos = folder / "photos"
    photos.mkdir()
    kinds = []
    for photo in PHOTOS:
        with Image.open(photo) as image:
            kinds.append((*image.size, _mask(image.height, image.width)))
    listing = folder / "names.txt"
    listing.write_text("\n".join(str(photos / f"{number:08d}.jpg") for number in range(images)))
    overrides = {"input.uri": str(listing), "output.uri": str(folder / "out"), "compute.shard_images": SHARD_IMAGES}
    storage = Storage()
    run = open_run(load_spec(None, overrides), FINGERPRINT, storage, run=RUN)
    for shard in range(run.shard_count):
        uris = [ref.uri for ref in run.read_shard(shard).images]
        tables = _tables(shard, uris, np.array([int(Path(uri).stem) % len(PHOTOS) for uri in uris]), kinds)
        storage.write(instances_part(run.output_uri, RUN, shard), encode_table(tables[1], RUN))
        storage.write(images_part(run.output_uri, RUN, shard), encode_table(tables[0], RUN))
    run.close()
    for uri in sampled(folder / "out"):
        Path(uri).symlink_to(PHOTOS[int(Path(uri).stem) % len(PHOTOS)])
    return folder / "out"


def _mask(height: int, width: int) -> dict[str, object]:
    rows, columns = np.mgrid[0:height, 0:width]
    disc = ((rows / height - 0.5) ** 2 + (columns / width - 0.5) ** 2) < 0.05
    code = coco_mask.encode(np.asfortranarray(disc.astype(np.uint8)))
    return {"size": [height, width], "counts": code["counts"].decode()}


def _tables(
    shard: int, uris: list[str], photo: np.ndarray, kinds: list[tuple[int, int, dict[str, object]]]
) -> tuple[pa.Table, pa.Table]:
    random = np.random.default_rng(shard)
    count, ids = len(uris), np.array([image_id(uri) for uri in uris])
    images = {
        "image_id": ids,
        "uri": uris,
        "width": [kinds[place][0] for place in photo],
        "height": [kinds[place][1] for place in photo],
        "shard": [shard] * count,
        "status": ["ok"] * count,
        "attempts": [1] * count,
        "instances": [INSTANCES] * count,
        "model": ["m"] * count,
    }
    rows = np.repeat(np.arange(count), INSTANCES)
    category = random.integers(0, CATEGORIES, len(rows))
    box = {"x": 10.0, "y": 10.0, "width": 50.0, "height": 50.0}
    instances = {
        "image_id": ids[rows],
        "uri": [uris[row] for row in rows],
        "instance": np.tile(np.arange(INSTANCES), count),
        "category_id": category,
        "category": [f"category {number}" for number in category],
        "score": random.random(len(rows)),
        "bbox": pa.array([box] * len(rows), BBOX_TYPE),
        "area": random.integers(10, 90_000, len(rows)),
        "mask": pa.array([kinds[place][2] for place in photo[rows]], MASK_TYPE),
        "model": ["m"] * len(rows),
    }
    return _table(images, IMAGES_SCHEMA, count), _table(instances, INSTANCES_SCHEMA, len(rows))


def _table(columns: dict[str, object], schema: pa.Schema, rows: int) -> pa.Table:
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def sampled(output: Path) -> list[str]:
    """Return the images that the report shows."""
    with open_database(open_results(str(output))) as database:
        statuses = count_run(database, RUN).statuses
        return [str(row["uri"]) for row in choose_sample(database, RUN, statuses, SAMPLE).rows]


def peer(output: Path, names: Path, file: Path) -> None:
    """Count with plain DuckDB, shrink the photos with Pillow, write a page."""
    places = {table: str(output / table / "*" / "*.parquet") for table in ("images", "instances")}
    with duckdb.connect() as database:
        counts = [database.execute(sql.format(**places)).fetchall() for sql in GROUPS]
    pieces = [json.dumps(counts, default=str)]
    for uri in json.loads(names.read_text()):
        with Image.open(uri) as opened:
            picture = opened.convert("RGB")
        for side, quality in ((1024, 74), (280, 62)):
            picture.thumbnail((side, side))
            sink = io.BytesIO()
            picture.save(sink, "WEBP", quality=quality, method=2)
            pieces.append(base64.b64encode(sink.getvalue()).decode())
    file.write_text("\n".join(pieces))


def measure(words: list[str]) -> dict[str, float]:
    """Run a command; return its wall and CPU seconds, and its largest memory in MiB."""
    script = (
        "import json, resource, subprocess, sys, time\n"
        "began = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "use = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([time.perf_counter() - began, use.ru_utime + use.ru_stime, use.ru_maxrss / 1024]))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], check=True, capture_output=True, text=True)
    wall, cpu, memory = json.loads(done.stdout)
    return {"wall_s": wall, "cpu_s": cpu, "peak_mib": memory}


def main() -> None:
    """Write the output, and measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", nargs=3, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        peer(*given.peer)
        return
    with tempfile.TemporaryDirectory(prefix="htc-report-") as place:
        folder = Path(place)
        output = write_output(folder, given.images)
        (folder / "names.json").write_text(json.dumps(sampled(output)))
        page = folder / "report.html"
        ways = {
            "htc": [sys.executable, "-m", "jobs", "report", str(output), "--to", str(page)],
            "plain": [
                sys.executable,
                __file__,
                "--peer",
                str(output),
                str(folder / "names.json"),
                str(folder / "p.html"),
            ],
        }
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(given.rounds):
            rounds.append({name: measure(words) for name, words in ways.items()})
            print(f"round {number + 1}: {rounds[-1]}", flush=True)
        median = {
            name: {key: round(statistics.median(each[name][key] for each in rounds), 2) for key in rounds[0][name]}
            for name in ways
        }
        answer = {
            "benchmark": "page_report",
            "images": given.images,
            "instances": given.images * INSTANCES,
            "gallery": SAMPLE,
            "file_mib": round(page.stat().st_size / 2**20, 1),
            **median,
            "ratios": {key: round(median["htc"][key] / median["plain"][key], 2) for key in ("wall_s", "cpu_s")},
            "rounds": rounds,
        }
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
