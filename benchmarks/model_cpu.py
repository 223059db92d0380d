"""Measures CPU seconds per image, part by part, and compares with MMDetection or torchvision's Mask R-CNN.

    python benchmarks/model_cpu.py [--preset htc_r50_fpn] [--image FILE] [--threads 1] [--repeats 5] [--parts]
        [--peer mmdet|torchvision|none] [--peer-python FILE]

Prints one JSON line. Every number is the fewest CPU seconds (of the whole process) of the repeats, after one run to
warm up; what is compared takes turns, so that other work on the machine meets all alike. Weights are untrained, which
changes the boxes but not the amount of work: the same 1000 proposals and 100 detections.

`image_s`: from encoded bytes to encoded masks, with the network as it is ("network") and as workers run it on a CPU
("for_cpu"; docs/numerics.md).

`parts_s` (--parts): the same by part.

`peer`, mmdet: MMDetection's `predict` (to pasted masks) in a process of its own, with the same weights and pixels,
beside this project's network and encoding; `ratio` is for_cpu / MMDetection, and `matched` counts detections of the
same label with IoU > 0.95 and scores within 1e-3. It needs an interpreter with MMDetection 3.3 (--peer-python).

`peer`, torchvision: maskrcnn_resnet50_fpn (random weights, all thresholds off, 100 detections, masks pasted) and this
project's mask_rcnn_r50_fpn (deterministic weights, threshold off, 100 detections, masks encoded), on the resized image.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torchvision.ops import box_iou

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from htc_model.config import load_preset  # noqa: E402
from htc_model.inference.cpu_network import optimise_for_cpu  # noqa: E402
from htc_model.masks.encode import encode_detections  # noqa: E402
from htc_model.network.box_ops import boxes_to_rois  # noqa: E402
from htc_model.network.detector import HTC, build_model  # noqa: E402
from htc_model.preprocess import build_batch  # noqa: E402
from htc_model.structures import Detections, ImageBatch, RawDetections  # noqa: E402
from htc_model.weights.untrained import untrained_state  # noqa: E402
from pipeline.inputs.decode import decode_image  # noqa: E402
from pipeline.worker.memory import keep_freed_memory  # noqa: E402

Prepare = Callable[[HTC], HTC]
# The network as it is, and as workers run it on a CPU.
WAYS: dict[str, Prepare] = {"network": lambda model: model, "for_cpu": optimise_for_cpu}
LEAST_ROUNDS = 5
MATCHED_IOU, MATCHED_SCORE = 0.95, 1e-3


def fewest_seconds(rounds: int, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return each call's fewest CPU seconds in `rounds` rounds in which they take turns, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if index:
                seconds[name].append(time.process_time() - started)
    return {name: min(each) for name, each in seconds.items()}


def build_untrained(preset: str, **changes: Any) -> HTC:
    """Build a preset with the deterministic weights."""
    with torch.device("meta"):
        model = build_model(replace(load_preset(preset), **changes))
    model.load_state_dict(untrained_state(model.state_dict()), assign=True)
    return model.eval()


def measure_whole(models: dict[str, HTC], payload: bytes, rounds: int) -> tuple[dict[str, float], int]:
    """Measure one image from encoded bytes to encoded masks, by way; also the number of detections."""
    found: dict[str, Detections] = {}

    def run(way: str, model: HTC) -> None:
        (found[way],) = model(build_batch([decode_image(payload)], model.config))

    calls: dict[str, Callable[[], object]] = {way: partial(run, way, model) for way, model in models.items()}
    seconds = fewest_seconds(rounds, calls)
    return seconds, len(found["for_cpu"])


def measure_parts(models: dict[str, HTC], payload: bytes, rounds: int) -> dict[str, dict[str, float]]:
    """Measure every part of one image's processing; returns seconds by part and way."""
    config = models["network"].config
    batch = build_batch([decode_image(payload)], config)
    steps = {way: steps_of(model, payload, batch) for way, model in models.items()}
    return {
        part: fewest_seconds(rounds, {way: calls[part] for way, calls in steps.items()}) for part in steps["network"]
    }


def steps_of(model: HTC, payload: bytes, batch: ImageBatch) -> dict[str, Callable[[], object]]:
    """Return calls of the parts of one image's processing, with the results of the parts before them."""
    pixels = batch.pixels.contiguous(memory_format=torch.channels_last)  # as HTC.features does on a CPU
    features = model.backbone(pixels)
    pyramid = model.neck(features)
    proposals = model.propose(pyramid, batch)
    semantic_feat = model.roi_head.semantic_forward(pyramid)
    rois = boxes_to_rois(proposals)
    detected = model.detect(pyramid, semantic_feat, proposals, batch)
    (raw,) = model.infer(batch)
    return {
        "decode_preprocess": lambda: build_batch([decode_image(payload)], model.config),
        "backbone": lambda: model.backbone(pixels),
        "neck": lambda: model.neck(features),
        "rpn": lambda: model.propose(pyramid, batch),
        "semantic": lambda: model.roi_head.semantic_forward(pyramid),
        "box_pooling_one_stage": lambda: model.roi_head.box_features(pyramid, semantic_feat, rois),
        "box_stages": lambda: model.detect(pyramid, semantic_feat, proposals, batch),
        "mask_stages": lambda: model.segment(pyramid, semantic_feat, detected),
        "paste_rle": lambda: encode_detections(raw),
    }


