"""Every format of image file is decoded to upright RGB."""

import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from htc_model.config import load_preset
from htc_model.preprocess import build_batch
from pipeline.inputs.decode import decode_image
from tests.support.builders.images import decode_error, encoded, gradient
from tests.support.paths import DATA

PHOTOS = DATA / "images"
# sha256 of the pixels that OpenCV's IMREAD_COLOR gives (BGR, row by row); the CMYK one is exact too.
DECODED_SHA256 = {
    "e0_tiny_47x33.png": "97cb67a4f9213ccf11e5fa2cbb3a2b88aa12fb3538ad417146ce771de60f7795",
    "e1_gray.jpg": "93fe22cc648841e1d4c82546b4761b98ec24a817660472261db5ed481f6ef415",
    "e3_cmyk.jpg": "ab6c8e4aecb7f56f692301272996199d7ddaef740bf3ee9b889f8e19bc414be8",
    "e4_exif6.jpg": "8eb2f5ad75912234478d7979561c009c49b2afaa8ee7e9f0857e10c39b30848f",
    "e5_rgb16.png": "d190b591b1aaeda8d6f8fc9479a35cd4cbfc4517c76f4fe46bc65a523eff2410",
    "p0_397133.jpg": "87f399cd9331afba1197444c9c7a7b29c89617b6f0f2da67dc84f83502c895bb",
    "p1_303818.jpg": "aff12b01bed4c4b84904cae37385a3d0521162051aea2ce547779d5a6f3b4fca",
    "p2_204805.jpg": "93cac3328c3b7686ead74fee8d7a24937c7c86ddd3a55a12d27f54958247c3a5",
    "p9_wide.png": "fcf4aa06dd2ce239c4d0cbeff8bd4c532ef7b52748c3d2b4926444442d226f52",
}
# sha256 of the network's whole input as the published pipeline makes it ([1, 3, H, W] float32).
INPUT_SHA256 = {
    "e0_tiny_47x33.png": "ac164f4adf0c72f06b6ed645680e1779481e16ce7eb0789e4fde2032bffbec6f",
    "e1_gray.jpg": "549498ea29621582d99402b457ee777cfd6d373609e0568cb62c4b4badd2f2e4",
    "e3_cmyk.jpg": "792fb45f4f653c1a7d350fc2be3da61f877df3322c630e21fb366a85e8325617",
    "e4_exif6.jpg": "f128f69d3888df9a3bdbdf18de8022a6d20ac217d091bc7476b9f5507607bef8",
    "e5_rgb16.png": "21efb309825133c39acdfe2b1e80f23565a69a29070b662b923f9ce5e329c1b8",
    "p0_397133.jpg": "fc23c69d3a2715c966007347fecd4b243cd7e244a73bb6d684aeda938181ded2",
    "p1_303818.jpg": "fd3da081cf1c99ecb32a260bffefd49b0f93365f52faf9aa7ae9f5d2d55f9f93",
    "p2_204805.jpg": "d14066a05d512ed10c9a0d0136a3a6208b090f9bf16ec6ebd93a3459ad407a83",
    "p9_wide.png": "8d7ae59d1851fc2a2076ed38d661a5dd5298a61a3d03a25e8358240ddb2a8e56",
}
ORIENTATION = 0x0112


# --- the published pipeline's pixels -----------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODED_SHA256)
def test_decoding_is_bit_exact(name: str) -> None:
    pixels = decode_image((PHOTOS / name).read_bytes())
    assert pixels.dtype == np.uint8
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    assert hashlib.sha256(bgr.tobytes()).hexdigest() == DECODED_SHA256[name]


@pytest.mark.parametrize("name", INPUT_SHA256)
def test_the_whole_input_is_bit_exact(name: str) -> None:
    batch = build_batch([decode_image((PHOTOS / name).read_bytes())], load_preset("htc_r50_fpn"))
    assert hashlib.sha256(batch.pixels.numpy().tobytes()).hexdigest() == INPUT_SHA256[name]


