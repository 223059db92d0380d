"""The faster JPEG decoders give Pillow's pixels, or are not used."""

import io
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline.worker.choose_jpeg
from pipeline.errors import ImageError
from pipeline.inputs.decode import decode_image, read_header
from pipeline.inputs.formats.jpeg import read_frame
from pipeline.inputs.formats.jpeg_decoders import TurboJpeg, decode_with_imagecodecs, decode_with_torchvision
from pipeline.job_spec.job import ImagesSection
from pipeline.worker.choose_jpeg import choose_jpeg_decoder
from tests.support.paths import ROOT

FILES = sorted([*(ROOT / "examples").rglob("*.jpg"), *(ROOT / "tests" / "data").rglob("*.jpg")])
SIZES = [(1, 1), (7, 9), (16, 16), (33, 47), (2, 300), (101, 99)]


class Counted:
    """A decoder that counts what it decoded itself."""

    def __init__(self, decode: Any) -> None:
        self.inner = TurboJpeg(decode)
        self.decoded = 0

    def decode(self, payload: bytes, frame: Any) -> Any:
        pixels = self.inner.decode(payload, frame)
        self.decoded += pixels is not None
        return pixels


@pytest.fixture(params=[decode_with_imagecodecs, decode_with_torchvision], ids=["imagecodecs", "torchvision"])
def decoder(request: pytest.FixtureRequest) -> Counted:
    return Counted(request.param)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Return an image with soft and hard structure, of (height, width)."""
    height, width = size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((soft + rng.integers(-20, 20, soft.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="JPEG", **options)
    return file.getvalue()


def assert_same(payload: bytes, decoder: Counted) -> None:
    found, wanted = decode_image(payload, jpeg=decoder), decode_image(payload)
    np.testing.assert_array_equal(found, wanted)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert read_header(payload).pixel_bytes == wanted.nbytes


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_have_pillows_pixels(path: Path, decoder: Counted) -> None:
    assert_same(path.read_bytes(), decoder)
    assert decoder.decoded == (path.name != "e3_cmyk.jpg")


def test_every_quality_sampling_and_odd_size_has_pillows_pixels(decoder: Counted) -> None:
    variants = itertools.product(SIZES, (5, 75, 100), (0, 1, 2, None), (False, True))
    for number, (size, quality, subsampling, is_progressive) in enumerate(variants):
        image = picture(size, number)
        options: dict[str, Any] = {"quality": quality, "progressive": is_progressive}
        if subsampling is None:
            image = image.convert("L")
        else:
            options["subsampling"] = subsampling
        assert_same(encoded(image, **options), decoder)
    assert decoder.decoded == len(SIZES) * 24


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exifs_orientations_are_applied(orientation: int, decoder: Counted) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_same(encoded(picture((33, 47)), exif=exif), decoder)
    assert decoder.decoded == 1


def test_profiles_and_restart_markers_change_nothing(decoder: Counted) -> None:
    assert_same(encoded(picture((33, 47)), icc_profile=b"profile" * 20, comment=b"text"), decoder)
    assert_same(encoded(picture((33, 47)), restart_marker_blocks=2), decoder)
    assert decoder.decoded == 2


def with_sampling(payload: bytes, *factors: int) -> bytes:
    """Return the file with other sampling factors in its frame: its scan is then damaged, its frame is valid."""
    changed = bytearray(payload)
    start = payload.index(b"\xff\xc0") + 10
    for number, factor in enumerate(factors):
        changed[start + 3 * number + 1] = factor
    return bytes(changed)


def test_oddities_are_left_to_pillow(decoder: Counted) -> None:
    plain = encoded(picture((33, 47)), quality=80)
    frame = read_frame(plain)
    assert frame is not None
    assert frame.size == (47, 33)
    assert decoder.inner.decode(plain, frame) is not None
    # 4:1:1 and other samplings that Pillow does not write, so that nothing was compared.
    odd = with_sampling(plain, 0x41, 0x11, 0x11)
    odd_frame = read_frame(odd)
    assert odd_frame is not None
    assert decoder.inner.decode(odd, odd_frame) is None
    # 12 bits, CMYK, an Adobe segment, other component numbers, a second frame, no frame, no JPEG.
    start = plain.index(b"\xff\xc0")
    for damaged in (
        plain[: start + 4] + b"\x0c" + plain[start + 5 :],
        encoded(Image.new("CMYK", (8, 8))),
        plain[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + plain[2:],
        plain[: start + 10] + b"R" + plain[start + 11 :],
        plain[:start] + plain[start : start + 19] + plain[start:],
        plain[:start],
        plain[:start] + plain[plain.index(b"\xff\xda") :],
        plain[:-2],
        b"",
        b"\x89PNG",
    ):
        assert read_frame(damaged) is None


def test_damaged_files_end_as_with_pillow(decoder: Counted) -> None:
    """The same pixels or the same reason, whatever the damage."""
    rng = random.Random(7)
    files = [
        encoded(picture((30, 41)), quality=75, subsampling=2),
        encoded(picture((30, 41)), quality=75, progressive=True),
        encoded(picture((30, 41)), restart_marker_blocks=2),
    ]
    readable = 0
    for _ in range(400):
        payload = bytearray(rng.choice(files))
        place = rng.randrange(2, len(payload))
        deed = rng.randrange(4)
        if deed == 0:
            payload[place] = rng.randrange(256)
        elif deed == 1:
            del payload[place:]
        elif deed == 2:
            del payload[place]
        else:
            payload.insert(place, rng.randrange(256))
        readable += outcome(bytes(payload), decoder)
    assert 0 < readable < 400
    assert decoder.decoded > 0


def outcome(payload: bytes, decoder: Counted) -> bool:
    """Compare both ways; return whether the file is readable."""
    found, wanted = (decoded_or_reason(payload, jpeg) for jpeg in (decoder, None))
    np.testing.assert_array_equal(found, wanted)
    return isinstance(wanted, np.ndarray)


def decoded_or_reason(payload: bytes, jpeg: Counted | None) -> Any:
    try:
        return decode_image(payload, jpeg=jpeg)
    except ImageError as error:
        return error.status, error.reason


def test_the_limit_on_pixels_holds_before_decoding(decoder: Counted) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(encoded(picture((33, 47))), max_pixels=100, jpeg=decoder)
    assert caught.value.status == "too_large"
    assert decoder.decoded == 0


def test_a_kind_with_other_pixels_is_left_to_pillow_with_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def off_by_one(payload: bytes) -> Any:
        pixels, frame = decode_with_imagecodecs(payload), read_frame(payload)
        assert frame is not None
        if frame.kind[1][0] == (2, 2):
            pixels[0, 0, 0] ^= 1
        return pixels

    monkeypatch.setattr(pipeline.worker.choose_jpeg, "decode_with_imagecodecs", off_by_one)
    chosen = choose_jpeg_decoder(ImagesSection(), torch.device("cpu"))
    assert isinstance(chosen, TurboJpeg)
    assert chosen.refused == {(False, ((2, 2), (1, 1), (1, 1))), (True, ((2, 2), (1, 1), (1, 1)))}
    assert "for 2 kinds of JPEG" in caplog.text
    payload = encoded(picture((33, 47)), subsampling=2)
    np.testing.assert_array_equal(decode_image(payload, jpeg=chosen), decode_image(payload))


def test_what_is_missing_is_replaced_and_pillow_is_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(payload: bytes) -> Any:
        raise ImportError("no module of this name")

    monkeypatch.setattr(pipeline.worker.choose_jpeg, "decode_with_imagecodecs", missing)
    chosen = choose_jpeg_decoder(ImagesSection(), torch.device("cpu"))
    assert isinstance(chosen, TurboJpeg)
    assert chosen.kinds
    assert caplog.text == ""
    monkeypatch.setattr(pipeline.worker.choose_jpeg, "decode_with_torchvision", missing)
    assert choose_jpeg_decoder(ImagesSection(), torch.device("cpu")) is None
    assert "Pillow decodes it" in caplog.text


def test_nvjpeg_without_cuda_becomes_the_exact_decoder(caplog: pytest.LogCaptureFixture) -> None:
    chosen = choose_jpeg_decoder(ImagesSection(jpeg_decoder="nvjpeg"), torch.device("cpu"))
    assert isinstance(chosen, TurboJpeg)
    assert "no CUDA device" in caplog.text
