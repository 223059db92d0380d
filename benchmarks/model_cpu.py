"""Measures seconds per image on the CPU, part by part, and compares with torchvision's Mask R-CNN.

    python benchmarks/model_cpu.py [--preset htc_r50_fpn] [--image FILE] [--threads 1] [--repeats 3] [--no-peer]

Prints one JSON line. `parts_s` has the parts of one image's processing, from encoded bytes to encoded masks; each part
is the fastest of the repeats, after one run to warm up. `peer` compares complete calls with the same input:
torchvision's maskrcnn_resnet50_fpn (random weights, all thresholds off, 100 detections, masks pasted) and this
project's mask_rcnn_r50_fpn (deterministic weights, threshold off, 100 detections, masks encoded), on the resized image.
Weights are untrained, which changes the boxes but not the amount of work: the same 1000 proposals and 100 detections.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from htc_model.config import load_preset  # noqa: E402
from htc_model.masks.encode import encode_detections  # noqa: E402
from htc_model.network.box_ops import boxes_to_rois  # noqa: E402
from htc_model.network.detector import HTC, build_model  # noqa: E402
from htc_model.preprocess import build_batch  # noqa: E402
from htc_model.structures import ImageBatch  # noqa: E402
from htc_model.weights.untrained import untrained_state  # noqa: E402
from pipeline.inputs.decode import decode_image  # noqa: E402

T = TypeVar("T")


def fastest(repeats: int, call: Callable[[], T]) -> tuple[float, T]:
    """Return the fewest seconds of `repeats` calls after a warm-up, and the last result."""
    result, seconds = call(), []
    for _ in range(repeats):
        started = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def build_untrained(preset: str, **changes: Any) -> HTC:
    """Build a preset with the deterministic weights."""
    with torch.device("meta"):
        model = build_model(replace(load_preset(preset), **changes))
    model.load_state_dict(untrained_state(model.state_dict()), assign=True)
    return model.eval()


def measure_parts(model: HTC, payload: bytes, repeats: int) -> tuple[dict[str, float], int]:
    """Measure every part of one image's processing; returns seconds by part, and the number of detections."""
    parts: dict[str, float] = {}

    def timed(part: str, call: Callable[[], T]) -> T:
        parts[part], result = fastest(repeats, call)
        return result

    batch = timed("decode_preprocess", lambda: build_batch([decode_image(payload)], model.config))
    pixels = batch.pixels.contiguous(memory_format=torch.channels_last)  # as HTC.features does on a CPU
    features = timed("backbone", lambda: model.backbone(pixels))
    pyramid = timed("neck", lambda: model.neck(features))
    proposals = timed("rpn", lambda: model.propose(pyramid, batch))
    semantic_feat = timed("semantic", lambda: model.roi_head.semantic_forward(pyramid))
    rois = boxes_to_rois(proposals)
    timed("box_pooling_one_stage", lambda: model.roi_head.box_features(pyramid, semantic_feat, rois))
    detected = timed("box_stages", lambda: model.detect(pyramid, semantic_feat, proposals, batch))
    timed("mask_stages", lambda: model.segment(pyramid, semantic_feat, detected))
    seconds, (raw,) = fastest(repeats, lambda: model.infer(batch))
    timed("paste_rle", lambda: encode_detections(raw))
    parts["infer_whole"] = seconds
    parts["image_whole"] = parts["decode_preprocess"] + seconds + parts["paste_rle"]
    return parts, len(raw.scores)


def measure_peer(payload: bytes, repeats: int) -> dict[str, float]:
    """Measure this project's mask_rcnn_r50_fpn and torchvision's on one resized image, both to full masks."""
    ours = build_untrained("mask_rcnn_r50_fpn", score_threshold=0.0)
    batch = build_batch([decode_image(payload)], ours.config)
    height, width = batch.image_sizes[0]
    batch = ImageBatch(
        batch.pixels, batch.image_sizes, batch.image_sizes
    )  # masks of the resized size, like torchvision's
    ours_s, (found,) = fastest(repeats, lambda: ours(batch))
    peer = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=81, box_score_thresh=0.0, box_detections_per_img=100
    ).eval()
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    peer_s, (theirs,) = fastest(repeats, lambda: peer([image]))
    counts = {"ours_detections": len(found), "torchvision_detections": len(theirs["scores"])}
    return {"ours_mask_rcnn_r50_s": ours_s, "torchvision_mask_rcnn_r50_s": peer_s} | counts


def processor() -> str:
    """Return the processor's name from Linux, otherwise from Python."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


@torch.inference_mode()
def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="htc_r50_fpn")
    parser.add_argument("--image", type=Path, default=ROOT / "tests/data/images/p0_397133.jpg")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    payload = arguments.image.read_bytes()
    model = build_untrained(arguments.preset)
    parts, detections = measure_parts(model, payload, arguments.repeats)
    batch = build_batch([decode_image(payload)], model.config)
    result: dict[str, Any] = {
        "benchmark": "model_cpu",
        "preset": arguments.preset,
        "input": list(batch.pixels.shape),
        "detections": detections,
        "parts_s": {part: round(seconds, 3) for part, seconds in parts.items()},
    }
    if not arguments.no_peer:
        peer = measure_peer(payload, arguments.repeats)
        result["peer"] = {key: round(value, 3) for key, value in peer.items()}
    machine = {"cpu": processor(), "cores": os.cpu_count(), "threads": arguments.threads, "load": os.getloadavg()[0]}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    print(json.dumps(result | {"repeats": arguments.repeats, "machine": machine, "versions": versions}))


if __name__ == "__main__":
    main()
