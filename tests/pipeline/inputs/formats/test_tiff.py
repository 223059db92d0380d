"""TIFFs in every layout are decoded to the pixels that were written, or refused with the reason."""

import io
import struct
from itertools import product

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.errors import ImageError
from pipeline.inputs.decode import decode_image
from pipeline.inputs.formats.tiff import open_tiff
from tests.support.builders.images import decode_error, encoded, gradient
from tests.support.builders.tiff_writer import Layout, write_pages, write_tiff

HEIGHT, WIDTH = 21, 35
BYTE_COMPRESSIONS = ("none", "lzw", "adobe_deflate", "deflate", "packbits", "zstd", "lzma")
# Photometric interpretation, samples, extra samples.
KINDS = {
    "white is zero": (0, 1, ()),
    "black is zero": (1, 1, ()),
    "gray and alpha": (1, 2, (2,)),
    "gray and associated alpha": (1, 2, (1,)),
    "white and alpha": (0, 2, (2,)),
    "rgb": (2, 3, ()),
    "rgb and alpha": (2, 4, (2,)),
    "rgb and associated alpha": (2, 4, (1,)),
    "rgb and infrared": (2, 4, (0,)),
    "rgb and two more": (2, 5, (2, 0)),
    "palette": (3, 1, ()),
    "cmyk": (5, 4, ()),
    "cmyk and alpha": (5, 5, (2,)),
}


