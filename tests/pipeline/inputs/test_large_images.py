"""JPEG and PNG images that are decoded once and read by windows have the pixels of `decode_image`."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError
from pipeline.inputs import large_images
from pipeline.inputs.decode import decode_image
from pipeline.inputs.large_images import LargeImage
from pipeline.inputs.transparency import visible_pixels

SIZE = (37, 53)


def pixels_of(channels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, channels), dtype=np.uint8).squeeze()


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


FILES = {
    "rgb jpeg": file_of(Image.fromarray(pixels_of(3)), "JPEG"),
    "gray jpeg": file_of(Image.fromarray(pixels_of(1)), "JPEG"),
    "rgb png": file_of(Image.fromarray(pixels_of(3)), "PNG"),
    "rgba png": file_of(Image.fromarray(pixels_of(4) // 128 * 128), "PNG"),
    "palette png": file_of(Image.fromarray(pixels_of(3)).quantize(64), "PNG"),
    "transparent palette": file_of(Image.fromarray(pixels_of(3)).quantize(64), "PNG", transparency=3),
    "deep gray png": file_of(Image.fromarray(pixels_of(1).astype(np.uint16) * 257), "PNG"),
    **{
        f"turned jpeg {number}": file_of(Image.fromarray(pixels_of(3)), "JPEG", exif=exif_of(number))
        for number in range(2, 9)
    },
}


@pytest.mark.parametrize("name", FILES)
def test_windows_are_cut_from_the_whole_image(name: str) -> None:
    payload = FILES[name]
    whole, visible = decode_image(payload), visible_pixels(payload)
    image = LargeImage(payload)
    assert image.size == whole.shape[:2]
    height, width = image.size
    for top, left, h, w in [(0, 0, height, width), (5, 9, 11, 13), (height - 1, width - 1, 1, 1)]:
        found, valid = image.read(top, left, h, w), image.valid(top, left, h, w)
        expected = whole[top : top + h, left : left + w]
        seen = np.ones((h, w), bool) if visible is None else visible[top : top + h, left : left + w]
        assert np.array_equal(found[seen], expected[seen])
        assert (valid is None) == bool(seen.all())
        assert valid is None or np.array_equal(valid, seen)
        assert found.flags.c_contiguous
    small = image.read_downsampled(20)
    assert max(small.shape[:2]) <= 20
    image.close()


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cmyk = file_of(Image.new("CMYK", SIZE), "JPEG")
    bmp = file_of(Image.fromarray(pixels_of(3)), "BMP")
    for payload in (cmyk, bmp):
        with pytest.raises(ImageError, match=r"a (CMYK JPEG|BMP) of more than 1000 pixels is not decoded$") as refusal:
            LargeImage(payload, other_max_pixels=1000)
        assert refusal.value.status == "too_large"
    with pytest.raises(ImageError) as refusal:
        LargeImage(FILES["rgb jpeg"][:300])
    assert refusal.value.status == "unreadable"
    monkeypatch.setattr(large_images, "MOST_DECODED_PIXELS", 100)
    with pytest.raises(ImageError) as refusal:
        LargeImage(FILES["rgb png"])
    assert refusal.value.status == "too_large"
