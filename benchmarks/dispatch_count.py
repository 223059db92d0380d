"""Counts what the host does for a batch, from pixels to encoded masks: operators, reads, uploads; counts, not times.

    python benchmarks/dispatch_count.py [--preset htc_r50_fpn] [--image FILE] [--long-side 480] [--batches 1,2,4,8]

One line per path and batch size. "dynamic" is `htc_model.network` as on a GPU (torchvision's RoIAlign, NMS of up to
10,000 boxes in one call), and masks image by image; "static" is `htc_model.inference` with torchvision's RoIAlign on
four levels instead of one Triton kernel. A read is an operator whose value or shape the host needs
(`tests/support/host_reads.py`), or a call of `Tensor.cpu`: on a GPU the host waits at each. An upload is a tensor made
of Python numbers. Weights are untrained and the score threshold is zero, so that every image has `max_detections`.
The last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torchvision.ops import roi_align

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from htc_model.config import load_preset  # noqa: E402
from htc_model.inference.encode import find_mask_runs, read_detections, split_detections  # noqa: E402
from htc_model.inference.fast_model import FastModel, fill_batch  # noqa: E402
from htc_model.masks import batch_runs  # noqa: E402
from htc_model.masks.encode import encode_detections  # noqa: E402
from htc_model.network import box_ops  # noqa: E402
from htc_model.network import roi_align as roi_align_module  # noqa: E402
from htc_model.network.detector import HTC, build_model  # noqa: E402
from htc_model.preprocess import build_batch  # noqa: E402
from htc_model.structures import Detections, ImageBatch  # noqa: E402
from htc_model.weights.untrained import untrained_state  # noqa: E402
from pipeline.inputs.decode import decode_image  # noqa: E402
from tests.support.host_reads import OperatorCounter  # noqa: E402


def pool_as_on_a_gpu(feature: Tensor, rois: Tensor, stride: int, side: int, averaged: int) -> Tensor:
    """Pool by torchvision's operator, as `roi_align.pool_map` does on a GPU."""
    pooled: Tensor = roi_align(feature, rois, side * averaged, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)
    return torch.nn.functional.avg_pool2d(pooled, averaged) if averaged > 1 else pooled


def run_dynamic(model: HTC, batch: ImageBatch) -> list[Detections]:
    """Detect as a worker does on a GPU without `htc_model.inference`."""
    return [encode_detections(raw) for raw in model.infer(batch)]


def run_static(model: FastModel, batch: ImageBatch) -> list[Detections]:
    """Detect at fixed shapes, with the two copies of `htc_model.inference.encode`."""
    inputs = fill_batch(batch.pixels, batch.image_sizes, batch.original_sizes)
    detecting = model.detect(*inputs)
    host = read_detections(detecting.state.detections, inputs[2])
    static = model.segment(detecting, sum(host.counts))
    pending = find_mask_runs(static, host, batch.original_sizes)
    masks = None if pending is None else pending.wait().encode()
    return split_detections(host, masks, len(batch))


@contextmanager
def counted_copies(copies: list[tuple[int, ...]]) -> Iterator[None]:
    """Collect the shapes of tensors that `Tensor.cpu` is called on."""
    original = Tensor.cpu

    def cpu(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        copies.append(tuple(self.shape))
        return original(self, *args, **kwargs)

    with mock.patch.object(Tensor, "cpu", cpu):
        yield


def count(run: Callable[[], list[Detections]]) -> dict[str, int]:
    """Count one call, after one that fills the caches."""
    run()
    copies: list[tuple[int, ...]] = []
    with torch.inference_mode(), OperatorCounter() as counter, counted_copies(copies):
        run()
    steps = sum(calls for name, calls in counter.operators.items() if name.startswith("aten.baddbmm"))
    return {
        "operators": sum(counter.operators.values()),
        "of_nms_steps": 2 * steps,
        "reads": sum(counter.reads.values()) + len(copies),
        "uploads": sum(counter.uploads.values()),
    }


def main() -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="htc_r50_fpn")
    parser.add_argument("--image", type=Path, default=ROOT / "tests" / "data" / "images" / "p0_397133.jpg")
    parser.add_argument("--long-side", type=int, default=480, help="of the network's input; counts hardly depend on it")
    parser.add_argument("--batches", default="1,2,4,8")
    arguments = parser.parse_args()
    config = load_preset(arguments.preset)
    resize = replace(config.resize, long_side=arguments.long_side, short_side=arguments.long_side * 2 // 3)
    config = replace(config, resize=resize, score_threshold=0.0)
    with torch.device("meta"):
        model = build_model(config)
    model.load_state_dict(untrained_state(model.state_dict()), assign=True)
    model.eval()
    fast = FastModel(model, "cpu", is_static=True)
    pixels = decode_image(arguments.image.read_bytes())
    found: dict[str, dict[str, Any]] = {"dynamic": {}, "static": {}}
    print("| path | images | operators | of NMS's steps | reads | uploads | operators an image |\n|" + "---|" * 7)
    for size in map(int, arguments.batches.split(",")):
        batch = build_batch([pixels] * size, config)
        with (
            mock.patch.object(roi_align_module, "sum_rows", pool_as_on_a_gpu),
            mock.patch.dict(box_ops.SINGLE_CALL_CANDIDATES, cpu=box_ops.SINGLE_CALL_CANDIDATES["cuda"]),
        ):
            found["dynamic"][str(size)] = count(lambda batch=batch: run_dynamic(model, batch))  # type: ignore[misc]
        with mock.patch.dict(batch_runs.COLUMN_BUCKETS, cpu=batch_runs.OTHER_DEVICES_BUCKETS):
            found["static"][str(size)] = count(lambda batch=batch: run_static(fast, batch))  # type: ignore[misc]
        for path, counts in found.items():
            one = counts[str(size)]
            columns = [path, size, *one.values(), round(one["operators"] / size)]
            print("| " + " | ".join(map(str, columns)) + " |", flush=True)
    print(json.dumps({"benchmark": "dispatch_count", "preset": config.name, "torch": torch.__version__, **found}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
