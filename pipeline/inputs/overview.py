"""A huge image at a small size, without its pixels at full size where its format allows that."""

import numpy as np
from numpy.typing import NDArray

from pipeline.inputs.formats.bands import AS_STORED, BandRule
from pipeline.inputs.image_ref import ImageRef, ReadVersion
from pipeline.inputs.large_images import MOST_DECODED_PIXELS, LargeImage
from pipeline.inputs.read import fetch_image
from pipeline.inputs.windows import open_stored
from pipeline.storage.storage import Storage


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
            return windows.read_downsampled(max_side), windows.size, read
        finally:
            windows.close()
    payload, read = fetch_image(ref, storage)
    image = LargeImage(payload)
    try:
        return image.read_downsampled(max_side), image.size, read
    finally:
        image.close()
