"""Inference at fixed shapes: no operation between pixels and results asks the host; the same detections as `HTC`."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from htc_model.inference.encode import encode_batch
    from htc_model.inference.fast_model import FastModel
    from htc_model.inference.plan import InferencePlan, StaticDetections

__all__ = ["FastModel", "InferencePlan", "StaticDetections", "encode_batch"]

__getattr__ = attach(
    __name__,
    {
        "encode": ["encode_batch"],
        "fast_model": ["FastModel"],
        "plan": ["InferencePlan", "StaticDetections"],
    },
)
