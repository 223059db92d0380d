"""An inference plan: the network's whole way from pixels to detections for one padded shape and batch size."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from htc_model.network.detector import HTC

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class StaticDetections:
    """The detections of a batch at fixed shapes, on the model's device; B images, D = `max_detections` slots each.

    boxes_xyxy: [B, D, 4] float32, pixels of the original image, clipped to it; zeros in empty slots.
    scores: [B, D] float32, descending; -inf in empty slots.
    labels: [B, D] int64 in [0, C); 0 in empty slots.
    counts: [B] int64, how many slots are detections; they come first.
    mask_probs: [B, D, 28, 28] float32 in [0, 1], zeros in empty slots; None for a box-only model, or before `masks`.
    finite: [B, checks] bool, in the order of `InferencePlan.checks`; False where the image's values overflowed.
    is_exact: [B] bool; False where the fixed sizes did not suffice, and the dynamic path must decide.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    mask_probs: Tensor | None
    finite: Tensor
    is_exact: Tensor


@dataclass(frozen=True)
class BoxState:
    """What the box part leaves for the mask part, on the device.

    detections: without masks.
    pyramid, semantic_feat: the features that masks are pooled from.
    rois: [B * D, 5] float32, image index and network pixels, the detections of all images first; then zeros.
    labels: [B * D] int64 of those RoIs.
    slots: [B * D] int64, each RoI's place among all images' detections (image * D + slot); B * D for empty ones.
    total: [] int64, the number of RoIs that are detections.
    """

    detections: StaticDetections
    pyramid: list[Tensor]
    semantic_feat: Tensor | None
    rois: Tensor
    labels: Tensor
    slots: Tensor
    total: Tensor


class InferencePlan:
    """The network at one padded shape and batch size; a pure function of its inputs, so a CUDA graph can hold it.

    boxes(pixels, image_sizes, original_sizes) -> BoxState
    masks(state, bucket) -> StaticDetections
    run(pixels, image_sizes, original_sizes) -> StaticDetections, without any read by the host.
    """

    def __init__(self, network: HTC, padded_shape: tuple[int, int], batch: int, precision: Precision) -> None:
        self.network = network
        self.padded_shape = padded_shape
        self.batch = batch
        self.precision = precision

    def boxes(self, pixels: Tensor, image_sizes: Tensor, original_sizes: Tensor) -> BoxState:
        """Detect boxes.

        Args:
            pixels: [B, 3, H, W] float32, normalised and padded.
            image_sizes: [B, 2] int64 (height, width) before padding; (0, 0) marks an empty slot of the batch.
            original_sizes: [B, 2] int64 (height, width) of the decoded images.
        """
        raise NotImplementedError

    def masks(self, state: BoxState, bucket: int) -> StaticDetections:
        """Predict the masks of the first `bucket` RoIs; `bucket` is one of `mask_buckets` and at least the total."""
        raise NotImplementedError

    def run(self, pixels: Tensor, image_sizes: Tensor, original_sizes: Tensor) -> StaticDetections:
        """Detect and segment with the largest bucket; the host reads nothing."""
        raise NotImplementedError
