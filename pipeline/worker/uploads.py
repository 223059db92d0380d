"""What the segmenter sees of a batch that is on its way to the device."""

from typing import Protocol

from torch import Tensor


class Upload(Protocol):
    """The images of one batch on their way to the device."""

    def receive(self) -> list[Tensor]:
        """Have the current stream wait for the copy, and return the images [H, W, 3] uint8 on the device."""
