"""The size of a WebP file is known, and judged, before libwebp reserves memory for it."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import ImageError
from pipeline.inputs import decode
from pipeline.inputs.formats.webp import canvas_size

KINDS = ({"quality": 50}, {"lossless": True}, {"exact": True, "exif": b"Exif\0\0"}, {"save_all": True})


def webp(size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    sink = io.BytesIO()
    frames = {"append_images": [Image.new(mode, size, 200)]} if options.get("save_all") else {}
    Image.new(mode, size, 90).save(sink, "WEBP", **options, **frames)
    return sink.getvalue()


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(KINDS), st.sampled_from(["RGB", "RGBA"]))
def test_it_is_the_size_that_pillow_reads(width: int, height: int, options: dict[str, object], mode: str) -> None:
    assert canvas_size(webp((width, height), mode, **options)) == (width, height)


@given(st.binary(max_size=40))
def test_other_bytes_have_none_or_some_size(rest: bytes) -> None:
    found = canvas_size(b"RIFF\0\0\0\0WEBP" + rest)
    assert found is None or all(isinstance(side, int) and side >= 0 for side in found)


def test_a_canvas_that_is_too_large_is_refused_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = bytearray(webp((40, 30), save_all=True))
    assert payload[12:16] == b"VP8X"
    payload[24:30] = (13_999).to_bytes(3, "little") + (11_999).to_bytes(3, "little")

    def open_it(file: object) -> object:
        raise AssertionError("libwebp would reserve 2 x 672 MB")

    monkeypatch.setitem(decode._READERS, "WebP", open_it)
    with pytest.raises(ImageError, match="14000 x 12000 is 168000000 pixels") as refused:
        decode.decode_image(bytes(payload), max_pixels=4_000_000)
    assert refused.value.status == "too_large"
    assert decode.read_header(bytes(payload), max_pixels=4_000_000) == decode.ImageHeader(0, 0)
