"""Print what one training step costs on a CPU, part by part, in CPU seconds per image; one JSON line.

    python benchmarks/training_cpu.py [--short-side 256] [--long-side 352] [--batch 4] [--rois 64] [--frozen 1]

The pictures are noise with three boxes each: the cost depends on sizes and counts, hardly on content. The same step
with torchvision's RoIAlign instead of row sums stands beside it.
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
from htc_model.training import cascade_losses as stage  # noqa: E402
from htc_model.training import detector_losses as step  # noqa: E402
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
    """Count the CPU seconds of the step's parts while the context lasts."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            result = function(*arguments, **named)
            spent[name] += time.process_time() - started
            return result

        return call

    originals = {name: getattr(step, name) for name in PARTS}
    for name, label in PARTS.items():
        setattr(step, name, timed(label, originals[name]))
    modules = {"trunk": model.backbone, "pyramid": model.neck}
    for label, module in modules.items():
        module.forward = timed(label, module.forward)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(step, name, function)
        for module in modules.values():
            del module.forward


def build_scene(batch: int, height: int, width: int) -> tuple[ImageBatch, list[Truth]]:
    """Noise, and three boxes with full masks in each picture."""
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


def measure(model: HTC, rules: TrainConfig, batch: ImageBatch, truths: list[Truth], steps: int) -> dict[str, float]:
    """CPU seconds per image by part, mean over steps; one more step warms up."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5)
    average = WeightAverage(model, 0.999)
    spent: dict[str, float] = defaultdict(float)
    for index in range(steps + 1):
        if index == 1:
            spent.clear()
        started = time.process_time()
        with timed_parts(model, spent):
            total = step.compute_losses(model, batch, truths, rules).total
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
    """Print the JSON line."""
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
    rules = train_config_for(config)
    rules = replace(rules, proposals=300, roi_sample=replace(rules.roi_sample, count=arguments.rois))
    batch, truths = build_scene(arguments.batch, arguments.short_side, arguments.long_side)
    ours = measure(model, rules, batch, truths, arguments.steps)
    stage.box_features, stage.mask_features = type(model.roi_head).box_features, type(model.roi_head).mask_features
    torchvision = measure(model, rules, batch, truths, arguments.steps)
    result = {
        "benchmark": "training_cpu",
        "compares": "one step of htc_lite0_fpn with RoI pooling by row sums, and by torchvision's RoIAlign",
        "unit": "CPU seconds per image",
        "arguments": vars(arguments),
        "parts": ours,
        "total_with_torchvision_roi_align": torchvision["total"],
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
