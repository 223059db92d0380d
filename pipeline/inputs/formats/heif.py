"""HEIC and other HEIF files, as phones write them: the primary image, decoded by libheif."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError


def open_heif(payload: bytes) -> Any:
    """Read a file's structure and return its primary image; nothing is decoded yet.

    Thumbnails, depth maps and gain maps are other images of the file. Rotation and mirroring are properties of the
    image (`irot`, `imir`) that libheif applies; the EXIF orientation is informative only (ISO/IEC 23008-12, 6.5.10).

    Raises:
        ImageError: `unreadable`: pi-heif is not installed, or the file holds no image.
        Exception: whatever `pi_heif` raises on damage; see `pipeline.inputs.decode`.
    """
    try:
        import pi_heif
    except ImportError as error:
        raise ImageError("unreadable", f"HEIC needs the package pi-heif: pip install pi-heif ({error})") from error
    # The worker already decodes in several threads; threads inside libheif would compete for the same cores.
    pi_heif.options.DECODE_THREADS = 1
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    file = pi_heif.open_heif(payload, convert_hdr_to_8bit=True)
    if not len(file):
        raise ImageError("unreadable", "HEIC without an image in it")
    return file[file.primary_index]


def decode_heif(image: Any) -> NDArray[np.uint8]:
    """Decode an image of `open_heif`: [H, W, 3] uint8 RGB, upright, alpha dropped, 10 and 12 bits converted to 8."""
    decoded = np.asarray(image)
    if image.mode.startswith("L"):
        gray = decoded if decoded.ndim == 2 else decoded[..., 0]
        return np.repeat(gray[..., None], 3, axis=2)
    # A copy, made while `image` is alive: the array does not keep its memory.
    return np.array(decoded[..., :3], dtype=np.uint8, order="C")
