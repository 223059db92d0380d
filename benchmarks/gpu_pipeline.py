"""Measures a worker's way from encoded files to a table on one device, against the network alone: images/s.

Usage: python benchmarks/gpu_pipeline.py [--preset htc_r50_fpn] [--images 2048] [--batch 8] [--device cuda]
           [--score-threshold 0.05] [--precision fp32] [--mask-processes 0] [--cpus 16] [--out FOLDER]
       python benchmarks/gpu_pipeline.py --device cpu --small        # every line of it, in under two minutes

Needs torch, torchvision (and Pillow) and numpy; the table is Parquet where pyarrow is installed, else .npz, and the
last line says which. Files are JPEGs of COCO's sizes (photo_sizes.py) made from seeded noise; weights are untrained.

End to end: files are read and decoded by `--cpus` threads, two shards at once share the worker's own `ModelQueue`
(batches of their padded shapes), on CUDA through its upload lane; masks are encoded by its `BatchEncoder`, rows are
built and written shard by shard. So batch fill, decoding and the rivalry for the interpreter's lock are in the number.
Network alone: the same model on batches of the same shapes and fill that lie on the device already, with nothing else
running. `ratio` is the first by the second. On CUDA the fast path is checked first, as at a worker's start; without it
the network itself runs. The last line is JSON.
"""

import argparse
import json
import platform
import queue
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.photo_sizes import draw_sizes
from htc_model.config import ModelConfig, load_preset
from htc_model.inference.precision import PrecisionChoice, forbid_tf32
from htc_model.masks.rle import rle_area
from htc_model.network.detector import HTC, build_model
from htc_model.preprocess import build_batch, padded_size
from htc_model.structures import Detections, ImageBatch
from htc_model.weights.untrained import untrained_state
from pipeline.concurrency import Prefetch
from pipeline.inputs.formats.jpeg import read_frame
from pipeline.inputs.formats.jpeg_decoders import TurboJpeg, decode_with_imagecodecs, decode_with_torchvision
from pipeline.messages import ImageFailure
from pipeline.output.rows import InstanceRow
from pipeline.worker.batch_encoding import BatchEncoder
from pipeline.worker.fast_path import choose_fast_model
from pipeline.worker.model_queue import DirectRunner, ModelQueue
from pipeline.worker.segmenter import DecodedImage, Segmenter
from pipeline.worker.upload_lane import CudaLane, UploadLane
from pipeline.worker.watchdog import Watchdog

AHEAD_IMAGES = 64
# Bytes of decoded images that wait for their batch, as in a worker.
MAX_BYTES = 192 * 2**20
KEPT_BATCHES = 16


