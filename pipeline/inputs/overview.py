"""A huge image at a small size, without its pixels at full size where its format allows that."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.inputs.formats.bands import AS_STORED, BandRule
from pipeline.inputs.image_ref import ImageRef, ReadVersion
from pipeline.inputs.large_images import MOST_DECODED_PIXELS, LargeImage
from pipeline.inputs.read import fetch_image
from pipeline.inputs.windows import WindowedImage, open_stored
from pipeline.storage.storage import Storage

# Rows of the image that are read and reduced at once.
STRIP_ROWS = 1024


def read_overview(
    ref: ImageRef, storage: Storage, *, max_side: int, rule: BandRule = AS_STORED
) -> tuple[NDArray[np.uint8], tuple[int, int], ReadVersion]:
    """Read an image with sides of at most about `max_side` pixels: a TIFF by windows, a JPEG or PNG by decoding it.

    Returns:
        The pixels, [h, w, 3] uint8 RGB, the image's full (height, width), and the version that was read.

    Raises:
        NotFoundError: the file does not exist any more.
        ImageError: it cannot be read at a small size, or is damaged.
        StorageError: storage failed.
    """
    opened = open_stored(ref, storage, max_pixels=MOST_DECODED_PIXELS, max_bytes=None, rule=rule)
    if opened is not None:
        windows, read = opened
        try:
            small = windows.read_downsampled(max_side) if windows.has_overviews else _read_strips(windows, max_side)
            return small, windows.size, read
        finally:
            windows.close()
    payload, read = fetch_image(ref, storage)
    image = LargeImage(payload)
    try:
        return image.read_downsampled(max_side), image.size, read
    finally:
        image.close()


def _read_strips(windows: WindowedImage, max_side: int) -> NDArray[np.uint8]:
    """Read an image strip by strip, each once, and reduce it by a whole factor; a pixel is the mean of a square."""
    height, width = windows.size
    factor = -(-max(height, width) // max_side)
    rows = factor * max(1, STRIP_ROWS // factor)
    strips = []
    for top in range(0, height, rows):
        strip = windows.read(top, 0, min(rows, height - top), width)
        strips.append(np.asarray(Image.fromarray(strip).reduce(factor)))
    return np.concatenate(strips)
