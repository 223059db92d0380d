"""JPEG and PNG images far beyond `images.max_pixels`, decoded once and read by windows."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.inputs.decode import DEFAULT_MAX_PIXELS, load_whole
from pipeline.inputs.formats.jpeg_decoders import make_upright
from pipeline.inputs.georeference import Georeference
from pipeline.inputs.tiff_windows import FILL_COLOR
from pipeline.inputs.windowed_image import check_window

# Pillow holds four bytes per pixel: 2 GiB, which leaves a worker of 4 GB room for its model. 23,170 x 23,170.
MOST_DECODED_PIXELS = 2**29
# Of an image's memory while it is open, per pixel.
BYTES_PER_PIXEL = 4
_ON_ITS_SIDE = (5, 6, 7, 8)


class LargeImage:
    """An image that Pillow holds decoded; see `pipeline.inputs.windowed_image.WindowedImage`.

    Windows have the pixels of `decode_image`, except that transparent pixels have `FILL_COLOR`.
    """

    def __init__(self, payload: bytes, *, other_max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        """Decode it.

        Args:
            other_max_pixels: the limit of formats that are not held so, which the image exceeds; for the message.

        Raises:
            ImageError: `unreadable`, or `too_large`: more than MOST_DECODED_PIXELS, or another format.
        """
        self._image: Image.Image
        self._image, self._orientation = load_whole(
            payload, max_pixels=MOST_DECODED_PIXELS, other_max_pixels=other_max_pixels
        )
        self._transparency = self._image.info.pop("transparency", None)
        width, height = self._image.size
        self._size = (width, height) if self._orientation in _ON_ITS_SIDE else (height, width)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, upright."""
        return self._size

    @property
    def georeference(self) -> Georeference | None:
        """Nothing: these formats do not say where they lie."""
        return None

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Read a window, [height, width, 3] uint8 RGB."""
        crop = self._crop(top, left, height, width)
        visible = self._visible(crop)
        if crop.mode.startswith("I"):  # 16-bit gray, cut to the upper 8 bits as in all formats
            crop = Image.fromarray((np.asarray(crop) >> 8).astype(np.uint8))
        pixels = np.array(crop if crop.mode == "RGB" else crop.convert("RGB"), dtype=np.uint8)
        if visible is not None:
            pixels[~visible] = FILL_COLOR
        return make_upright(pixels, self._orientation)

    def read_downsampled(self, max_side: int) -> NDArray[np.uint8]:
        """Return the whole image with sides of at most so many pixels, [h, w, 3] uint8 RGB; transparency is dropped."""
        factor = -(-max(self._size) // max_side)
        small = self._image.reduce(factor) if self._image.mode in ("RGB", "RGBA", "L", "LA") else self._nearest(factor)
        if small.mode.startswith("I"):
            small = Image.fromarray((np.asarray(small) >> 8).astype(np.uint8))
        return make_upright(np.array(small.convert("RGB"), dtype=np.uint8), self._orientation)

    def _nearest(self, factor: int) -> Image.Image:
        width, height = self._image.size
        return self._image.resize((-(-width // factor), -(-height // factor)), Image.Resampling.NEAREST)

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """Return which pixels of a window are not transparent, [height, width]; None where all are visible."""
        visible = self._visible(self._crop(top, left, height, width))
        if visible is None or visible.all():
            return None
        # `make_upright` turns images of three channels.
        three = np.repeat(visible[..., None].astype(np.uint8), 3, axis=2)
        return make_upright(three, self._orientation)[..., 0].astype(bool)

    def close(self) -> None:
        """Let go of the pixels."""
        self._image.close()
        self._image = Image.new("RGB", (1, 1))

    def _crop(self, top: int, left: int, height: int, width: int) -> Image.Image:
        check_window(self._size, top, left, height, width)
        if self._orientation in (3, 4, 7, 8):
            top = self._size[0] - top - height
        if self._orientation in (2, 3, 6, 7):
            left = self._size[1] - left - width
        if self._orientation in _ON_ITS_SIDE:
            top, left, height, width = left, top, width, height
        return self._image.crop((left, top, left + width, top + height))

    def _visible(self, crop: Image.Image) -> NDArray[np.bool_] | None:
        if crop.mode.startswith("I") and self._transparency is not None:
            return np.asarray(np.asarray(crop) != self._transparency)
        if self._transparency is not None:
            crop = crop.copy()
            crop.info["transparency"] = self._transparency
        elif crop.mode not in ("RGBA", "LA", "PA"):
            return None
        return np.asarray(crop.convert("RGBA").getchannel("A")) > 0
