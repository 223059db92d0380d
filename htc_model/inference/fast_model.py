"""The network as workers run it on an accelerator: folded weights, fixed shapes, plans by padded shape and batch."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from htc_model.config import ModelConfig
from htc_model.inference import static_ops
from htc_model.inference.fold import fold
from htc_model.inference.graphs import CudaCapturer, GraphCache
from htc_model.inference.plan import (
    DTYPES,
    BoxState,
    InferencePlan,
    PoolLevels,
    Precision,
    StaticDetections,
    raise_non_finite,
    why_not_static,
)
from htc_model.network.detector import HTC
from htc_model.network.semantic_head import cut_map
from htc_model.structures import ImageBatch, RawDetections

# A partly filled batch runs at the next of these sizes; a larger one runs in several parts.
BATCH_SIZES = (1, 2, 4, 8, 16)
# Plans kept, the last used ones; 27 padded shapes were seen in 256 images of COCO's sizes.
MAX_PLANS = 64

Sizes = Sequence[tuple[int, int]]
# A plan's padded shape, batch size, whether it is exhaustive, and whether it gives semantic logits.
PlanKey = tuple[tuple[int, int], int, bool, bool]


@dataclass(frozen=True)
class Detecting:
    """A batch whose box part is under way on the device, and the plan that runs it."""

    key: PlanKey
    plan: InferencePlan
    state: BoxState


class FastModel:
    """`HTC` at fixed shapes, with the same detections; a `SegmentationModel` of the worker.

    On a CPU `infer` runs the dynamic path on the folded network, which is faster there; the other methods run plans on
    any device. One thread at a time.

    Attributes:
        network: the folded copy.
        graphs: records the plans that come often, on CUDA.
    """

    def __init__(
        self,
        model: HTC,
        device: torch.device | str,
        *,
        precision: Precision = "fp32",
        is_static: bool | None = None,
        has_graphs: bool = True,
        pool_levels: PoolLevels | None = None,
    ) -> None:
        """Prepare a folded copy of the model on the device.

        Args:
            model: in evaluation mode, float32; not changed.
            precision: of the convolutions and linear layers; boxes, scores, NMS and mask means are float32.
            is_static: whether `infer` uses plans; by default on every device but a CPU, where the network has any.
            has_graphs: whether plans become CUDA graphs, on CUDA.
            pool_levels: RoIAlign; by default the Triton kernel on CUDA where Triton is installed, else torchvision's.
        """
        self.config: ModelConfig = model.config
        self.device = torch.device(device)
        self.precision: Precision = precision
        if is_static is None:
            is_static = self.device.type != "cpu" and not why_not_static(model.config)
        self.is_static = is_static
        self.network = fold(model, DTYPES[precision]).to(self.device)
        self.graphs = GraphCache(CudaCapturer(self.device) if has_graphs and self.device.type == "cuda" else None)
        self._pool_levels = choose_pool_levels(self.device) if pool_levels is None else pool_levels
        self._plans: OrderedDict[PlanKey, InferencePlan] = OrderedDict()

    @torch.inference_mode()
    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        """Detect and segment, as `HTC.infer`.

        The host reads twice for up to 16 images: the number of detections, which decides how many RoIs the mask heads
        process, and whether the masks are finite.

        Args:
            batch: on the model's device.

        Raises:
            NonFiniteError: an image's activations overflow, or the weights contain NaN.
        """
        if not self.is_static:
            return self.network.infer(batch)
        raws: list[RawDetections] = []
        for start in range(0, len(batch), BATCH_SIZES[-1]):
            part = slice(start, start + BATCH_SIZES[-1])
            pixels, image_sizes = batch.pixels[part], batch.image_sizes[part]
            raws += self._infer_part(
                ImageBatch(pixels, image_sizes, batch.original_sizes[part], wants_semantic=batch.wants_semantic)
            )
        return raws

    @torch.inference_mode()
    def infer_static(self, pixels: Tensor, image_sizes: Tensor, original_sizes: Tensor) -> StaticDetections:
        """Detect and segment without any read by the host; arguments as for `detect`.

        Returns:
            Detections that hold where `is_exact` and all of `finite` are set.
        """
        return self.segment(self.detect(pixels, image_sizes, original_sizes))

    @torch.inference_mode()
    def detect(
        self,
        pixels: Tensor,
        image_sizes: Tensor,
        original_sizes: Tensor,
        *,
        is_exhaustive: bool = False,
        wants_semantic: bool = False,
    ) -> Detecting:
        """Start the box part.

        Args:
            pixels: [B, 3, H, W] float32 on the device; B is one of `BATCH_SIZES`, see `fill_batch`.
            image_sizes: [B, 2] int64 on the device, (height, width) before padding; (0, 0) marks an empty slot.
            original_sizes: [B, 2] int64 on the device; (1, 1) in an empty slot.
            is_exhaustive: exact for every image, but the host reads: for images that a first try left undecided.
            wants_semantic: whether the detections also have semantic logits.

        Returns:
            To be given to `segment` before the next call of `detect`.
        """
        key = ((pixels.shape[2], pixels.shape[3]), len(pixels), is_exhaustive, wants_semantic)
        plan = self._plan_for(key)
        inputs = pixels, image_sizes, original_sizes
        state = plan.boxes(*inputs) if is_exhaustive else self.graphs.boxes(key, plan, *inputs)
        return Detecting(key, plan, state)

    @torch.inference_mode()
    def segment(self, detecting: Detecting, total: int | None = None) -> StaticDetections:
        """Start the mask part.

        Args:
            total: the number of detections in the batch, if the host has read it: masks are predicted for little more.

        Returns:
            The batch's detections with masks, or without those of a box-only model.
        """
        buckets = detecting.plan.mask_buckets
        bucket = buckets[-1] if buckets else 0
        if buckets and total is not None:
            bucket = detecting.plan.bucket_for(total)
        return self.graphs.masks(detecting.key, detecting.plan, detecting.state, bucket)

    def _plan_for(self, key: PlanKey) -> InferencePlan:
        plan = self._plans.pop(key, None)
        if plan is None:
            padded_shape, batch, is_exhaustive, wants_semantic = key
            plan = InferencePlan(
                self.network,
                padded_shape,
                batch,
                self.precision,
                pool_levels=self._pool_levels,
                is_exhaustive=is_exhaustive,
                wants_semantic=wants_semantic,
            )
        self._plans[key] = plan
        if len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return plan

    def _infer_part(self, batch: ImageBatch) -> list[RawDetections]:
        images, wants_semantic = len(batch), batch.wants_semantic
        filled = fill_batch(batch.pixels, batch.image_sizes, batch.original_sizes)
        detecting = self.detect(*filled, wants_semantic=wants_semantic)
        counts, is_exact = _read(detecting.plan, detecting.state.detections, images)
        if not all(is_exact):
            detecting = self.detect(*filled, is_exhaustive=True, wants_semantic=wants_semantic)
            counts, _ = _read(detecting.plan, detecting.state.detections, images)
        found = self.segment(detecting, sum(counts))
        if found.mask_probs is not None:
            _read(detecting.plan, found, images)
        return [
            RawDetections(
                found.boxes_xyxy[image, :count],
                found.scores[image, :count],
                found.labels[image, :count],
                None if found.mask_probs is None else found.mask_probs[image, :count],
                batch.original_sizes[image],
                semantic=None
                if found.semantic_logits is None
                else (cut_map(found.semantic_logits[image], batch.image_sizes[image]),),
            )
            for image, count in enumerate(counts)
        ]


def choose_pool_levels(device: torch.device) -> PoolLevels:
    """Return the Triton kernel on CUDA where Triton is installed, else torchvision's operator on all levels."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from htc_model.inference import triton_roi_align

        return triton_roi_align.pool_levels
    return static_ops.pool_levels


