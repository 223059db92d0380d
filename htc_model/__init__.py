"""The network: tensors in, detections out. Reads no files but weights; does not use Ray or Parquet."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from htc_model.config import ModelConfig, ModelConfigError, load_preset
    from htc_model.network.detector import HTC, build_model
    from htc_model.preprocess import build_batch
    from htc_model.structures import Detections, ImageBatch

__all__ = [
    "HTC",
    "Detections",
    "ImageBatch",
    "ModelConfig",
    "ModelConfigError",
    "build_batch",
    "build_model",
    "load_preset",
]

__getattr__ = attach(
    __name__,
    {
        "config": ["ModelConfig", "ModelConfigError", "load_preset"],
        "htc_model.network.detector": ["HTC", "build_model"],
        "preprocess": ["build_batch"],
        "structures": ["Detections", "ImageBatch"],
    },
)
