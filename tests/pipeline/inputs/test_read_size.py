"""An image's size from its header is that of its decoded pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.inputs import decode_image, read_size
from tests.support.paths import PHOTOS

SIDES = (48, 32)


def encoded(form: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (SIDES[1], SIDES[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF"])
def test_every_format(form: str) -> None:
    payload = encoded(form)
    assert read_size(payload).upright == SIDES
    assert decode_image(payload).shape == (SIDES[1], SIDES[0], 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(9))
def test_every_orientation(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    payload = encoded(form, exif=exif)
    height, width = decode_image(payload).shape[:2]
    size = read_size(payload)
    assert size.upright == (width, height)
    if form != "TIFF":
        assert (size.width, size.height) == SIDES
        assert size.orientation == max(1, orientation)


@pytest.mark.parametrize("path", sorted(PHOTOS.glob("*.jpg"))[:4], ids=lambda path: path.name)
def test_photos(path: Path) -> None:
    payload = path.read_bytes()
    assert read_size(payload).upright == decode_image(payload).shape[1::-1]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(b"", "empty"), (b"no image", "not an image"), (encoded("PNG")[:20], "PNG"), (encoded("JPEG")[:30], "JPEG")],
)
def test_headers_that_cannot_be_read(payload: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read_size(payload)
