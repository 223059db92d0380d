"""Models of any family in the pipeline: their protocol, how they are found and made, and checks of what they find."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.models.conformance import ConformanceReport, check_model
    from pipeline.models.factory import find_factory, make_model
    from pipeline.models.protocol import InstanceModel, PixelFormat

__all__ = ["ConformanceReport", "InstanceModel", "PixelFormat", "check_model", "find_factory", "make_model"]

__getattr__ = attach(
    __name__,
    {
        "conformance": ["ConformanceReport", "check_model"],
        "factory": ["find_factory", "make_model"],
        "protocol": ["InstanceModel", "PixelFormat"],
    },
)
