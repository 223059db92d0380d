"""Decodes semantic maps from PNG files: one label per pixel."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipeline.errors import ImageError
from pipeline.inputs.decode import DEFAULT_MAX_PIXELS
from pipeline.inputs.formats.png import without_metadata
from pipeline.inputs.formats.size_limit import check_size

# Gray levels and palette indices are the labels; the colours of a palette are only for display.
_MODES = ("L", "P")


def decode_label_map(payload: bytes) -> NDArray[np.uint8]:
    """Decode an 8-bit PNG of one channel, as COCO's stuffthingmaps are.

    Returns:
        [H, W] uint8: the labels.

    Raises:
        ImageError: it is not a PNG of one 8-bit channel, is damaged, or has too many pixels.
    """
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(without_metadata(payload))) as image:
            if image.mode not in _MODES:
                raise ImageError("unreadable", f"a semantic map must have one 8-bit channel, not be {image.mode}")
            check_size(image.size, DEFAULT_MAX_PIXELS)
            # Decoded inside this block, which translates Pillow's errors.
            labels: NDArray[np.uint8] = np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError("unreadable", f"not a readable PNG ({error})") from error
    return labels
