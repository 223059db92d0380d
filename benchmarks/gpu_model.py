"""Measures the network on one GPU: images/s, peak memory, and agreement with the CPU, per preset, precision and batch.

Usage: python benchmarks/gpu_model.py [--presets htc_r50_fpn,...] [--precisions fp32,bf16] [--batches 1,4,8]
                                      [--repeats 10] [--device cuda] [--out FILE]

Needs torch, torchvision and numpy only (run it from the repository's root, nothing installed). Weights are untrained;
the input is seeded noise of 640 x 427 pixels, a usual size in COCO. Times include resizing on the device, the network,
pasting and RLE; each is the median of the repeats, with the device synchronised. The same run measures torchvision's
maskrcnn_resnet50_fpn (random weights, 1000 proposals, boxes and masks pasted at the original size, no RLE), to compare
with mask_rcnn_r50_fpn. Prints a table and, last, one JSON line. The exit status is 2 if there is no such device.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from htc_model.config import load_preset
from htc_model.network.detector import HTC, build_model
from htc_model.preprocess import build_batch
from htc_model.structures import Detections
from htc_model.weights.untrained import untrained_state

HEIGHT, WIDTH = 427, 640
IOU_MATCHED, SCORE_MATCHED = 0.95, 1e-3  # what counts as the same detection, as in the parity tests


def noise_images(count: int) -> list[np.ndarray]:
    """Generate smooth seeded noise with structure at every scale: [427, 640, 3] uint8."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        layers = [rng.random((3, 1 << k, 1 << k), dtype=np.float32) for k in range(1, 8)]
        upsampled = [
            torch.nn.functional.interpolate(torch.from_numpy(layer)[None], (HEIGHT, WIDTH), mode="bilinear")[0]
            for layer in layers
        ]
        images.append((torch.stack(upsampled).mean(0) * 255).byte().permute(1, 2, 0).contiguous().numpy())
    return images


def untrained_model(preset: str, device: torch.device) -> HTC:
    model = build_model(replace(load_preset(preset), score_threshold=0.05)).eval()
    model.load_state_dict(untrained_state(model.state_dict()))
    return model.to(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_s(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Measure the median seconds of `call` after two warm-ups."""
    seconds = []
    for index in range(repeats + 2):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        if index >= 2:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def matched_share(ours: Detections, reference: Detections) -> float:
    """Compute the share of the reference's detections that `ours` has: same label, IoU > 0.95, score within 1e-3."""
    if not len(reference):
        return 1.0 if not len(ours) else 0.0
    if not len(ours):
        return 0.0
    iou = torchvision.ops.box_iou(reference.boxes_xyxy, ours.boxes_xyxy)
    is_same = (
        (iou > IOU_MATCHED)
        & (reference.labels[:, None] == ours.labels[None])
        & ((reference.scores[:, None] - ours.scores[None]).abs() < SCORE_MATCHED)
    )
    return float(is_same.any(dim=1).float().mean())


def measure(preset: str, precision: str, batch_size: int, device: torch.device, repeats: int) -> dict[str, object]:
    model = untrained_model(preset, device)
    images = noise_images(batch_size)
    is_bf16 = precision == "bf16"

    def detect() -> list[Detections]:
        with torch.autocast(device.type, torch.bfloat16) if is_bf16 else nullcontext():
            return model(build_batch(images, model.config, device))

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = median_s(detect, device, repeats)
    row: dict[str, object] = {
        "preset": preset, "precision": precision, "batch": batch_size,
        "images_per_s": round(batch_size / seconds, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None,
    }  # fmt: skip
    if batch_size == 1 and device.type == "cuda":
        on_cpu = untrained_model(preset, torch.device("cpu"))
        reference = on_cpu(build_batch(images[:1], on_cpu.config, "cpu"))[0]
        row["matched_with_cpu_fp32"] = round(matched_share(detect()[0], reference), 3)
    return row


def measure_peer(batch_size: int, device: torch.device, repeats: int) -> dict[str, object]:
    peer = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=81, min_size=800, max_size=1333
    )
    peer = peer.eval().to(device)
    images = [torch.from_numpy(i).permute(2, 0, 1).float().div(255).to(device) for i in noise_images(batch_size)]

    def detect() -> object:
        with torch.inference_mode():
            return peer(images)

    seconds = median_s(detect, device, repeats)
    return {
        "preset": "torchvision maskrcnn_resnet50_fpn", "precision": "fp32", "batch": batch_size,
        "images_per_s": round(batch_size / seconds, 2),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--presets", default="mask_rcnn_r50_fpn,cascade_mask_rcnn_r50_fpn,htc_r50_fpn,htc_x101_64x4d_fpn_dcn"
    )
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batches", default="1,4,8")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; try --device cpu with one small preset.", file=sys.stderr)
        return 2
    batches = [int(size) for size in options.batches.split(",")]
    rows = [
        measure(preset, precision, batch, device, options.repeats)
        for preset in options.presets.split(",")
        for precision in options.precisions.split(",")
        for batch in batches
    ]
    rows += [measure_peer(batch, device, options.repeats) for batch in batches]
    for row in rows:
        print(row, flush=True)
    report = {
        "benchmark": "gpu_model",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__, "torchvision": torchvision.__version__, "rows": rows,
    }  # fmt: skip
    line = json.dumps(report)
    if options.out:
        options.out.write_text(line + "\n")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
