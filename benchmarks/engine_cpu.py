"""Compares the throughput of `htc run` with Ray Data and with a plain loop, with the same network and images.

    python benchmarks/engine_cpu.py [--images 48] [--workers 2] [--model htc_lite0_fpn] [--repeats 3]

Each of the three converts encoded images (copies of the example photos) to COCO masks in Parquet:

htc run     workers as actors, manifest, retries, resume, two tables committed shard by shard.
ray data    `read_binary_files` -> `map_batches` (as many actors) -> `write_parquet`; no retries of failed images, no
            resume, no row for a failed image.
bare loop   one process: read, decode, infer, encode, one Parquet file at the end.

The start of Ray and the loading of models are excluded: each is run on N and on 2 N images, and the rate is N over the
difference of the two times. The three run in turn, `--repeats` times; medians are given. The last line is JSON.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHARD_IMAGES = 8
# 16 photos of six sizes: more copies make the rates steadier, not the images more varied.
PHOTOS = sorted((ROOT / "examples" / "photos").glob("*.jpg"))


class Segment:
    """The network for the other two: encoded images in, rows with masks out."""

    def __init__(self, preset: str) -> None:
        import torch

        from pipeline.job_spec.job import ModelSection
        from pipeline.worker.segmenter import load_model

        torch.set_num_threads(1)
        self.model = load_model(ModelSection(preset=preset, weights="untrained"))
        self.model.eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"path": [], "category": [], "score": [], "counts": []}
        for path, payload in zip(batch["path"], batch["bytes"], strict=True):
            for category, score, counts in self.segment(payload):
                for name, value in zip(rows, (path, category, score, counts), strict=True):
                    rows[name].append(value)
        return rows

    def segment(self, payload: bytes) -> list[tuple[str, float, bytes]]:
        from htc_model.masks.encode import encode_detections
        from htc_model.preprocess import build_batch
        from pipeline.inputs.decode import decode_image

        raw = self.model.infer(build_batch([decode_image(payload)], self.model.config))[0]
        found = encode_detections(raw)
        names = [self.model.config.classes[label] for label in found.labels.tolist()]
        counts = [mask["counts"] for mask in found.masks or []]
        return list(zip(names, found.scores.tolist(), counts, strict=True))


def run_htc(folder: Path, output: Path, model: str, workers: int) -> None:
    command = [
        sys.executable, "-m", "jobs", "run", str(folder), str(output), "--model", model, "--weights", "untrained",
        "--workers", str(workers), "--shard-images", str(SHARD_IMAGES), "--batch-size", "1",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def run_ray_data(folder: Path, output: Path, model: str, workers: int) -> None:
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import engine_cpu, pathlib; "
        f"engine_cpu.ray_data_job({str(folder)!r}, {str(output)!r}, {model!r}, {workers})"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT, env=environment)


def ray_data_job(folder: str, output: str, model: str, workers: int) -> None:
    import ray

    ray.init(address="local", num_cpus=workers + 1, include_dashboard=False, object_store_memory=500 * 2**20)
    files = sorted(str(path) for path in Path(folder).iterdir())
    blocks = -(-len(files) // SHARD_IMAGES)
    images = ray.data.read_binary_files(files, include_paths=True, override_num_blocks=blocks)
    rows = images.map_batches(
        Segment, fn_constructor_args=[model], batch_size=SHARD_IMAGES, num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )  # fmt: skip
    rows.write_parquet(output)
    ray.shutdown()


def run_bare_loop(folder: Path, output: Path, model: str, workers: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    segment = Segment(model)
    files = sorted(folder.iterdir())
    rows = segment({"path": [str(path) for path in files], "bytes": [path.read_bytes() for path in files]})
    output.mkdir(parents=True)
    pq.write_table(pa.table(rows), output / "instances.parquet")


RUNNERS = {"htc run": run_htc, "ray data": run_ray_data, "bare loop": run_bare_loop}


def timed_s(name: str, images: int, model: str, workers: int) -> float:
    with tempfile.TemporaryDirectory() as temporary:
        folder, output = Path(temporary, "photos"), Path(temporary, "out")
        folder.mkdir()
        for index in range(images):
            shutil.copy(PHOTOS[index % len(PHOTOS)], folder / f"{index:05d}.jpg")
        started = time.perf_counter()
        RUNNERS[name](folder, output, model, workers)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="htc_lite0_fpn")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in RUNNERS}
    for _ in range(options.repeats):
        for name in RUNNERS:
            few, many = (timed_s(name, n, options.model, options.workers) for n in (options.images, 2 * options.images))
            rates[name].append(options.images / (many - few))
            print(
                f"{name:10} {rates[name][-1]:.2f} images/s ({few:.1f} s for {options.images}, {many:.1f} s)", flush=True
            )
    medians = {name: statistics.median(each) for name, each in rates.items()}
    import ray
    import torch

    print(json.dumps({
        "benchmark": "engine_cpu", "model": options.model, "images": options.images, "workers": options.workers,
        "images_per_s": {name: round(rate, 3) for name, rate in medians.items()},
        "htc_over_ray_data": round(medians["htc run"] / medians["ray data"], 3),
        "htc_per_worker_over_bare_loop": round(medians["htc run"] / options.workers / medians["bare loop"], 3),
        "cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__, "ray": ray.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
