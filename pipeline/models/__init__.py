"""Models of any family in the pipeline: their protocol, how they are found and made, and checks of what they find."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.models.factory import find_factory, make_model
    from pipeline.models.protocol import InstanceModel, PixelFormat

__all__ = ["InstanceModel", "PixelFormat", "find_factory", "make_model"]

__getattr__ = attach(
    __name__,
    {
        "factory": ["find_factory", "make_model"],
        "protocol": ["InstanceModel", "PixelFormat"],
    },
)
