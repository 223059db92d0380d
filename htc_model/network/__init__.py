"""The network's parts, from backbone to detections, and the detector that composes them."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from htc_model.network.detector import HTC, build_model

__all__ = ["HTC", "build_model"]

__getattr__ = attach(
    __name__,
    {
        "detector": ["HTC", "build_model"],
    },
)