def write_files(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[Path]:
    """Write one JPEG for each different size, quality 90; return the path of each image."""
    rng = np.random.default_rng(0)
    paths: dict[tuple[int, int], Path] = {}
    for height, width in dict.fromkeys(sizes):
        coarse = rng.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = (soft + rng.integers(-12, 12, soft.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{height}x{width}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        paths[height, width] = path
    return [paths[size] for size in sizes]


def best_decoder() -> TurboJpeg:
    try:
        return TurboJpeg(decode_with_imagecodecs)
    except ImportError:
        return TurboJpeg(decode_with_torchvision)


def decode(path: Path, decoder: TurboJpeg) -> np.ndarray:
    payload = path.read_bytes()
    frame = read_frame(payload)
    pixels = decoder.decode(payload, frame) if frame is not None else None
    if pixels is None:
        with Image.open(BytesIO(payload)) as image:
            pixels = np.array(image.convert("RGB"))
    return pixels


def rows_of(path: Path, found: Detections, config: ModelConfig) -> list[InstanceRow]:
    """Build the rows of one image, as `pipeline.output.rows` does, without pycocotools."""
    masks = found.masks or []
    values = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [
        InstanceRow(
            image_id=0, uri=str(path), instance=number, category_id=config.category_ids[label],
            category=config.classes[label], score=score,
            bbox={"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0},
            area=rle_area(masks[number]) if masks else None,
            mask={"size": masks[number]["size"], "counts": masks[number]["counts"].decode("ascii")} if masks else None,
            model=config.name,
        )
        for number, ((x0, y0, x1, y1), score, label) in enumerate(values)
    ]  # fmt: skip


def write_table(folder: Path, index: int, rows: Sequence[InstanceRow]) -> str:
    """Write a shard's rows; return the format."""
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(InstanceRow)}
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        counts = [(mask or {}).get("counts", "") for mask in columns.pop("mask")]
        boxes = np.array([list(box.values()) for box in columns.pop("bbox")], np.float32)
        arrays = {name: np.array(values) for name, values in columns.items() if name != "area"}
        np.savez(folder / f"part-{index}.npz", bbox=boxes, counts=np.array(counts), **arrays)
        return "npz (pyarrow is not installed)"
    pq.write_table(pa.table(columns), folder / f"part-{index}.parquet", compression="zstd")
    return "parquet"


class Fills:
    """Counts the batches by padded shape and size, and keeps some for the network alone."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._inner = segmenter
        self.counts: Counter[tuple[tuple[int, int], int]] = Counter()
        self.batch_size = segmenter.batch_size

    def padded_shape(self, image: DecodedImage) -> tuple[int, int]:
        return self._inner.padded_shape(image)

    def segment(self, images: Sequence[DecodedImage], **options: Any) -> Any:
        self.counts[self.padded_shape(images[0]), len(images)] += 1
        return self._inner.segment(images, **options)


class Shard:
    """One shard on its way: source and owner of its images in the model's queue."""

    def __init__(self, index: int, paths: Sequence[Path], segmenter: Segmenter, encoders: ThreadPoolExecutor) -> None:
        self.index = index
        self.paths = paths
        self.rows: dict[int, Future[list[InstanceRow]]] = {}
        self.failed = 0
        self._segmenter = segmenter
        self._encoders = encoders
        self._loaded: Prefetch[int, DecodedImage]
        self._results: Any = None

    def read(self, loaded: Prefetch[int, DecodedImage]) -> None:
        self._loaded, self._results = loaded, iter(loaded)

    def check(self) -> None: ...
    def take_seconds(self, seconds: float) -> None: ...
    def give_back(self, positions: list[int]) -> None: ...

    def take_result(self, position: int, outcome: Any) -> None:
        if isinstance(outcome, ImageFailure):
            self.failed += 1
            print(outcome.reason, outcome.traceback or "", file=sys.stderr)
            return
        config = self._segmenter.model.config
        self.rows[position] = self._encoders.submit(
            lambda: rows_of(self.paths[position], self._segmenter.encode(outcome), config)
        )

    @property
    def awaits(self) -> Literal["read", "decode"]:
        return "read"

    def wait_ready(self, timeout_s: float | None) -> bool:
        return self._loaded.wait_ready(timeout_s)

    def next(self) -> DecodedImage | None:
        return next(self._results, None)


def run_shards(
    shards: Sequence[Shard], model: ModelQueue, decoder: TurboJpeg, cpus: int, folder: Path
) -> tuple[int, str, float]:
    """Take all shards through, two at once; return instances, the tables' format, seconds to the first one."""
    waiting: queue.SimpleQueue[Shard] = queue.SimpleQueue()
    for shard in shards:
        waiting.put(shard)
    decoders = ThreadPoolExecutor(cpus, thread_name_prefix="decode")
    written: list[tuple[int, str, float]] = []
    start = time.perf_counter()

    def work() -> None:
        while True:
            try:
                shard = waiting.get_nowait()
            except queue.Empty:
                return
            feed = model.open(shard)

            def load(position: int, shard: Shard = shard) -> DecodedImage:
                return DecodedImage(position, "", decode(shard.paths[position], decoder), shard.index)

            try:
                with Prefetch(decoders, range(len(shard.paths)), load, ahead=AHEAD_IMAGES) as loaded:
                    shard.read(loaded)
                    model.run(feed, shard)
                rows = [row for position in sorted(shard.rows) for row in shard.rows[position].result()]
                kind = write_table(folder, shard.index, rows)
            finally:
                model.close(feed)
            written.append((len(rows), kind, time.perf_counter() - start))

    with ThreadPoolExecutor(2, thread_name_prefix="shard") as pool:
        for future in [pool.submit(work) for _ in range(2)]:
            future.result()
    decoders.shutdown()
    return sum(count for count, _, _ in written), written[0][1], written[0][2]


def network_alone(
    segmenter: Segmenter, counts: Counter[tuple[tuple[int, int], int]], images: dict[tuple[int, int], np.ndarray]
) -> float:
    """Compute the images/s of the network on the batches that come most often, weighted as they came."""
    device, model = segmenter.device, segmenter.fast.model or segmenter.model
    is_autocast = segmenter.fast.model is None and segmenter.precision.precision == "bf16"
    seconds = done = 0.0
    for (shape, size), often in counts.most_common(KEPT_BATCHES):
        batch = build_batch([images[shape]] * size, model.config, device)
        # The first runs choose kernels and record graphs.
        for _ in range(3 if device.type == "cuda" else 1):
            infer(model, batch, is_autocast=is_autocast)
        synchronize(device)
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            infer(model, batch, is_autocast=is_autocast)
            synchronize(device)
            took = time.perf_counter() - start
            best = min(best, took)
        seconds += best * often
        done += size * often
    return done / seconds


def infer(model: Any, batch: ImageBatch, *, is_autocast: bool) -> None:
    context = torch.autocast(batch.pixels.device.type, torch.bfloat16) if is_autocast else nullcontext()
    with torch.inference_mode(), context:
        model.infer(batch)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build(options: argparse.Namespace, device: torch.device) -> HTC:
    config = replace(load_preset(options.preset), score_threshold=options.score_threshold)
    if options.small:
        sides = replace(config.resize, short_side=96, long_side=160)
        config = replace(config, resize=sides, rpn_proposals=50, max_detections=10)
    model = build_model(config).eval()
    model.load_state_dict(untrained_state(model.state_dict()))
    return model.to(device)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="htc_r50_fpn")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--shard", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--score-threshold", type=float, default=0.05)
    parser.add_argument("--mask-processes", type=int, default=0)
    parser.add_argument("--cpus", type=int, default=16)
    parser.add_argument("--small", action="store_true", help="a few small images, for a CPU")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.small:
        options.images, options.shard = 24, 8
        options.batch, options.cpus = min(options.batch, 4), min(options.cpus, 2)
    return options


def main() -> int:
    options = parse()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; try --device cpu --small.", file=sys.stderr)
        return 2
    forbid_tf32()
    model = build(options, device)
    fast = choose_fast_model(model, device, options.precision)
    encoder = BatchEncoder(device, processes=options.mask_processes)
    segmenter = Segmenter(
        model, device, precision=PrecisionChoice(options.precision, "asked for"), batch_size=options.batch,
        fast=fast, encoder=encoder,
    )  # fmt: skip
    runner = UploadLane(CudaLane(device)) if device.type == "cuda" else DirectRunner()
    encoders = ThreadPoolExecutor(2, thread_name_prefix="rows")
    decoder = best_decoder()
    sizes = draw_sizes(options.images)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        paths = write_files(Path(temporary), sizes)
        # The first pass loads kernels and records graphs; the second is the result.
        for count in (max(options.shard, options.images // 4), options.images):
            fills = Fills(segmenter)
            work = ModelQueue(fills, Watchdog(None), max_bytes=MAX_BYTES, runner=runner)  # type: ignore[arg-type]
            shards = [
                Shard(number, paths[start : min(count, start + options.shard)], segmenter, encoders)
                for number, start in enumerate(range(0, count, options.shard))
            ]
            start = time.perf_counter(), time.process_time()
            instances, kind, first_s = run_shards(shards, work, decoder, options.cpus, folder)
            synchronize(device)
            took, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
            results.append((count, took, cpu, instances, kind, first_s, sum(shard.failed for shard in shards)))
        by_shape = {
            padded_size(*size, model.config.resize): decode(path, decoder)
            for size, path in dict(zip(sizes, paths, strict=True)).items()
        }
    alone = network_alone(segmenter, fills.counts, by_shape)
    encoder.close()
    count, took, cpu, instances, kind, first_s, failed = results[-1]
    batches = sum(fills.counts.values())
    report = {
        "benchmark": "gpu_pipeline", "preset": options.preset, "precision": options.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__, "torchvision": torchvision.__version__,
        "is_small": options.small, "images": count, "failed": failed, "instances": instances, "table": kind,
        "fast_path": fast.note or "none on this device", "batch": options.batch,
        "mean_batch": round(count / batches, 2), "padded_shapes": len({shape for shape, _ in fills.counts}),
        "images_per_s": round(count / took, 2), "network_images_per_s": round(alone, 2),
        "ratio": round(count / took / alone, 3), "cpu_s_per_image": round(cpu / count, 4),
        "first_table_s": round(first_s, 2), "mask_processes": options.mask_processes, "cpus": options.cpus,
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None,
    }  # fmt: skip
    for key, value in report.items():
        print(f"{key:22} {value}")
    print(json.dumps(report))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