# --- formats and modes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WebP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
    ids=str,
)
def test_lossless_formats_keep_every_pixel(kind: str, options: dict[str, Any]) -> None:
    pixels = decode_image(encoded(gradient(), kind, **options))
    np.testing.assert_array_equal(pixels, np.asarray(gradient()))
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("kind", ["JPEG", "WebP", "GIF"])
def test_lossy_formats_stay_close(kind: str) -> None:
    pixels = decode_image(encoded(gradient(), kind))
    difference = np.abs(pixels.astype(int) - np.asarray(gradient()))
    assert difference.mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WebP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    first, others = Image.new("RGB", (20, 10), "red"), [Image.new("RGB", (20, 10), "blue")] * 2
    payload = encoded(first, kind, save_all=True, append_images=others)
    difference = np.abs(decode_image(payload).astype(int) - (255, 0, 0))
    assert difference.max() <= 2  # WebP is lossy


def test_alpha_is_dropped_and_not_blended() -> None:
    image = gradient()
    image.putalpha(Image.new("L", image.size, 7))
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG")), np.asarray(gradient()))


def test_gray_with_alpha_is_gray() -> None:
    gray = gradient().convert("L")
    with_alpha = gray.copy()
    with_alpha.putalpha(Image.new("L", gray.size, 7))
    np.testing.assert_array_equal(decode_image(encoded(with_alpha, "PNG")), np.asarray(gray.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(64))], ids=["one index", "an alpha per index"])
def test_a_transparent_palette_keeps_its_colours(transparency: int | bytes) -> None:
    palette = gradient().quantize(64)
    payload = encoded(palette, "PNG", transparency=transparency)
    np.testing.assert_array_equal(decode_image(payload), np.asarray(palette.convert("RGB")))


def test_one_bit_images_are_black_and_white() -> None:
    image = gradient().convert("1")
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_the_upper_eight(kind: str) -> None:
    values = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 68
    pixels = decode_image(encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8)[..., None], 3, axis=-1))


def test_big_endian_sixteen_bit_gray_too() -> None:
    values = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 68
    payload = big_endian_tiff(values)
    np.testing.assert_array_equal(decode_image(payload)[..., 0], values >> 8)


def big_endian_tiff(values: np.ndarray) -> bytes:
    """A minimal uncompressed 16-bit gray TIFF in Motorola order, which Pillow does not write."""
    height, width = values.shape
    entries = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4)]
    entries += [(277, 1), (278, height), (279, values.nbytes)]
    directory = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in entries)
    head = struct.pack(">2sHIH", b"MM", 42, 8, len(entries))
    return head + directory + struct.pack(">I", 0) + values.astype(">u2").tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_samples_without_defined_brightness_are_refused(dtype: type[np.generic]) -> None:
    error = decode_error(encoded(Image.fromarray(np.ones((4, 5), dtype)), "TIFF"))
    assert error.status == "unreadable"
    assert "32-bit samples" in error.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (64, 48), "black")
    upright.paste((255, 255, 255), (0, 0, 32, 24))  # the quarter at the upper left
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # Image.Transpose values
    stored = upright
    for method in undo.get(orientation, []):
        stored = stored.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"tiffinfo": {ORIENTATION: orientation}} if kind == "TIFF" else {"exif": exif.tobytes()}
    pixels = decode_image(encoded(stored, kind, **options))
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - np.asarray(upright)).mean() < 6  # JPEG's ringing


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"]
)
def test_an_image_with_a_damaged_exif_block_is_decoded(exif: bytes) -> None:
    assert decode_image(encoded(gradient(), "JPEG", exif=exif)).shape == (24, 40, 3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(height: int, width: int) -> None:
    payload = encoded(Image.new("RGB", (width, height), "teal"), "PNG")
    assert decode_image(payload).shape == (height, width, 3)
    batch = build_batch([decode_image(payload)], load_preset("htc_r50_fpn"))
    assert batch.original_sizes == [(height, width)]


def test_several_files_become_one_batch() -> None:
    payloads = [encoded(gradient(), "PNG"), encoded(gradient(), "BMP")]
    batch = build_batch([decode_image(payload) for payload in payloads], load_preset("htc_lite0_fpn"))
    assert torch.equal(batch.pixels[0], batch.pixels[1])


def test_threads_decode_the_same_pixels() -> None:
    payloads = [(PHOTOS / name).read_bytes() for name in DECODED_SHA256] * 4
    alone = [decode_image(payload) for payload in payloads]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode_image, payloads))
    for ours, theirs in zip(alone, together, strict=True):
        np.testing.assert_array_equal(ours, theirs)
