"""The network as workers run it on an accelerator: folded weights, fixed shapes, plans by padded shape and batch."""

import torch
from torch import Tensor

from htc_model.config import ModelConfig
from htc_model.inference.plan import Precision, StaticDetections
from htc_model.network.detector import HTC
from htc_model.structures import ImageBatch, RawDetections


class FastModel:
    """`HTC` at fixed shapes, with the same detections; a `SegmentationModel` of the worker.

    On a CPU `infer` runs the dynamic path on the prepared network, which is faster there; `infer_static` runs the
    plan on any device.
    """

    def __init__(
        self,
        model: HTC,
        device: torch.device | str,
        *,
        precision: Precision = "fp32",
        is_static: bool | None = None,
    ) -> None:
        """Prepare a copy of the model (folded, cast, channels-last) on the device.

        Args:
            model: in evaluation mode; not changed.
            precision: of the convolutions and linear layers; boxes, scores, NMS and mask means are float32.
            is_static: whether `infer` uses plans; by default on every device but a CPU.
        """
        self.config: ModelConfig = model.config
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.is_static = self.device.type != "cpu" if is_static is None else is_static

    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        """Detect and segment, as `HTC.infer`.

        Raises:
            NonFiniteError: an image's activations overflow, or the weights contain NaN.
        """
        raise NotImplementedError

    def infer_static(self, pixels: Tensor, image_sizes: Tensor, original_sizes: Tensor) -> StaticDetections:
        """Detect and segment without any read by the host.

        Args:
            pixels: [B, 3, H, W] float32 on the device; B is one of `BATCH_SIZES`.
            image_sizes: [B, 2] int64 on the device, (height, width) before padding; (0, 0) marks an empty slot.
            original_sizes: [B, 2] int64 on the device.
        """
        raise NotImplementedError
