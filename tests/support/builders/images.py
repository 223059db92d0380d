"""Small images as encoded files, and the errors of decoding bad ones."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.inputs.decode import decode_image


def gradient(height: int = 24, width: int = 40) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 6, y * 10, (x + y) * 3], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode_error(payload: bytes, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(payload, **options)
    assert "\n" not in caught.value.reason
    return caught.value
