"""Which pixels of an image are transparent, for formats that are decoded whole: PNG, WebP, AVIF and GIF."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, GifImagePlugin, ImageFile, PngImagePlugin, WebPImagePlugin

from pipeline.inputs.decode import read_size
from pipeline.inputs.formats import png as png_files
from pipeline.inputs.formats.detect import find_format
from pipeline.inputs.formats.jpeg_decoders import make_upright

_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}


def visible_pixels(payload: bytes) -> NDArray[np.bool_] | None:
    """Return which pixels of an image are not fully transparent, [H, W], upright; None where all are visible.

    Args:
        payload: a whole file that `decode_image` decodes.
    """
    name = find_format(payload)
    if name not in _READERS:
        return None
    prepared = png_files.without_metadata(payload, keeps_transparency=True) if name == "PNG" else payload
    with _READERS[name](io.BytesIO(prepared)) as image:
        if not image.has_transparency_data:
            return None
        visible = _visible(image)
    # `make_upright` turns images of three channels.
    turned = make_upright(np.repeat(visible[..., None].astype(np.uint8), 3, axis=2), read_size(payload).orientation)
    return None if visible.all() else turned[..., 0].astype(bool)


def _visible(image: ImageFile.ImageFile) -> NDArray[np.bool_]:
    if image.mode.startswith("I"):
        # 16-bit gray, of which one level is transparent.
        return np.asarray(np.asarray(image) != image.info["transparency"])
    return np.asarray(image.convert("RGBA").getchannel("A")) > 0