def measure_torchvision(payload: bytes, rounds: int) -> dict[str, float]:
    """Measure this project's mask_rcnn_r50_fpn and torchvision's on one resized image, both to full masks."""
    ours = optimise_for_cpu(build_untrained("mask_rcnn_r50_fpn", score_threshold=0.0))
    batch = build_batch([decode_image(payload)], ours.config)
    height, width = batch.image_sizes[0]
    # Masks of the resized size, like torchvision's.
    batch = ImageBatch(batch.pixels, batch.image_sizes, batch.image_sizes)
    peer = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=81, box_score_thresh=0.0, box_detections_per_img=100
    ).eval()
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    seconds = fewest_seconds(rounds, {"ours": lambda: ours(batch), "torchvision": lambda: peer([image])})
    (found,), (theirs,) = ours(batch), peer([image])
    counts = {"ours_detections": len(found), "torchvision_detections": len(theirs["scores"])}
    return {"ours_mask_rcnn_r50_s": seconds["ours"], "torchvision_mask_rcnn_r50_s": seconds["torchvision"]} | counts


def measure_mmdet(models: dict[str, HTC], preset: str, payload: bytes, rounds: int, python: str) -> dict[str, Any]:
    """Measure MMDetection in a process of its own, and this project's network between its runs."""
    model = models["network"]
    batch = build_batch([decode_image(payload)], model.config)
    case = {
        "preset": preset,
        "state": model.state_dict(),
        "pixels": batch.pixels,
        "image_size": batch.image_sizes[0],
        "original_size": batch.original_sizes[0],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pt"
        torch.save(case, path)
        program = [python, str(ROOT / "benchmarks" / "mmdet_peer.py"), str(path)]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
            versions = _answer(peer)
            if versions is None:
                return {"error": f"{python} has no MMDetection 3.3 that runs. {HOW_TO_INSTALL}"}
            answers: list[dict[str, Any]] = []

            def ask() -> None:
                print("go", file=peer.stdin, flush=True)
                answers.append(_answer(peer) or {})

            calls: dict[str, Callable[[], object]] = {"mmdet": ask}
            calls |= {way: partial(model, batch) for way, model in models.items()}
            seconds = fewest_seconds(max(rounds, LEAST_ROUNDS), calls)
            peer.stdin.close()  # type: ignore[union-attr]
    # The peer's own clock: this process only waited.
    seconds["mmdet"] = min(answer["cpu_s"] for answer in answers[1:])
    matched = {way: count_matched(model.infer(batch)[0], answers[-1]) for way, model in models.items()}
    return {
        "seconds": {name: round(each, 3) for name, each in seconds.items()},
        "ratio": round(seconds["for_cpu"] / seconds["mmdet"], 3),
        "ratio_network": round(seconds["network"] / seconds["mmdet"], 3),
        "detections": len(answers[-1]["scores"]),
        "matched": matched,
        "versions": versions,
    }


HOW_TO_INSTALL = (
    "Install it into a virtual environment of its own (pip install mmdet==3.3.0 mmengine mmcv==2.1.0, or"
    " mmcv-lite==2.1.0 with torchvision's operators) and name its interpreter by --peer-python."
)


def _answer(peer: "subprocess.Popen[str]") -> dict[str, Any] | None:
    """Read one line of JSON; None when the peer has ended. Notices that its libraries print are skipped."""
    for line in peer.stdout or ():
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    return None


def count_matched(raw: RawDetections, theirs: dict[str, Any]) -> int:
    """Count this project's detections that MMDetection has too: same label, box and score within the tolerances."""
    if not len(raw.scores) or not theirs["scores"]:
        return 0
    is_same = box_iou(raw.boxes_xyxy, torch.tensor(theirs["boxes"])) > MATCHED_IOU
    is_same &= raw.labels[:, None] == torch.tensor(theirs["labels"])
    is_same &= (raw.scores[:, None] - torch.tensor(theirs["scores"])).abs() < MATCHED_SCORE
    return int(is_same.any(dim=1).sum())


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
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", action="store_true", help="also measure part by part")
    parser.add_argument("--peer", choices=["mmdet", "torchvision", "none"], default="torchvision")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has MMDetection 3.3")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keeps_memory = keep_freed_memory()  # as workers do on a CPU
    payload = arguments.image.read_bytes()
    model = build_untrained(arguments.preset)
    models = {way: prepare(model) for way, prepare in WAYS.items()}
    seconds, detections = measure_whole(models, payload, arguments.repeats)
    result: dict[str, Any] = {
        "benchmark": "model_cpu",
        "preset": arguments.preset,
        "input": list(build_batch([decode_image(payload)], model.config).pixels.shape),
        "detections": detections,
        "image_s": _rounded(seconds),
    }
    if arguments.parts:
        parts = measure_parts(models, payload, arguments.repeats)
        result["parts_s"] = {part: _rounded(each) for part, each in parts.items()}
    if arguments.peer == "torchvision":
        result["peer"] = _rounded(measure_torchvision(payload, arguments.repeats))
    elif arguments.peer == "mmdet":
        result["peer"] = measure_mmdet(models, arguments.preset, payload, arguments.repeats, arguments.peer_python)
    machine = {"cpu": processor(), "cores": os.cpu_count(), "threads": arguments.threads, "load": os.getloadavg()[0]}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    result |= {"repeats": arguments.repeats, "keeps_memory": keeps_memory, "machine": machine, "versions": versions}
    print(json.dumps(result))


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(each, 3) for name, each in seconds.items()}


if __name__ == "__main__":
    main()
