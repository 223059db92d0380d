"""Images that are read by windows: the protocol, and images decoded whole."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.inputs.georeference import Georeference


class WindowedImage(Protocol):
    """An image whose pixels are read by windows, from one thread at a time."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        ...

    @property
    def georeference(self) -> Georeference | None:
        """Where the image lies on the ground; None where its file does not say."""
        ...

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Read a window that lies within the image.

        Returns:
            [height, width, 3] uint8 RGB, contiguous and writable.

        Raises:
            ImageError: its part of the file is damaged or has changed.
        """
        ...

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """Return which pixels of a window show something, [height, width]; None where all do.

        False: no data, or transparent.
        """
        ...

    def close(self) -> None:
        """Let go of the file. The image is not read afterwards."""
        ...


class ArrayWindows:
    """Windows of an image that is decoded whole.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        valid: [H, W], False where pixels are transparent or hold no data; None where all show something.
        georeference: where the image lies on the ground.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        *,
        valid: NDArray[np.bool_] | None = None,
        georeference: Georeference | None = None,
    ) -> None:
        self._pixels = pixels
        self._valid = valid
        self._georeference = georeference

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self._pixels.shape[:2]
        return height, width

    @property
    def georeference(self) -> Georeference | None:
        """Where the image lies on the ground; None where its file does not say."""
        return self._georeference

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return a copy of a window, [height, width, 3]."""
        check_window(self.size, top, left, height, width)
        return self._pixels[top : top + height, left : left + width].copy()

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """Return which pixels of a window show something, [height, width]; None where all do."""
        check_window(self.size, top, left, height, width)
        if self._valid is None:
            return None
        part = self._valid[top : top + height, left : left + width]
        return None if part.all() else part.copy()

    def close(self) -> None:
        """Let go of the pixels."""
        self._pixels = np.empty((0, 0, 3), np.uint8)
        self._valid = None


def check_window(size: tuple[int, int], top: int, left: int, height: int, width: int) -> None:
    """Raise ValueError unless a window lies within an image of this (height, width)."""
    if top < 0 or left < 0 or height < 1 or width < 1 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"the window {height} x {width} at {top}, {left} is not within {size[0]} x {size[1]} pixels")
