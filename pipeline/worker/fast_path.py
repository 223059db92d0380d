"""The fast model of an accelerator, and the check that it computes what the network does, at a worker's start.

Plans of fixed shapes, folded weights, CUDA graphs and Triton kernels depend on drivers and cards that no test has seen.
So the worker runs both ways on images that it makes, and uses the fast one only if their detections agree.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torchvision.ops import box_iou

from htc_model.config import ModelConfig
from htc_model.inference.fast_model import FastModel
from htc_model.inference.plan import Precision, why_not_static
from htc_model.network.detector import HTC
from htc_model.preprocess import build_batch
from htc_model.structures import ImageBatch, RawDetections, SemanticMap
from pipeline.models.made_images import made_images
from pipeline.text import one_line

log = logging.getLogger(__name__)

# (height, width): a wide image, then a batch of tall ones that leaves a slot of its plan empty.
_WIDE, _TALL = (320, 480), (480, 320)
_TALL_IMAGES = 3
# A plan is recorded as a graph at its third run; the fourth is only replayed.
_RUNS = 4
# Trained networks see next to nothing in made images; with so low a threshold there is something to compare.
_SCORE_THRESHOLD = 1e-3
# What both ways must share, of the detections in the upper half by score: the lower half changes places with the last
# bits. Two float32 ways differ by some 1e-5 in scores (docs/numerics.md); bfloat16 has eight bits.
_LEAST_MATCHED = {"fp32": 0.95, "bf16": 0.8}
_IOU_MATCHED = {"fp32": 0.95, "bf16": 0.8}
_MOST_SCORE_CHANGE = {"fp32": 0.01, "bf16": 0.1}
_MOST_MASK_CHANGE = {"fp32": 0.01, "bf16": 0.1}


class SegmentationModel(Protocol):
    """What a worker needs of a model; `htc_model.network.detector.HTC` is one."""

    @property
    def config(self) -> ModelConfig:
        """Sizes, classes and thresholds."""

    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        """Detections of every image of the batch, on the batch's device."""


@runtime_checkable
class WholeImageModel(Protocol):
    """A model that takes decoded images and resizes them itself, such as one with views or an ensemble."""

    @property
    def config(self) -> ModelConfig:
        """Classes and thresholds of the results, and the resize that decides which images share a batch."""

    @property
    def configs(self) -> Sequence[ModelConfig]:
        """Those of all networks that see an image, whose memory adds up."""

    def place(self, device: torch.device) -> None:
        """Put the networks on a device."""

    def infer_images(self, images: Sequence[Tensor], *, at_once: int | None = None) -> list[RawDetections]:
        """Detections of every image [H, W, 3] uint8 RGB, on the images' device."""


@dataclass(frozen=True)
class FastChoice:
    """The fast model, or None where the network itself is used.

    note: for the log and the run's summary: "on", "off (reason)", or "" where there is no fast way.
    """

    model: SegmentationModel | None
    note: str


BuildFast = Callable[[HTC], SegmentationModel]


def choose_fast_model(
    model: object,
    device: torch.device,
    precision: Precision,
    *,
    build: BuildFast | None = None,
    wants_semantic: bool = False,
) -> FastChoice:
    """Build the fast model and compare it with the network.

    Args:
        model: on the device. Only an `HTC` has a fast way.
        precision: of the fast model, and of the network by autocast.
        build: makes the fast model of a network; by default `FastModel`, on CUDA only.
        wants_semantic: whether semantic maps are asked for, and compared.
    """
    if not isinstance(model, HTC) or (build is None and device.type != "cuda"):
        return FastChoice(None, "")
    if reason := why_not_static(model.config):
        return FastChoice(None, f"off ({reason})")
    make = build or (lambda network: FastModel(network, device, precision=precision))
    try:
        reason = _difference(model, make, device, precision, wants_semantic=wants_semantic)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        fast = make(model) if not reason else None
    except (RuntimeError, ValueError, ArithmeticError, ImportError, OSError, NotImplementedError) as error:
        reason, fast = f"it fails: {one_line(error)}", None
    if fast is not None:
        return FastChoice(fast, "on")
    log.warning("the fast path is off: %s", reason)
    return FastChoice(None, f"off ({reason})")