def samples(bits: int, count: int) -> np.ndarray:
    """[H, W, count] values over the whole range of that many bits."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    shares = [x / (WIDTH - 1), y / (HEIGHT - 1), (x + y) % 17 / 16, (x * 2 + y) % 23 / 22, x % 7 / 6]
    return np.round(np.stack(shares[:count], axis=-1) * ((1 << bits) - 1)).astype(np.uint32)


def color_map(bits: int) -> list[int]:
    return [(index * 7919 + channel * 20011) % 65536 for channel in range(3) for index in range(1 << bits)]


def expected_rgb(values: np.ndarray, photometric: int, bits: int) -> np.ndarray:
    """The RGB pixels that the samples stand for (TIFF 6.0), 16 bits cut to the upper 8."""
    if photometric == 3:
        colors = np.array(color_map(bits)).reshape(3, -1) >> 8
        return np.moveaxis(colors[:, values[..., 0]], 0, -1)
    levels = values >> (bits - 8) if bits >= 8 else np.round(values * 255 / ((1 << bits) - 1)).astype(int)
    levels = levels.astype(int)
    if photometric == 5:
        return (255 - levels[..., :3]) * (255 - levels[..., 3:4]) // 255
    levels = levels[..., :3] if photometric == 2 else np.repeat(levels[..., :1], 3, axis=2)
    return 255 - levels if photometric == 0 else levels


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_pixels_that_were_written(kind: str, bits: int) -> None:
    photometric, count, extra = KINDS[kind]
    values = samples(bits, count)
    right = expected_rgb(values, photometric, bits)
    planes = (1, 2) if count > 1 else (1,)
    # Packing odd depths is slow in Python, so these have fewer of the combinations.
    compressions = BYTE_COMPRESSIONS if bits in (8, 16) else ("none", "lzw")
    for planar, compression, order, tile, is_big in product(
        planes, compressions, "<>", (None, (16, 16)), (False, True)
    ):
        if is_big and compression != "lzw":
            continue
        layout = Layout(photometric, bits, planar=planar, compression=compression, byte_order=order, tile=tile)
        layout.is_big, layout.extra_samples, layout.rows_per_strip = is_big, extra, None if tile else 8
        if photometric == 3:
            layout.tags[320] = (3, color_map(bits))
        found = decode_image(write_tiff(values, layout)).astype(int)
        # The CMYK conversions of Pillow and libtiff differ by one level.
        assert np.abs(found - right).max() <= (1 if photometric == 5 else 0), layout


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", ["lzw", "zstd", "adobe_deflate"])
def test_the_predictor_is_undone(bits: int, planar: int, order: str, compression: str) -> None:
    values = samples(bits, 3)
    for tile in (None, (16, 16)):
        layout = Layout(2, bits, planar=planar, compression=compression, byte_order=order, tile=tile, predictor=2)
        np.testing.assert_array_equal(decode_image(write_tiff(values, layout)), expected_rgb(values, 2, bits))


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
@pytest.mark.parametrize("compression", ["none", "lzw", "packbits"])
def test_reversed_bit_order_is_read(bits: int, compression: str) -> None:
    values = samples(bits, 1)
    payload = write_tiff(values, Layout(1, bits, compression=compression, fill_order=2))
    np.testing.assert_array_equal(decode_image(payload), expected_rgb(values, 1, bits))


@pytest.mark.parametrize(
    "kind", ["white is zero", "black is zero", "rgb", "rgb and associated alpha", "rgb and infrared"]
)
@pytest.mark.parametrize("bits", [8, 16])
def test_opencv_reads_the_same_pixels(kind: str, bits: int) -> None:
    photometric, count, extra = KINDS[kind]
    for planar, order in product((1, 2) if count > 1 else (1,), "<>"):
        layout = Layout(photometric, bits, planar=planar, byte_order=order, compression="lzw", extra_samples=extra)
        payload = write_tiff(samples(bits, count), layout)
        theirs = read_with_opencv(payload)
        # OpenCV rounds 16 bits to 8 where it converts them itself, and cuts where libtiff does.
        assert np.abs(decode_image(payload).astype(int) - theirs).max() <= 1, layout


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("count", [1, 3])
def test_jpeg_inside_is_read_as_opencv_does(planar: int, tile: tuple[int, int] | None, count: int) -> None:
    layout = Layout(
        6 if count == 3 and planar == 1 else 1 if count == 1 else 2, compression="jpeg", planar=planar, tile=tile
    )
    if count == 3 and planar == 1:
        layout.tags[530] = (3, [1, 1])
    payload = write_tiff(samples(8, count).astype(np.uint8), layout)
    np.testing.assert_array_equal(decode_image(payload), read_with_opencv(payload))


@pytest.mark.parametrize("planar", [1, 2])
def test_ycbcr_of_full_range_is_converted(planar: int) -> None:
    rgb = expected_rgb(samples(8, 3), 2, 8)
    values = np.asarray(Image.fromarray(rgb.astype(np.uint8)).convert("YCbCr"))
    payload = write_tiff(values, Layout(6, planar=planar, tags={530: (3, [1, 1])}))
    assert np.abs(decode_image(payload).astype(int) - rgb).max() <= 3
    assert np.abs(decode_image(payload).astype(int) - read_with_opencv(payload)).max() <= 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_palette_of_8_bit_levels_is_not_black(bits: int) -> None:
    """Some writers store levels of 0 to 255 in the map of 16-bit values."""
    values = samples(bits, 1)
    colors = [value >> 8 for value in color_map(bits)]
    payload = write_tiff(values, Layout(3, bits, tags={320: (3, colors)}))
    np.testing.assert_array_equal(decode_image(payload), expected_rgb(values, 3, bits))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_on_every_path(bits: int, orientation: int) -> None:
    payload = write_tiff(samples(bits, 3), Layout(2, bits, orientation=orientation))
    assert np.abs(decode_image(payload).astype(int) - read_with_opencv(payload)).max() <= 1


@pytest.mark.parametrize(
    ("bits", "sample_format", "reason"),
    [
        (8, 2, "signed 8-bit samples"),
        (16, 2, "signed 16-bit samples"),
        (32, 1, "unsigned 32-bit samples"),
        (32, 2, "signed 32-bit samples"),
        (64, 1, "unsigned 64-bit samples"),
        (16, 3, "floating-point 16-bit samples"),
        (32, 3, "floating-point 32-bit samples"),
        (64, 3, "floating-point 64-bit samples"),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_samples_without_a_defined_brightness_are_named(bits: int, sample_format: int, reason: str, count: int) -> None:
    values = samples(7, count).astype(np.float64 if sample_format == 3 else np.int64)
    for planar, order, predictor in product((1, 2), "<>", (1, 3) if sample_format == 3 else (1, 2)):
        layout = Layout(1 if count == 1 else 2, bits, sample_format=sample_format, planar=planar, byte_order=order)
        layout.compression, layout.predictor = "adobe_deflate", predictor
        error = decode_error(write_tiff(values, layout))
        assert (error.status, reason in error.reason) == ("unreadable", True), error.reason
        assert "damaged" not in error.reason


@pytest.mark.parametrize(
    ("layout", "count", "reason"),
    [
        (Layout(8), 3, "CIE L*a*b*"),
        (Layout(6), 3, "YCbCr"),
        (Layout(6, tags={530: (3, [1, 1]), 532: (4, [1] * 6)}), 3, "YCbCr"),
        (Layout(2, bits=(5, 6, 5)), 3, "different depths"),
        (Layout(5, tags={332: (3, [2])}), 4, "inks other than CMYK"),
        (Layout(2, compression="jpeg2000"), 3, "JPEG 2000"),
        (Layout(2, compression="jpegxl"), 3, "JPEG XL"),
        (Layout(1, compression="lerc"), 1, "LERC"),
        (Layout(2, compression="webp"), 3, "WebP"),
        (Layout(2, tags={32997: (4, [4])}, bits=16), 3, "slices"),
    ],
)
def test_an_unsupported_layout_is_named(layout: Layout, count: int, reason: str) -> None:
    values = samples(5, count).astype(np.uint8)
    error = decode_error(write_tiff(values, layout))
    assert error.status == "unreadable"
    assert reason in error.reason
    assert "damaged" not in error.reason
    assert "save" in error.reason


def test_12_bit_jpeg_is_refused() -> None:
    buffer = io.BytesIO()
    deep = samples(12, 1)[..., 0].astype(np.uint16)
    options = {"compressionargs": {"bitspersample": 12, "lossless": False}, "bitspersample": 12}
    tifffile.imwrite(buffer, deep, photometric="minisblack", compression="jpeg", **options)
    assert "JPEG and 12-bit samples" in decode_error(buffer.getvalue()).reason


# --- which page ---------------------------------------------------------------------------------------------


def page(shade: int, *, is_reduced: bool = False, size: int = 16, bits: int = 8) -> tuple[np.ndarray, Layout]:
    tags = {254: (4, [1])} if is_reduced else {}
    return np.full((size, size, 3), shade << (bits - 8)), Layout(2, bits, tags=tags)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_first_page_is_read_unless_it_is_a_reduced_copy(bits: int) -> None:
    first = write_pages([page(10, bits=bits), page(20, bits=bits)])
    assert decode_image(first)[0, 0, 0] == 10
    thumbnail_first = write_pages([page(30, is_reduced=True), page(40, size=32, bits=bits)])
    assert decode_image(thumbnail_first)[0, 0, 0] == 40
    assert decode_image(thumbnail_first).shape == (32, 32, 3)
    assert decode_image(write_pages([page(50, is_reduced=True)]))[0, 0, 0] == 50


def with_sub_image(thumbnail: Layout, sub: Layout) -> bytes:
    """A thumbnail whose SubIFDs tag leads to another image, as in DNG, NEF and ARW."""
    payload = bytearray(write_pages([(samples(8, 3), thumbnail), (samples(8, 1), sub)]))
    (directory,) = struct.unpack_from("<I", payload, 4)
    (count,) = struct.unpack_from("<H", payload, directory)
    end = directory + 2 + 12 * count
    (second,) = struct.unpack_from("<I", payload, end)
    struct.pack_into("<I", payload, end, 0)
    for entry in range(directory + 2, end, 12):
        if struct.unpack_from("<H", payload, entry)[0] == 330:
            struct.pack_into("<I", payload, entry + 8, second)
    return bytes(payload)


@pytest.mark.parametrize(
    ("tags", "sub_photometric", "reason"),
    [
        ({50706: (1, [1, 4, 0, 0])}, 34892, "DNG"),
        ({271: (2, b"NIKON CORPORATION\0")}, 32803, "NIKON CORPORATION"),
        ({271: (2, b"SONY\0")}, 32803, "SONY"),
        ({}, 32803, "camera raw"),
    ],
)
def test_a_camera_raw_file_is_not_read_as_its_thumbnail(
    tags: dict[int, tuple[int, bytes | list[int]]], sub_photometric: int, reason: str
) -> None:
    for subfile_type in ([1], [0]):
        thumbnail = Layout(2, tags={254: (4, subfile_type), 330: (4, [0]), **tags})
        error = decode_error(with_sub_image(thumbnail, Layout(sub_photometric, 16)))
        assert error.status == "unreadable"
        assert reason in error.reason
        assert "camera raw" in error.reason


def test_raw_is_known_by_a_dng_version_or_a_colour_filter_in_the_first_page() -> None:
    assert "DNG" in decode_error(write_tiff(samples(8, 3), Layout(2, tags={50706: (1, [1, 4, 0, 0])}))).reason
    assert "camera raw" in decode_error(write_tiff(samples(12, 1), Layout(32803, 12))).reason
    canon = bytearray(write_tiff(samples(8, 3), Layout(2, tags={271: (2, b"Canon\0")})))
    body = bytes(canon[:8]) + b"CR\x02\0" + bytes(canon[8:])
    shifted = shift_offsets(body, 4)
    assert "CR2" in decode_error(shifted).reason


def shift_offsets(payload: bytes, by: int) -> bytes:
    moved = bytearray(payload)
    directory = struct.unpack_from("<I", moved, 4)[0] + by
    struct.pack_into("<I", moved, 4, directory)
    return bytes(moved)


def test_a_tiff_with_a_camera_maker_is_not_a_raw_file() -> None:
    values = samples(16, 3)
    payload = write_tiff(values, Layout(2, 16, tags={271: (2, b"NIKON CORPORATION\0")}))
    np.testing.assert_array_equal(decode_image(payload), expected_rgb(values, 2, 16))


# --- damaged and hostile files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("tag", [700, 34675, 33723, 34377, 34665, 34853])
def test_an_image_with_damaged_metadata_is_decoded(bits: int, tag: int) -> None:
    values = samples(bits, 3)
    kind: tuple[int, list[int] | bytes] = (4, [2**31]) if tag in (34665, 34853) else (7, b"junk" * 300)
    payload = write_tiff(values, Layout(2, bits, tags={tag: kind}))
    np.testing.assert_array_equal(decode_image(payload), expected_rgb(values, 2, bits))


@pytest.mark.parametrize("compression", ["none", "lzw", "zstd"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_missing_strips_are_an_error(compression: str, share: float) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)
    tifffile.imwrite(buffer, noise, rowsperstrip=8, compression=None if compression == "none" else compression)
    whole = buffer.getvalue()
    assert decode_error(whole[: int(len(whole) * share)]).status == "unreadable"


def test_a_sparse_file_is_not_filled_with_black() -> None:
    payload = bytearray(write_tiff(samples(16, 1), Layout(1, 16, tile=(16, 16))))
    place = payload.index(struct.pack("<HHI", 325, 4, 6)) + 8
    (sizes,) = struct.unpack_from("<I", payload, place)
    struct.pack_into("<I", payload, sizes, 0)
    assert "missing" in decode_error(bytes(payload)).reason


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_limit_is_checked_before_decoding(bits: int) -> None:
    error = decode_error(write_tiff(samples(bits, 3), Layout(2, bits)), max_pixels=HEIGHT * WIDTH - 1)
    assert error.status == "too_large"
    claimed = write_tiff(samples(bits, 3), Layout(2, bits, tags={256: (4, [1 << 20]), 257: (4, [1 << 20])}))
    assert decode_error(claimed).status == "too_large"


@pytest.mark.parametrize(
    "tags",
    [
        {322: (4, [1 << 30]), 323: (4, [1 << 30])},
        {322: (4, [0]), 323: (4, [0])},
        {322: (4, [1]), 323: (4, [1])},
        {277: (3, [60000])},
        {278: (4, [0])},
        {258: (3, [0])},
        {258: (3, [65535])},
        {284: (3, [7])},
        {317: (3, [34892])},
        {339: (3, [9])},
        {257: (4, [0])},
        {330: (4, [8])},
    ],
)
def test_hostile_tags_are_refused_without_filling_the_memory(tags: dict[int, tuple[int, list[int]]]) -> None:
    tile = (16, 16) if 322 in tags else None
    payload = write_tiff(samples(16, 3), Layout(2, 16, tile=tile, tags=tags))
    assert outcome(payload) in ("unreadable", (HEIGHT, WIDTH, 3))


def test_a_tag_of_billions_of_values_is_refused_by_its_count() -> None:
    payload = bytearray(write_tiff(samples(16, 1), Layout(1, 16)))
    place = payload.index(struct.pack("<HHI", 273, 4, 1))
    struct.pack_into("<I", payload, place + 4, 2**31)
    assert "values" in decode_error(bytes(payload)).reason


def test_a_small_deflated_strip_cannot_grow_without_bound() -> None:
    bomb = write_tiff(np.zeros((2000, 2000, 1)), Layout(1, 16, compression="adobe_deflate"))
    # The tags say ten rows; the strip decompresses to two thousand.
    place = bomb.index(struct.pack("<HHI", 257, 4, 1)) + 8
    payload = bytearray(bomb)
    struct.pack_into("<I", payload, place, 10)
    assert outcome(bytes(payload)) in ("unreadable", (10, 2000, 3))


def test_an_ordinary_tiff_is_decoded_by_pillow() -> None:
    for options in ({}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "packbits"}):
        payload = encoded(gradient(), "TIFF", **options)
        assert open_tiff(payload, max_pixels=10_000).is_for_pillow
        assert decode_image(payload).shape == (24, 40, 3)


def outcome(payload: bytes) -> str | tuple[int, ...]:
    """The shape of the decoded image, or the error's status; any other error fails the test."""
    try:
        return decode_image(payload).shape
    except ImageError as error:
        return error.status


def read_with_opencv(payload: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return np.asarray(pixels)[..., ::-1].astype(int)
