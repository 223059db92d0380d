"""Measures one training step on a CPU, part by part, in CPU seconds per image; prints one JSON line.

    python benchmarks/training_cpu.py [--short-side 256] [--long-side 352] [--batch 4] [--rois 64] [--frozen 1]

The images are noise with three boxes each: the cost depends on sizes and counts, hardly on content. It is compared with
the same step with torchvision's RoIAlign instead of row sums.
"""

import argparse
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from htc_model.config import load_preset  # noqa: E402
from htc_model.network.detector import HTC, build_model  # noqa: E402
from htc_model.structures import ImageBatch  # noqa: E402
from htc_model.training import cascade_losses, detector_losses  # noqa: E402
from htc_model.training.ema import WeightAverage  # noqa: E402
from htc_model.training.freezing import freeze_backbone, set_training_mode  # noqa: E402
from htc_model.training.pretrained import initialise_heads  # noqa: E402
from htc_model.training.targets import Truth  # noqa: E402
from htc_model.training.train_config import TrainConfig, train_config_for  # noqa: E402

PARTS = {
    "compute_rpn_losses": "proposal losses",
    "select_training_proposals": "proposals",
    "_run_semantic": "semantic branch",
    "sample_stage_rois": "assignment and sampling",
    "compute_box_losses": "box heads",
    "refine_boxes": "refinement",
    "compute_mask_loss": "mask heads",
}


@contextmanager
def timed_parts(model: HTC, spent: dict[str, float]) -> Iterator[None]:
    """Add the CPU seconds of the step's parts to `spent` while the context is open."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            result = function(*arguments, **named)
            spent[name] += time.process_time() - started
            return result

        return call

    originals = {name: getattr(detector_losses, name) for name in PARTS}
    for name, label in PARTS.items():
        setattr(detector_losses, name, timed(label, originals[name]))
    modules = {"backbone": model.backbone, "pyramid": model.neck}
    for label, module in modules.items():
        module.forward = timed(label, module.forward)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(detector_losses, name, function)
        for module in modules.values():
            del module.forward


def build_batch(batch: int, height: int, width: int) -> tuple[ImageBatch, list[Truth]]:
    """Build images of noise with three boxes and full masks each."""
    boxes = torch.tensor([[0.05, 0.1, 0.45, 0.8], [0.3, 0.2, 0.5, 0.9], [0.6, 0.1, 0.8, 0.4]])
    boxes = (boxes * torch.tensor([width, height, width, height])).round()
    masks = torch.zeros(3, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    semantic_map = (masks.amax(0) == 0).to(torch.uint8)
    truth = Truth(boxes, torch.zeros(3, dtype=torch.int64), masks, semantic_map)
    pixels = torch.randn(batch, 3, height, width).contiguous(memory_format=torch.channels_last)
    sizes = [(height, width)] * batch
    return ImageBatch(pixels, sizes, sizes), [truth] * batch


def measure(
    model: HTC, train_config: TrainConfig, batch: ImageBatch, truths: list[Truth], steps: int
) -> dict[str, float]:
    """Measure CPU seconds per image by part, mean over steps, after one step to warm up."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5)
    average = WeightAverage(model, 0.999)
    spent: dict[str, float] = defaultdict(float)
    for index in range(steps + 1):
        if index == 1:
            spent.clear()
        started = time.process_time()
        with timed_parts(model, spent):
            total = detector_losses.compute_losses(model, batch, truths, train_config).total
        forward_done = time.process_time()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        backward_done = time.process_time()
        optimiser.step()
        average.update(model)
        spent["backward"] += backward_done - forward_done
        spent["optimiser and average"] += time.process_time() - backward_done
        spent["total"] += time.process_time() - started
    return {name: round(value / steps / len(batch), 4) for name, value in spent.items()}


def main() -> int:
    """Measure both ways of pooling, and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = {"short-side": 256, "long-side": 352, "batch": 4, "rois": 64, "frozen": 1, "steps": 3}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = replace(load_preset("htc_lite0_fpn"), classes=("person",), category_ids=(1,), semantic_classes=2)
    model = build_model(config).to(memory_format=torch.channels_last)
    initialise_heads(model)
    freeze_backbone(model, arguments.frozen)
    set_training_mode(model, has_frozen_batch_norm=True)
    train_config = train_config_for(config)
    roi_sample = replace(train_config.roi_sample, count=arguments.rois)
    train_config = replace(train_config, proposals=300, roi_sample=roi_sample)
    batch, truths = build_batch(arguments.batch, arguments.short_side, arguments.long_side)
    row_sums = measure(model, train_config, batch, truths, arguments.steps)
    head = type(model.roi_head)
    cascade_losses.box_features, cascade_losses.mask_features = head.box_features, head.mask_features
    torchvision = measure(model, train_config, batch, truths, arguments.steps)
    result = {
        "benchmark": "training_cpu",
        "compares": "one step of htc_lite0_fpn with RoI pooling by row sums, and by torchvision's RoIAlign",
        "unit": "CPU seconds per image",
        "arguments": vars(arguments),
        "parts": row_sums,
        "total_with_torchvision_roi_align": torchvision["total"],
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