def _difference(
    model: HTC, make: BuildFast, device: torch.device, precision: Precision, *, wants_semantic: bool
) -> str:
    """Run both ways on made images; return how they differ, "" when they do not."""
    sensitive = copy.copy(model)
    sensitive.config = replace(model.config, score_threshold=_SCORE_THRESHOLD)
    fast = make(sensitive)
    for name, images, runs in (
        ("one image", made_images(_WIDE, 1), _RUNS),
        ("a batch", made_images(_TALL, _TALL_IMAGES), 1),
    ):
        batch = replace(build_batch(images, model.config, device), wants_semantic=wants_semantic)
        with torch.inference_mode():
            with _autocast(device, precision):
                wanted = sensitive.infer(batch)
            if not any(len(raw.scores) for raw in wanted):
                return "the network detects nothing in the made images, so that nothing can be compared"
            for _ in range(runs):
                found = fast.infer(batch)
                if len(found) != len(wanted):
                    return f"{len(found)} results for {len(wanted)} images"
                for one, other in zip(found, wanted, strict=True):
                    if what := _compare(one, other, precision):
                        return f"{what} on {name}"
    return ""


def _compare(found: RawDetections, wanted: RawDetections, precision: Precision) -> str:
    """Return how one image's detections differ, "" when they do not."""
    for tensor in (found.boxes_xyxy, found.scores, *([] if found.mask_probs is None else [found.mask_probs])):
        if not bool(torch.isfinite(tensor).all()):
            return "numbers that are not finite"
    if (found.mask_probs is None) != (wanted.mask_probs is None):
        return "masks are missing"
    for one, other, which in ((wanted, found, "are missing"), (found, wanted, "are not the network's")):
        upper = (len(one.scores) + 1) // 2
        if not upper:
            continue
        share = _matched(one, other, upper, precision)
        if share < _LEAST_MATCHED[precision]:
            return f"{1 - share:.0%} of the better half of the detections {which}"
    return _compare_maps(found.semantic, wanted.semantic, precision)


def _compare_maps(
    found: Sequence[SemanticMap] | None, wanted: Sequence[SemanticMap] | None, precision: Precision
) -> str:
    if (found is None) != (wanted is None):
        return "semantic maps are missing"
    for one, other in zip(found or (), wanted or (), strict=True):
        share = float((one.logits.argmax(dim=0) == other.logits.argmax(dim=0)).float().mean())
        if share < _LEAST_MATCHED[precision]:
            return f"{1 - share:.0%} of the semantic map have another class"
    return ""


def _matched(one: RawDetections, other: RawDetections, upper: int, precision: Precision) -> float:
    """Compute the share of the first `upper` detections that `other` has too: label, box, score and mask."""
    if not len(other.scores):
        return 0.0
    is_same = box_iou(one.boxes_xyxy[:upper], other.boxes_xyxy) > _IOU_MATCHED[precision]
    is_same &= one.labels[:upper, None] == other.labels
    is_same &= (one.scores[:upper, None] - other.scores).abs() < _MOST_SCORE_CHANGE[precision]
    if one.mask_probs is not None and other.mask_probs is not None:
        is_same &= _mask_change(one.mask_probs[:upper], other.mask_probs) < _MOST_MASK_CHANGE[precision]
    return float(is_same.any(dim=1).float().mean())


def _mask_change(one: Tensor, other: Tensor) -> Tensor:
    """Compute the mean absolute differences [K, N] of maps [K, M, M] and [N, M, M]."""
    flat, others = one.float().flatten(1), other.float().flatten(1)
    return torch.cdist(flat, others, p=1) / flat.shape[1]


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