def fill_batch(pixels: Tensor, image_sizes: Sizes, original_sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Lengthen a batch to the next of `BATCH_SIZES` by empty slots.

    Args:
        pixels: [N, 3, H, W], N at most 16.
        image_sizes, original_sizes: N x (height, width).

    Returns:
        The arguments of `FastModel.detect`, on the pixels' device.
    """
    images, device = len(pixels), pixels.device
    size = next(size for size in BATCH_SIZES if size >= images)
    sizes = torch.tensor([*image_sizes, *[(0, 0)] * (size - images)])
    originals = torch.tensor([*original_sizes, *[(1, 1)] * (size - images)])
    if size > images:
        pixels = torch.cat([pixels, pixels.new_zeros(size - images, *pixels.shape[1:])])
    return pixels, sizes.to(device, non_blocking=True), originals.to(device, non_blocking=True)


def _read(plan: InferencePlan, found: StaticDetections, images: int) -> tuple[list[int], list[bool]]:
    """Read the numbers of detections, and which images are exact, in one copy.

    Raises:
        NonFiniteError: as the dynamic path raises it, for the first check that an image fails.
    """
    columns = [found.counts[:, None], found.is_exact[:, None].long(), found.finite.long()]
    rows = torch.cat(columns, dim=1)[:images].tolist()
    raise_non_finite(plan.checks, [row[2:] for row in rows])
    return [row[0] for row in rows], [bool(row[1]) for row in rows]
