"""The network as workers run it on an accelerator: prepared weights, fixed shapes, plans by padded shape and batch."""

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from htc_model.config import ModelConfig
from htc_model.finite import NonFiniteError
from htc_model.inference.plan import DTYPES, BoxState, InferencePlan, Precision, StaticDetections
from htc_model.network.detector import HTC
from htc_model.structures import ImageBatch, RawDetections

# A partly filled batch runs at the next of these sizes; a larger one runs in several parts.
BATCH_SIZES = (1, 2, 4, 8, 16)
# Plans kept, the last used ones. Of 27 padded shapes of a shard of photos, four hold 78 % of the images.
MAX_PLANS = 32

Sizes = Sequence[tuple[int, int]]


class FastModel:
    """`HTC` at fixed shapes, with the same detections; a `SegmentationModel` of the worker.

    On a CPU `infer` runs the dynamic path on the prepared network, which is faster there; `infer_static` runs a plan
    on any device.
    """

    def __init__(
        self,
        model: HTC,
        device: torch.device | str,
        *,
        precision: Precision = "fp32",
        is_static: bool | None = None,
    ) -> None:
        """Prepare a copy of the model on the device.

        Args:
            model: in evaluation mode, float32; not changed.
            precision: of the convolutions and linear layers; boxes, scores, NMS and mask means are float32.
            is_static: whether `infer` uses plans; by default on every device but a CPU.
        """
        self.config: ModelConfig = model.config
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.is_static = self.device.type != "cpu" if is_static is None else is_static
        self.network = prepare_network(model, self.device, precision)
        self._plans: OrderedDict[tuple[tuple[int, int], int, bool], InferencePlan] = OrderedDict()

    def plan_for(self, padded_shape: tuple[int, int], batch: int, *, is_exhaustive: bool = False) -> InferencePlan:
        """Return the plan of a padded shape (height, width) and batch size, built when it is first asked for."""
        key = (padded_shape, batch, is_exhaustive)
        plan = self._plans.pop(key, None)
        if plan is None:
            plan = InferencePlan(self.network, padded_shape, batch, self.precision, is_exhaustive=is_exhaustive)
        self._plans[key] = plan
        if len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return plan

    @torch.inference_mode()
    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        """Detect and segment, as `HTC.infer`.

        The host reads twice for up to 16 images: the number of detections, on which the size of the mask heads' batch
        depends, and whether the masks are finite.

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
            raws += self._infer_part(batch.pixels[part], batch.image_sizes[part], batch.original_sizes[part])
        return raws

    @torch.inference_mode()
    def infer_static(self, pixels: Tensor, image_sizes: Tensor, original_sizes: Tensor) -> StaticDetections:
        """Detect and segment without any read by the host.

        Args:
            pixels: [B, 3, H, W] float32 on the device; B is one of `BATCH_SIZES`, see `fill_batch`.
            image_sizes: [B, 2] int64 on the device, (height, width) before padding; (0, 0) marks an empty slot.
            original_sizes: [B, 2] int64 on the device.

        Returns:
            Detections that hold where `is_exact` and all of `finite` are set; `check_finite` raises for the latter.
        """
        plan = self.plan_for((pixels.shape[2], pixels.shape[3]), len(pixels))
        return plan.run(pixels, image_sizes, original_sizes)

    def _infer_part(self, pixels: Tensor, image_sizes: Sizes, original_sizes: Sizes) -> list[RawDetections]:
        images = len(pixels)
        filled = fill_batch(pixels, image_sizes, original_sizes)
        plan = self.plan_for((pixels.shape[2], pixels.shape[3]), len(filled[0]))
        state = plan.boxes(*filled)
        counts, is_exact = self._read(plan, state, images)
        if not all(is_exact):
            plan = self.plan_for(plan.padded_shape, plan.batch, is_exhaustive=True)
            state = plan.boxes(*filled)
            counts, _ = self._read(plan, state, images)
        found = state.detections
        if self.config.has_masks:
            found = plan.masks(state, plan.bucket_for(sum(counts)))
            check_finite(plan.checks, found.finite[:images])
        return [
            RawDetections(
                found.boxes_xyxy[image, :count],
                found.scores[image, :count],
                found.labels[image, :count],
                None if found.mask_probs is None else found.mask_probs[image, :count],
                original_sizes[image],
            )
            for image, count in enumerate(counts)
        ]

    def _read(self, plan: InferencePlan, state: BoxState, images: int) -> tuple[list[int], list[bool]]:
        """Read the numbers of detections, and which images are exact, in one copy.

        Raises:
            NonFiniteError: an image's boxes or scores are not finite.
        """
        found = state.detections
        columns = [found.counts[:, None], found.is_exact[:, None].long(), found.finite.long()]
        rows = torch.cat(columns, dim=1)[:images].tolist()
        _raise_first(plan.checks, [row[2:] for row in rows])
        return [row[0] for row in rows], [bool(row[1]) for row in rows]


def prepare_network(model: HTC, device: torch.device, precision: Precision) -> HTC:
    """Copy a model for inference: on the device, in the precision's dtype, channels-last."""
    prepared = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    return prepared.to(device=device, dtype=DTYPES[precision], memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def fill_batch(pixels: Tensor, image_sizes: Sizes, original_sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Lengthen a batch to the next of `BATCH_SIZES` by empty slots.

    Args:
        pixels: [N, 3, H, W], N at most 16.
        image_sizes, original_sizes: N x (height, width).

    Returns:
        The arguments of `infer_static`, on the pixels' device.
    """
    images, device = len(pixels), pixels.device
    size = next(size for size in BATCH_SIZES if size >= images)
    sizes = torch.tensor([*image_sizes, *[(0, 0)] * (size - images)])
    originals = torch.tensor([*original_sizes, *[(1, 1)] * (size - images)])
    if size > images:
        pixels = torch.cat([pixels, pixels.new_zeros(size - images, *pixels.shape[1:])])
    return pixels, sizes.to(device, non_blocking=True), originals.to(device, non_blocking=True)


def check_finite(checks: Sequence[str], finite: Tensor) -> None:
    """Read a batch's flags and raise for the first that is not set, as the dynamic path does.

    Args:
        checks: `InferencePlan.checks`.
        finite: [N, checks] bool, of images only, without empty slots.

    Raises:
        NonFiniteError: an image's activations overflow, or the weights contain NaN.
    """
    _raise_first(checks, finite.tolist())


def _raise_first(checks: Sequence[str], rows: Sequence[Sequence[bool | int]]) -> None:
    for column, name in enumerate(checks):
        if any(column < len(row) and not row[column] for row in rows):
            raise NonFiniteError(f"{name} are not finite numbers (NaN or infinity)")
