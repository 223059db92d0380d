"""Measures the network on one GPU: the fixed-shape plans, with and without CUDA graphs, against the dynamic path.

    python benchmarks/gpu_model.py [--presets htc_r50_fpn,...] [--batches 1,8] [--rounds 5] [--score-threshold 0.001]
                                   [--engines dynamic,plan,graphs] [--precisions fp32,bf16] [--no-peer] [--out FILE]
    python benchmarks/gpu_model.py --device cpu --small      # every line of it, on tiny networks

Needs torch, torchvision, numpy and pydantic only (run it from a checkout, nothing installed). Weights are untrained and
the input is seeded noise of 1333 x 800 pixels, already on the device: what is timed is the network, from pixels to
boxes and 28 x 28 masks. Engines of one preset and batch size take turns, `--rounds` times, and the median counts;
torchvision's maskrcnn_resnet50_fpn (random weights, 1000 proposals, masks pasted) takes turns with mask_rcnn_r50_fpn.
TF32 is off. For each engine:

  images_per_s, peak_gib (its own call, weights included)
  peak_share      its arithmetic (torch's FlopCounterMode, with masks) by the measured bfloat16 GEMM peak
  syncs_per_image reads by the host: CUDA's sync warnings; on a CPU, operations that would be such reads, without
                  `tolist`, which a plan calls twice a batch
  matched         detections above a score of 0.3 that float32's dynamic path has as well, see
                  `htc_model.inference.precision`; of any score with --small. Untrained weights multiply bfloat16's
                  rounding; trained ones are compared by benchmarks/precision_gate.py.

Prints a line per measurement and, last, one JSON line. The exit status is 2 if there is no such device, and 1 if the
plans' float32 detections differ from the dynamic path's.
"""

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from htc_model.config import ModelConfig, ResizeConfig, load_preset
from htc_model.inference.fast_model import FastModel
from htc_model.inference.precision import MATCHED_SCORE, Matches, device_kind, forbid_tf32, match_detections
from htc_model.network.detector import HTC, build_model
from htc_model.preprocess import build_batch
from htc_model.structures import ImageBatch, RawDetections
from htc_model.weights.untrained import untrained_state

PRESETS = "htc_r50_fpn,htc_x101_64x4d_fpn_dcn,mask_rcnn_r50_fpn"
PEER, PEER_OF = "torchvision maskrcnn_resnet50_fpn", "mask_rcnn_r50_fpn"
# The fixed sizes and the dynamic ones round differently, so of the same detections a few may be on one side only.
LEAST_SAME = 0.9
# Operations whose result's shape or value the host reads.
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::bincount"}

Infer = Callable[[], list[RawDetections]]


@dataclass(frozen=True)
class Scale:
    """How large everything is: image sides in pixels, the matrices of the GEMM peak, and what `--small` changes."""

    height: int = 800
    width: int = 1333
    gemm: int = 8192
    is_small: bool = False

    def config(self, preset: str, score_threshold: float) -> ModelConfig:
        config = replace(load_preset(preset), score_threshold=score_threshold)
        if not self.is_small:
            return config
        return replace(
            config, resize=ResizeConfig(long_side=self.width, short_side=self.height), fpn_channels=16,
            box_fc_channels=32, mask_channels=16, rpn_candidates_per_level=50, rpn_proposals=20, max_detections=5,
        )  # fmt: skip


SMALL = Scale(height=64, width=96, gemm=256, is_small=True)


