"""Measures the memory of one worker on large images: two shards at once, as in `htc run`, without Ray.

    python benchmarks/worker_memory.py [--megapixels 12 24] [--images 32] [--cpus 1] [--model htc_lite0_fpn]

For each size a separate process loads the model, processes two shards of `--images` synthetic JPEGs at once (copies of
one noisy image) and prints its peak resident memory, as the system counts it (getrusage), and its memory before the
first image. Compare the same worker before and after a change. The last line is JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MIB = 2**20


def write_images(folder: Path, megapixels: float, count: int) -> list[Path]:
    """Write `count` copies of one 4:3 JPEG with some detail everywhere."""
    import numpy as np
    from PIL import Image

    height = int((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = height * 4 // 3
    coarse = np.random.default_rng(0).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    folder.mkdir(parents=True)
    first = folder / "image-000.jpg"
    Image.fromarray(coarse).resize((width, height)).save(first, quality=90)
    paths = [first]
    for number in range(1, count):
        path = folder / f"image-{number:03d}.jpg"
        path.write_bytes(first.read_bytes())
        paths.append(path)
    return paths


def peak_mib() -> float:
    """Return the peak resident memory of this process."""
    import resource

    # getrusage(2): kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def work(folder: Path, images: int, model: str, cpus: float) -> None:
    """Run as the worker process: load the model, process two shards at once, print the memory."""
    from pipeline.driver.run_job import worker_settings
    from pipeline.inputs.image_ref import ImageRef
    from pipeline.inputs.shard import Shard
    from pipeline.job_spec.job import load_spec
    from pipeline.messages import Assignment
    from pipeline.worker.memory import resident_bytes
    from pipeline.worker.worker import Worker

    values = {"input.uri": str(folder / "in"), "output.uri": str(folder / "out"), "model.preset": model}
    spec = load_spec(None, values)
    worker = Worker(replace(worker_settings(spec, "bench"), cpus=cpus))
    worker.start()
    paths = sorted((folder / "in").glob("*.jpg"))
    shards = [
        Shard(index, tuple(ImageRef(str(path), path.stat().st_size) for path in paths[index::2])) for index in range(2)
    ]
    before, start, reports = resident_bytes() / MIB, time.perf_counter(), []
    threads = [
        threading.Thread(
            target=lambda shard=shard: reports.append(worker.run_shard(shard, Assignment(shard.index, 1, True)))
        )
        for shard in shards
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            # A worker whose driver does not ask for its progress commits nothing.
            worker.progress()
            thread.join(1.0)
    seconds = time.perf_counter() - start
    statuses = [report.statuses for report in reports]
    if statuses != [{"ok": images}] * 2:
        raise SystemExit(f"not all images were done: {statuses}")
    print(
        json.dumps(
            {
                "before_mib": round(before),
                "peak_mib": round(peak_mib()),
                "images": 2 * images,
                "images_per_s": round(2 * images / seconds, 2),
            }
        )
    )


def measure(megapixels: float, images: int, model: str, cpus: float) -> dict[str, Any]:
    """Run a worker process on a folder of images, and read what it prints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "in", megapixels, 2 * images)
        command = [sys.executable, __file__, "--work", name, "--images", str(images), "--model", model]
        answer = subprocess.run([*command, "--cpus", str(cpus)], check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    print(f"{megapixels:g} megapixels: {result['before_mib']} MiB before, {result['peak_mib']} MiB at the peak")
    return {"megapixels": megapixels, **result}


def main() -> None:
    """Measure each size; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[12, 24])
    parser.add_argument("--images", type=int, default=32, help="per shard, of which two are processed at once")
    parser.add_argument("--cpus", type=float, default=1.0)
    parser.add_argument("--model", default="htc_lite0_fpn")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work, arguments.images, arguments.model, arguments.cpus)
        return
    results = [
        measure(megapixels, arguments.images, arguments.model, arguments.cpus) for megapixels in arguments.megapixels
    ]
    print(json.dumps({"benchmark": "worker_memory", "results": results, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
