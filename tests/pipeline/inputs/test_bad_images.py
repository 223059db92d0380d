"""A file that is not a valid image raises an ImageError with the reason on one line, and nothing else."""

import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.inputs.decode import decode_image
from tests.support.builders.images import decode_error, encoded, gradient


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty (0 bytes)"),
        (b"hello, this is text in a .jpg\n", r"not an image: starts with 'hello, this is t'"),
        (b"<!DOCTYPE html><html>", "not an image: starts with '<!DOCTYPE html><'"),
        (b"\x00\x01\x02\xff", r"not an image: starts with '\x00\x01\x02\xff'"),
        (b"%PDF-1.7 ...", "PDF files are not supported"),
        (b"\0\0\0\x1cftypheic....", "HEIC"),
        (b"\0\0\0\x1cftypavif....", "AVIF"),
        (b"<?xml version='1.0'?>\n<svg xmlns=''/>", "SVG files are not supported"),
        (b"\xff\xd8\xff", "damaged JPEG: the header is truncated"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF89a", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"RIFF\x04\0\0\0WEBP", "WebP"),
    ],
)
def test_the_reason_names_what_a_file_is(payload: bytes, reason: str) -> None:
    error = decode_error(payload)
    assert error.status == "unreadable"
    assert reason in error.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_unreadable(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    payload = encoded(Image.fromarray(noise), kind)
    error = decode_error(payload[: int(len(payload) * share)])
    assert error.status == "unreadable"
    assert kind.lower() in error.reason.lower()


def test_the_format_is_detected_by_the_content() -> None:
    """`decode_image` takes no name, so a PNG named .jpg is decoded."""
    assert decode_image(encoded(gradient(), "PNG")).shape == (24, 40, 3)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than its few bytes could hold."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    error = decode_error(bomb(60_000, 60_000))
    assert error.status == "too_large"
    assert error.reason == "60000 x 60000 is 3600000000 pixels; the limit is 178956970"


def test_the_pixel_limit_is_an_argument() -> None:
    payload = encoded(gradient(), "PNG")
    assert decode_image(payload, max_pixels=24 * 40).shape == (24, 40, 3)
    assert decode_error(payload, max_pixels=24 * 40 - 1).status == "too_large"


def test_an_image_above_pillows_own_limit_is_decoded_without_a_warning() -> None:
    payload = encoded(Image.new("1", (12_000, 9_000)), "PNG")  # 108 megapixels, 13 kB
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(payload).shape == (9_000, 12_000, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF"])
def test_mutated_files_never_crash(kind: str) -> None:
    """Bytes are overwritten, removed and inserted; the result is an array or an ImageError, without a warning."""
    rng = random.Random(kind)
    original = encoded(gradient(), kind)
    outcomes = set()
    for _ in range(200):
        payload = bytearray(original)
        for _ in range(rng.randrange(1, 12)):
            payload[rng.randrange(min(len(payload), 300))] = rng.randrange(256)
        cut = rng.randrange(len(payload))
        if rng.random() < 0.3:
            payload[cut : cut + rng.randrange(30)] = b""
        try:
            pixels = decode_image(bytes(payload), max_pixels=1_000_000)
        except ImageError as error:
            outcomes.add(error.status)
        else:
            assert pixels.shape[2] == 3
    assert "unreadable" in outcomes