def noise_images(count: int, scale: Scale) -> list[np.ndarray]:
    """Generate smooth seeded noise with structure at every scale: [H, W, 3] uint8."""
    rng = np.random.default_rng(0)
    size = (scale.height, scale.width)
    images = []
    for _ in range(count):
        layers = [torch.from_numpy(rng.random((1, 3, 1 << k, 1 << k), dtype=np.float32)) for k in range(1, 8)]
        upsampled = [torch.nn.functional.interpolate(layer, size, mode="bilinear")[0] for layer in layers]
        images.append((torch.stack(upsampled).mean(0) * 255).byte().permute(1, 2, 0).contiguous().numpy())
    return images


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def gemm_peak(scale: Scale, device: torch.device, repeats: int = 20) -> float:
    """Measure FLOP/s of a square bfloat16 matrix product, the best of some."""
    a, b = (torch.randn(scale.gemm, scale.gemm, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = min(seconds_of(lambda: a @ b, device) for _ in range(repeats))
    return 2 * scale.gemm**3 / best


class CountReads(TorchDispatchMode):
    """Counts operations that a GPU's host would have to wait for; for CPUs, which have no sync warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        has_mask = name == "aten::index" and any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1]
        )
        self.count += name in READS or has_mask
        return func(*args, **(kwargs or {}))


def count_syncs(infer: Infer, device: torch.device) -> int:
    """Count the host's reads of the device during one call."""
    if device.type != "cuda":
        with CountReads() as counter:
            infer()
        return counter.count
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            infer()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def deform_flops(x: Any, weight: Any, offset: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Count a deformable convolution as an ordinary one: twice the multiplications."""
    batch, channels, height, width = out_shape
    return 2 * batch * channels * height * width * int(np.prod(weight[1:]))


def flops_of(infer: Infer) -> int:
    """Count the floating-point operations of one call's convolutions and matrix products."""
    mapping = {torch.ops.torchvision.deform_conv2d: deform_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        infer()
    return int(counter.get_total_flops())


def compare(reference: Sequence[RawDetections], found: Sequence[RawDetections], above: float) -> Matches:
    total = Matches()
    for one, other in zip(reference, found, strict=True):
        total += match_detections(
            (one.boxes_xyxy, one.scores, one.labels),
            (other.boxes_xyxy, other.scores, other.labels),
            above=above,
        )
    return total


def peak_gib(infer: Callable[[], object], device: torch.device) -> float | None:
    """Measure the most memory allocated during one call, with what was allocated before."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    infer()
    synchronize(device)
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)


def build_engines(
    model: HTC, names: Sequence[str], precisions: Sequence[str], batch: ImageBatch, device: torch.device
) -> Iterator[tuple[str, str, Infer, FastModel | None]]:
    """Build what is compared: name, precision, a call, and the fast model if it is one."""
    for precision in precisions:
        for name in names:
            if name == "dynamic":
                yield name, precision, lambda precision=precision: dynamic(model, precision, batch, device), None  # type: ignore[misc]
            else:
                fast = FastModel(model, device, precision=precision, is_static=True, has_graphs=name == "graphs")  # type: ignore[arg-type]
                yield name, precision, lambda fast=fast: fast.infer(batch), fast  # type: ignore[misc]


def dynamic(model: HTC, precision: str, batch: ImageBatch, device: torch.device) -> list[RawDetections]:
    context: AbstractContextManager[object] = nullcontext()
    if precision == "bf16":
        context = torch.autocast(device.type, torch.bfloat16)
    with context:
        return model.infer(batch)


def build_peer(count: int, scale: Scale, device: torch.device) -> Callable[[], object]:
    """Build torchvision's Mask R-CNN and its input."""
    sizes = {"min_size": scale.height, "max_size": scale.width}
    if scale.is_small:
        sizes |= {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
    peer = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=81, **sizes
    )
    peer = peer.eval().to(device)
    images = [
        torch.from_numpy(image).permute(2, 0, 1).float().div(255).to(device) for image in noise_images(count, scale)
    ]

    def detect() -> object:
        with torch.inference_mode():
            return peer(images)

    return detect


def measure(
    preset: str, count: int, scale: Scale, device: torch.device, *, peak: float, options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Measure all engines of one preset and batch size, taking turns."""
    model = build_model(scale.config(preset, options.score_threshold)).eval()
    model.load_state_dict(untrained_state(model.state_dict()))
    model.to(device)
    batch = build_batch(noise_images(count, scale), model.config, device)
    reference = model.infer(batch)
    flops = flops_of(lambda: model.infer(batch))
    engines = list(build_engines(model, options.engines, options.precisions, batch, device))
    calls: dict[tuple[str, str], Callable[[], object]] = {(name, how): infer for name, how, infer, _ in engines}
    if preset == PEER_OF and not options.no_peer:
        calls[PEER, "fp32"] = build_peer(count, scale, device)
    # Kernels are chosen and compiled in the first call, graphs are recorded in the third.
    for call in calls.values():
        for _ in range(1 if scale.is_small else 4):
            call()
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(options.rounds):
        for key, call in calls.items():
            seconds[key].append(seconds_of(call, device))
    for key, taken in seconds.items():
        rate = count / statistics.median(taken)
        row: dict[str, object] = {
            "preset": preset, "engine": key[0], "precision": key[1], "batch": count, "images_per_s": round(rate, 2),
            "seconds_min_max": [round(min(taken), 4), round(max(taken), 4)], "peak_gib": peak_gib(calls[key], device),
        }  # fmt: skip
        for name, how, infer, fast in engines:
            if (name, how) == key:
                matches = compare(reference, infer(), 0.0 if scale.is_small else MATCHED_SCORE)
                row |= {
                    "gflop_per_image": round(flops / count / 1e9, 1),
                    "peak_share": round(rate * flops / count / peak, 4),
                    "syncs_per_image": round(count_syncs(infer, device) / count, 2),
                    "detections_per_image": sum(len(raw.scores) for raw in reference) / count,
                    "matched": round(matches.share, 4), "compared": matches.reference,
                }  # fmt: skip
                if fast is not None:
                    row |= {"recorded": fast.graphs.recorded, "not_recorded": fast.graphs.failures}
        yield row


def differing(rows: Sequence[dict[str, object]]) -> list[str]:
    """Return which float32 engines do not give the dynamic path's detections."""
    return [
        f"{row['preset']} {row['engine']}"
        for row in rows
        if row["precision"] == "fp32" and row.get("compared") and float(str(row["matched"])) < LEAST_SAME
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--presets", type=names, default=names(PRESETS))
    parser.add_argument("--precisions", type=names, default=["fp32", "bf16"])
    parser.add_argument("--engines", type=names, default=["dynamic", "plan", "graphs"])
    parser.add_argument("--batches", type=names)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--score-threshold", type=float, default=0.001)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--small", action="store_true", help="tiny networks and images, to try the script")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; try --device cpu --small.", file=sys.stderr)
        return 2
    forbid_tf32()
    scale = SMALL if options.small else Scale()
    batches = [int(size) for size in options.batches or (["2"] if options.small else ["1", "8"])]
    options.rounds = options.rounds or (1 if options.small else 5)
    peak = gemm_peak(scale, device)
    print(f"bfloat16 GEMM: {peak / 1e12:.1f} TFLOP/s", flush=True)
    rows = []
    for preset in options.presets:
        for count in batches:
            for row in measure(preset, count, scale, device, peak=peak, options=options):
                rows.append(row)
                print(row, flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    different = differing(rows)
    report = {
        "benchmark": "gpu_model", "is_small": options.small, "height": scale.height, "width": scale.width,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "device_kind": device_kind(device), "bf16_gemm_tflops": round(peak / 1e12, 2), "tf32": False,
        "torch": torch.__version__, "cuda": torch.version.cuda, "torchvision": torchvision.__version__,
        "different": different, "rows": rows,
    }  # fmt: skip
    line = json.dumps(report)
    if options.out:
        options.out.write_text(line + "\n")
    print(line)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
