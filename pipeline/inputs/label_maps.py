"""Semantic maps from PNG files: one label per pixel."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipeline.errors import ImageError
from pipeline.inputs.decode import DEFAULT_MAX_PIXELS
from pipeline.inputs.formats.png import without_metadata

# Grey levels are labels as they are, and so are a palette's indices; its colours are for looking at.
_MODES = ("L", "P")


def decode_label_map(payload: bytes) -> NDArray[np.uint8]:
    """Decode an 8-bit PNG of one channel, as COCO's stuffthingmaps are.

    Returns:
        [H, W] uint8: the labels.

    Raises:
        ImageError: no such PNG.
    """
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(without_metadata(payload))) as image:
            if image.mode not in _MODES:
                raise ImageError("unreadable", f"a semantic map must have one 8-bit channel, not be {image.mode}")
            if image.width * image.height > DEFAULT_MAX_PIXELS:
                raise ImageError("too_large", f"{image.width}x{image.height} pixels are too many for a semantic map")
            # Decoded here, while errors can be told apart from a caller's own.
            labels: NDArray[np.uint8] = np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError("unreadable", f"not a readable PNG ({error})") from error
    return labels
