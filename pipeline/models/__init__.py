"""Models of any family in the pipeline: their protocol, how they are found and loaded, and checks of what they find."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.models.protocol import InstanceModel, PixelFormat

__all__ = ["InstanceModel", "PixelFormat"]

__getattr__ = attach(
    __name__,
    {
        "protocol": ["InstanceModel", "PixelFormat"],
    },
)
