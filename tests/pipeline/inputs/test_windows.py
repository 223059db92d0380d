"""Windows of a TIFF have the pixels of the whole image, whatever its layout; other formats are decoded whole."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import Resampling
from rasterio.io import MemoryFile

import pipeline.inputs.windows as windows_module
from pipeline.errors import ImageError, IncompleteReadError, NotFoundError
from pipeline.inputs.byte_ranges import BLOCK_BYTES, PayloadRanges, StoredRanges
from pipeline.inputs.decode import decode_image
from pipeline.inputs.formats.bands import AS_STORED, BandRule
from pipeline.inputs.image_ref import ImageRef, tar_uri
from pipeline.inputs.raster import GDAL_CACHE_BYTES
from pipeline.inputs.tiff_windows import NotByWindowsError, TiffWindows
from pipeline.inputs.windows import FILL_COLOR, ArrayWindows, open_windows
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.pipeline.inputs.formats.test_tiff import BYTE_COMPRESSIONS, KINDS, color_map, samples
from tests.support.builders.images import encoded, gradient
from tests.support.builders.tiff_writer import Layout, write_tiff
from tests.support.servers.plain_s3 import plain_s3

MOST = 10**6
PLACES = [(0, 0, 21, 35), (3, 5, 10, 11), (20, 34, 1, 1), (15, 0, 6, 35)]


def windows_of(payload: bytes, rule: BandRule = AS_STORED, max_pixels: int = MOST) -> TiffWindows:
    return TiffWindows(PayloadRanges(payload), rule=rule, max_pixels=max_pixels)


def check_equal(payload: bytes, rule: BandRule = AS_STORED) -> None:
    """Compare windows with the whole image, where it shows something."""
    whole = decode_image(payload, rule=rule)
    image = windows_of(payload, rule)
    assert image.size == whole.shape[:2]
    for top, left, height, width in PLACES if whole.shape[0] == 21 else [(y, x, w, h) for x, y, h, w in PLACES]:
        expected = whole[top : top + height, left : left + width].copy()
        valid = image.valid(top, left, height, width)
        if valid is not None:
            expected[~valid] = FILL_COLOR
        found = image.read(top, left, height, width)
        assert (found.dtype, found.flags.c_contiguous, found.flags.writeable) == (np.uint8, True, True)
        np.testing.assert_array_equal(found, expected)
    image.close()


def layout_of(kind: str, bits: int, **more: Any) -> tuple[NDArray[np.uint32], Layout]:
    photometric, count, extra = KINDS[kind]
    tags = {320: (3, color_map(bits))} if photometric == 3 else {}
    return samples(bits, count), Layout(photometric, bits, extra_samples=extra, tags=tags, **more)


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "cmyk" not in kind])
def test_windows_of_every_layout_are_parts_of_the_whole(kind: str, bits: int) -> None:
    for planar, order, tile in product((1, 2), "<>", (None, (16, 32))):
        strips = None if tile else 8
        check_equal(
            write_tiff(*layout_of(kind, bits, planar=planar, byte_order=order, tile=tile, rows_per_strip=strips))
        )


@pytest.mark.parametrize("compression", BYTE_COMPRESSIONS)
def test_windows_of_every_compression(compression: str) -> None:
    for bits, tile, is_big in product((8, 16), (None, (16, 16)), (False, True)):
        check_equal(write_tiff(*layout_of("rgb", bits, compression=compression, tile=tile, is_big=is_big)))
    check_equal(write_tiff(*layout_of("rgb", 16, compression="lzw", predictor=2)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_are_upright(orientation: int) -> None:
    check_equal(write_tiff(*layout_of("rgb", 8, orientation=orientation, tile=(16, 16))))


@pytest.mark.parametrize("photometric", [1, 2, 6])
def test_windows_of_jpeg_tiles(photometric: int) -> None:
    count = 1 if photometric == 1 else 3
    for planar, tile in product((1,) if photometric != 2 else (2,), (None, (16, 16))):
        tags = {530: (3, [1, 1])} if photometric == 6 else {}
        layout = Layout(photometric, compression="jpeg", planar=planar, tile=tile, tags=tags)
        check_equal(write_tiff(samples(8, count).astype(np.uint8), layout))


def test_interpolated_colours_are_read_by_windows_only_where_the_whole_is_too_large(tmp_path: Path) -> None:
    pixels = np.moveaxis(np.asarray(gradient(70, 90)), -1, 0)
    payload = written(pixels, photometric="YCBCR", compress="jpeg", tiled=True, blockxsize=32, blockysize=32)
    (tmp_path / "a.tif").write_bytes(payload)
    ref = ImageRef(str(tmp_path / "a.tif"))
    whole, _ = open_windows(ref, Storage(), max_bytes=len(payload))
    assert isinstance(whole, ArrayWindows)
    np.testing.assert_array_equal(whole.read(31, 33, 34, 40), decode_image(payload)[31:65, 33:73])
    for limits in ({"max_pixels": 70 * 90 - 1}, {"max_bytes": len(payload) - 1}):
        windowed, _ = open_windows(ref, Storage(), **limits)
        assert isinstance(windowed, TiffWindows)
        difference = windowed.read(0, 0, 70, 90).astype(int) - decode_image(payload)
        assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("kind", ["cmyk", "cmyk and alpha"])
def test_what_gdal_converts_itself_is_decoded_whole(kind: str, tmp_path: Path) -> None:
    payload = write_tiff(*layout_of(kind, 8))
    with pytest.raises(NotByWindowsError):
        windows_of(payload)
    (tmp_path / "ink.tif").write_bytes(payload)
    image, _ = open_windows(ImageRef(str(tmp_path / "ink.tif")), Storage())
    assert isinstance(image, ArrayWindows)
    np.testing.assert_array_equal(image.read(0, 0, *image.size), decode_image(payload))


def test_an_unsupported_layout_has_the_sentence_of_the_whole_image() -> None:
    for layout, values in [
        (Layout(1, 32, sample_format=3), samples(8, 1).astype(np.float32)),
        (Layout(8), samples(8, 3)),
    ]:
        payload = write_tiff(values, layout)
        with pytest.raises(ImageError) as whole:
            decode_image(payload)
        with pytest.raises(ImageError) as windowed:
            windows_of(payload)
        assert str(windowed.value) == str(whole.value)


# --- no data ---------------------------------------------------------------------------------------------------------


def written(pixels: NDArray[Any], **options: Any) -> bytes:
    """Write [bands, H, W] samples as a GeoTIFF."""
    count, height, width = pixels.shape
    options = {"transform": Affine(3, 0, 1, 0, -3, 2)} | options
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, **options) as out:
            out.write(pixels)
        return bytes(memory.getbuffer())


def scene(height: int = 40, width: int = 50, bands: int = 3, dtype: str = "uint8") -> NDArray[Any]:
    values = np.random.default_rng(3).integers(1, 200, (bands, height, width))
    return (values * (257 if dtype == "uint16" else 1)).astype(dtype)


HOLE = (slice(None), slice(10, 20), slice(5, 30))


def check_hole(payload: bytes, rule: BandRule = AS_STORED) -> None:
    image = windows_of(payload, rule)
    expected = np.ones(image.size, bool)
    expected[HOLE[1:]] = False
    valid = image.valid(0, 0, *image.size)
    assert valid is not None
    np.testing.assert_array_equal(valid, expected)
    pixels = image.read(0, 0, *image.size)
    assert (pixels[~expected] == FILL_COLOR).all()
    np.testing.assert_array_equal(pixels[expected], decode_image(payload, rule=rule)[expected])
    assert image.valid(0, 0, 10, 50) is None
    part = image.valid(8, 0, 4, 6)
    assert part is not None
    np.testing.assert_array_equal(part, expected[8:12, :6])


def test_the_no_data_value_is_no_data() -> None:
    pixels = scene()
    pixels[HOLE] = 0
    # A pixel of which one band only has the value is a dark colour.
    pixels[0, 30, 30] = 0
    check_hole(written(pixels, nodata=0, photometric="RGB"))
    deep = scene(dtype="uint16")
    deep[HOLE] = 65535
    check_hole(written(deep, nodata=65535, photometric="RGB", tiled=True, blockxsize=16, blockysize=16))


def test_transparent_pixels_are_no_data_and_faint_ones_are() -> None:
    alpha = np.full((1, 40, 50), 255, np.uint8)
    alpha[HOLE] = 0
    alpha[:, 30:, :] = 1
    check_hole(written(np.concatenate([scene(), alpha]), photometric="RGB", alpha="YES"))


def test_the_mask_in_the_file_counts() -> None:
    with MemoryFile() as memory, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with memory.open(
            driver="GTiff",
            count=3,
            height=40,
            width=50,
            dtype="uint8",
            photometric="RGB",
            transform=Affine(3, 0, 1, 0, -3, 2),
        ) as out:
            out.write(scene())
            mask = np.ones((40, 50), bool)
            mask[HOLE[1:]] = False
            out.write_mask(mask)
        check_hole(bytes(memory.getbuffer()))


def test_missing_tiles_of_a_sparse_file_are_no_data() -> None:
    pixels = scene(48, 48)
    pixels[:, 16:32, 16:32] = 0
    payload = written(pixels, photometric="RGB", tiled=True, blockxsize=16, blockysize=16, SPARSE_OK="TRUE")
    with pytest.raises(ImageError, match="sparse"):
        decode_image(payload)
    image = windows_of(payload)
    valid = image.valid(10, 12, 30, 30)
    assert valid is not None
    expected = np.ones((30, 30), bool)
    expected[6:22, 4:20] = False
    np.testing.assert_array_equal(valid, expected)


@pytest.mark.parametrize("kind", ["PNG", "WebP", "palette", "16-bit gray"])
def test_transparent_pixels_of_other_formats(kind: str, tmp_path: Path) -> None:
    pixels = np.dstack([np.asarray(gradient(40, 50)), np.full((40, 50), 255, np.uint8)])
    pixels[HOLE[1:]] = (9, 8, 7, 0)
    image = Image.fromarray(pixels)
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WebP" else {}
    if kind == "palette":
        numbers = np.zeros((40, 50), np.uint8)
        numbers[HOLE[1:]] = 1
        image = Image.fromarray(numbers, "P")
        image.putpalette([10, 20, 30, 40, 50, 60])
        options["transparency"] = 1
    if kind == "16-bit gray":
        levels = np.full((40, 50), 3000, np.uint16)
        levels[HOLE[1:]] = 77
        image, options = Image.fromarray(levels), {"transparency": 77}
    payload = encoded(image, "WebP" if kind == "WebP" else "PNG", **options)
    (tmp_path / "a").write_bytes(payload)
    opened, _ = open_windows(ImageRef(str(tmp_path / "a")), Storage())
    valid = opened.valid(0, 0, 40, 50)
    assert valid is not None
    expected = np.ones((40, 50), bool)
    expected[HOLE[1:]] = False
    np.testing.assert_array_equal(valid, expected)
    found = opened.read(0, 0, 40, 50)
    assert (found[~valid] == FILL_COLOR).all()
    # Decoding whole, without windows, drops transparency as ever.
    np.testing.assert_array_equal(found[valid], decode_image(payload)[valid])
    assert not (decode_image(payload)[~valid] == FILL_COLOR).all()
    assert opened.valid(0, 0, 5, 50) is None


# --- bands and ranges of values --------------------------------------------------------------------------------------


def test_bands_are_chosen_in_windows_and_in_the_whole() -> None:
    pixels = scene(21, 35, bands=5, dtype="uint16")
    payload = written(pixels, interleave="band", tiled=True, blockxsize=16, blockysize=16)
    check_equal(payload)
    np.testing.assert_array_equal(decode_image(payload), np.moveaxis(pixels[:3] >> 8, 0, -1))
    rule = BandRule(bands=(5, 3, 3))
    check_equal(payload, rule)
    np.testing.assert_array_equal(decode_image(payload, rule=rule), np.moveaxis(pixels[[4, 2, 2]] >> 8, 0, -1))
    for act in (lambda rule: decode_image(payload, rule=rule), lambda rule: windows_of(payload, rule)):
        with pytest.raises(ImageError, match=r"5 bands; input\.bands asks for band 6"):
            act(BandRule(bands=(6, 1, 1)))


def test_bands_of_eight_bits_and_of_other_formats() -> None:
    rgba = write_tiff(*layout_of("rgb and infrared", 8))
    check_equal(rgba, BandRule(bands=(4, 1, 2)))
    values = samples(8, 4)
    np.testing.assert_array_equal(decode_image(rgba, rule=BandRule((4, 1, 2))), values[..., [3, 0, 1]])
    np.testing.assert_array_equal(decode_image(rgba, rule=BandRule((3, 2, 1))), values[..., [2, 1, 0]])
    png = encoded(gradient(21, 35), "PNG")
    np.testing.assert_array_equal(decode_image(png, rule=BandRule((3, 2, 1))), decode_image(png)[..., ::-1])
    with pytest.raises(ImageError, match=r"3 bands; input\.bands asks for band 4"):
        decode_image(png, rule=BandRule((4, 3, 2)))
    gray = write_tiff(*layout_of("black is zero", 8))
    with pytest.raises(ImageError, match=r"1 band; input\.bands asks for band 3"):
        decode_image(gray, rule=BandRule((1, 2, 3)))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "float32", "float64"])
def test_a_range_of_values_becomes_0_to_255_alike_in_every_window(dtype: str) -> None:
    values = np.linspace(0 if dtype[0] == "u" else -500, 9000, 3 * 21 * 35).reshape(3, 21, 35).astype(dtype)
    payload = written(values, compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    rule = BandRule(value_range=(100, 8000))
    check_equal(payload, rule)
    expected = np.rint(np.clip((np.moveaxis(values, 0, -1).astype(float) - 100) / 7900, 0, 1) * 255)
    assert np.abs(decode_image(payload, rule=rule) - expected).max() <= 1
    assert decode_image(payload, rule=rule).min() == 0
    assert decode_image(payload, rule=rule).max() == 255
    if dtype != "uint16":
        with pytest.raises(ImageError, match=r"no defined brightness; .* input\.value_range"):
            decode_image(payload)


def test_not_a_number_is_no_data() -> None:
    values = np.full((1, 40, 50), 0.5, np.float32)
    values[HOLE] = np.nan
    check_hole(written(values), BandRule(value_range=(0, 1)))


def test_eight_bits_are_not_scaled() -> None:
    payload = write_tiff(*layout_of("rgb", 8))
    np.testing.assert_array_equal(decode_image(payload, rule=BandRule(value_range=(0, 10))), decode_image(payload))


# --- where files are -------------------------------------------------------------------------------------------------


def big_tiff(side: int = 1024) -> tuple[bytes, NDArray[np.uint8]]:
    """A BigTIFF of incompressible tiles with reduced copies, 4 MiB."""
    pixels = np.random.default_rng(0).integers(1, 255, (3, side, side), dtype=np.uint8)
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            count=3,
            height=side,
            width=side,
            dtype="uint8",
            photometric="RGB",
            tiled=True,
            blockxsize=128,
            blockysize=128,
            BIGTIFF="YES",
            crs="EPSG:32633",
            transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
        ) as out:
            out.write(pixels)
            out.build_overviews([2, 4, 8], Resampling.nearest)
        return bytes(memory.getbuffer()), np.moveaxis(pixels, 0, -1)


@pytest.fixture(scope="module")
def large() -> tuple[bytes, NDArray[np.uint8]]:
    return big_tiff()


@pytest.fixture
def bucket(large: tuple[bytes, Any]) -> Iterator[tuple[dict[str, bytes], list[tuple[str, int]], Storage]]:
    objects, served = {"a/big.tif": large[0]}, list[tuple[str, int]]()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with plain_s3(objects, served) as endpoint, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "hush-hush")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield objects, served, Storage(StorageSection(endpoint_url=endpoint, patience_s=5))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


REMOTE = ImageRef("s3://bucket/a/big.tif")


def test_a_remote_big_tiff_is_read_where_it_is_needed(
    large: tuple[bytes, NDArray[np.uint8]], bucket: tuple[Any, list[tuple[str, int]], Storage]
) -> None:
    payload, pixels = large
    _, served, storage = bucket
    image, read = open_windows(REMOTE, storage, max_bytes=1000)
    assert isinstance(image, TiffWindows)
    assert (image.size, read.bytes, read.is_changed) == ((1024, 1024), len(payload), None)
    np.testing.assert_array_equal(image.read(500, 300, 100, 120), pixels[500:600, 300:420])
    assert sum(size for _, size in served) < len(payload) / 6
    requests = len(served)
    np.testing.assert_array_equal(image.read(510, 310, 50, 50), pixels[510:560, 310:360])
    assert len(served) == requests
    small = image.read_downsampled(100)
    assert small.shape == (100, 100, 3)
    assert sum(size for _, size in served) < len(payload) / 3
    assert read.georeference == image.georeference
    assert image.georeference is not None
    assert (image.georeference.crs, image.georeference.transform) == (
        "EPSG:32633",
        (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0),
    )


def test_two_versions_are_never_mixed(bucket: tuple[dict[str, bytes], Any, Storage]) -> None:
    objects, _, storage = bucket
    image, _ = open_windows(REMOTE, storage)
    image.read(0, 0, 10, 10)
    objects["a/big.tif"] = objects["a/big.tif"][:-1] + b"x"
    with pytest.raises(IncompleteReadError, match=r"s3://bucket/a/big\.tif was replaced while it was read"):
        image.read(900, 900, 20, 20)
    # The next attempt reads what is there now, and knows that it is another version than the listed one.
    again, read = open_windows(ImageRef(REMOTE.uri, etag="listed"), storage)
    assert again.read(900, 900, 20, 20).shape == (20, 20, 3)
    assert read.is_changed is True


def test_an_object_that_is_deleted_is_missing(bucket: tuple[dict[str, bytes], Any, Storage]) -> None:
    objects, _, storage = bucket
    image, _ = open_windows(REMOTE, storage)
    del objects["a/big.tif"]
    with pytest.raises(NotFoundError):
        image.read(900, 900, 20, 20)
    with pytest.raises(NotFoundError):
        open_windows(REMOTE, storage)


def test_a_local_file_that_is_replaced_is_not_mixed(tmp_path: Path, large: tuple[bytes, Any]) -> None:
    path = tmp_path / "big.tif"
    path.write_bytes(large[0])
    image, _ = open_windows(ImageRef(str(path)), Storage())
    image.read(0, 0, 10, 10)
    path.write_bytes(large[0] + b"more")
    with pytest.raises(IncompleteReadError, match="was replaced"):
        image.read(900, 900, 20, 20)


def test_a_member_of_a_tar_is_read_in_place(tmp_path: Path, large: tuple[bytes, NDArray[np.uint8]]) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, payload in (("other.jpg", b"x" * 5000), ("in/big.tif", large[0])):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
        offset = tar.getmembers()[-1].offset_data if tar.getmembers() else 0
    with tarfile.open(path) as tar:
        offset = tar.getmember("in/big.tif").offset_data
    storage = Storage()
    etag = storage.stat(str(path)).etag
    ref = ImageRef(tar_uri("in/big.tif", str(path)), bytes=len(large[0]), etag=etag, container=str(path), offset=offset)
    image, read = open_windows(ref, storage, max_bytes=10_000)
    np.testing.assert_array_equal(image.read(500, 300, 100, 120), large[1][500:600, 300:420])
    assert (read.bytes, read.etag, read.is_changed) == (len(large[0]), etag, False)


def test_blocks_are_joined_to_requests_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = np.random.default_rng(0).bytes(BLOCK_BYTES * 10 + 17)
    (tmp_path / "a").write_bytes(payload)
    storage = Storage()
    ranges = StoredRanges(storage, storage.stat(str(tmp_path / "a")))
    assert ranges.read_at(100, 50) == payload[100:150]
    assert ranges.read_at(0, 4 * BLOCK_BYTES) == payload[: 4 * BLOCK_BYTES]
    assert (ranges.requests, ranges.bytes_read) == (2, 4 * BLOCK_BYTES)
    assert ranges.read_at(len(payload) - 5, 100) == payload[-5:]
    assert ranges.read_at(len(payload), 100) == b""
    monkeypatch.setattr("pipeline.inputs.byte_ranges.CACHE_BYTES", 2 * BLOCK_BYTES)
    assert ranges.read_at(0, len(payload)) == payload
    before = ranges.requests
    assert ranges.read_at(10, 10) == payload[10:20]
    assert ranges.requests == before + 1


def test_threads_may_take_turns_with_an_image(tmp_path: Path, large: tuple[bytes, NDArray[np.uint8]]) -> None:
    path = tmp_path / "big.tif"
    path.write_bytes(large[0])
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        image, _ = first.submit(open_windows, ImageRef(str(path)), Storage()).result()
        for pool in (second, first):
            found = pool.submit(image.read, 500, 300, 100, 120).result()
            np.testing.assert_array_equal(found, large[1][500:600, 300:420])
        second.submit(image.close).result()

    def read(seed: int) -> bool:
        image, _ = open_windows(ImageRef(str(path)), Storage())
        places = np.random.default_rng(seed).integers(0, 900, (5, 2)).tolist()
        equal = [(image.read(y, x, 64, 64) == large[1][y : y + 64, x : x + 64]).all() for y, x in places]
        image.close()
        return all(equal)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(12)))


# --- limits and damage -----------------------------------------------------------------------------------------------


def test_without_the_package_small_files_are_read_whole(
    tmp_path: Path, large: tuple[bytes, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_module, "has_rasterio", lambda: False)
    path = tmp_path / "big.tif"
    path.write_bytes(large[0])
    image, read = open_windows(ImageRef(str(path)), Storage())
    assert isinstance(image, ArrayWindows)
    np.testing.assert_array_equal(image.read(5, 6, 7, 8), large[1][5:12, 6:14])
    assert image.georeference is not None
    assert image.georeference == read.georeference
    assert image.georeference.crs == "EPSG:32633"
    for limits in ({"max_pixels": 1000}, {"max_bytes": 1000}):
        with pytest.raises(ImageError, match=r"limit|max_bytes") as caught:
            open_windows(ImageRef(str(path)), Storage(), **limits)
        assert caught.value.status == "too_large"
        assert "pip install 'htc-batch[geo]'" in caught.value.reason


def test_gdal_keeps_no_more_decoded_tiles_than_it_may(tmp_path: Path) -> None:
    """In a process of its own, as GDAL reads the limit once."""
    (tmp_path / "a.tif").write_bytes(write_tiff(*layout_of("rgb", 8)))
    program = (
        "import sys\n"
        "from pipeline.inputs import ImageRef, open_windows\n"
        "from pipeline.storage.storage import Storage\n"
        "open_windows(ImageRef(sys.argv[1]), Storage())[0].read(0, 0, 5, 5)\n"
        "from rasterio._env import get_gdal_config\n"
        "print(get_gdal_config('GDAL_CACHEMAX'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GDAL_CACHEMAX"}
    command = [sys.executable, "-c", program, str(tmp_path / "a.tif")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == GDAL_CACHE_BYTES


def test_limits_are_for_what_is_decoded_whole(tmp_path: Path, large: tuple[bytes, Any]) -> None:
    (tmp_path / "big.tif").write_bytes(large[0])
    image, _ = open_windows(ImageRef(str(tmp_path / "big.tif")), Storage(), max_pixels=200 * 200, max_bytes=1000)
    assert image.size == (1024, 1024)
    (tmp_path / "a.png").write_bytes(encoded(gradient(300, 300), "PNG"))
    with pytest.raises(ImageError, match="90000 pixels"):
        open_windows(ImageRef(str(tmp_path / "a.png")), Storage(), max_pixels=200 * 200)


def test_a_strip_larger_than_the_limit_is_refused_with_the_way_out() -> None:
    payload = write_tiff(*layout_of("rgb", 8, compression="lzw"))
    with pytest.raises(ImageError, match=r"35 x 21 pixels, .* TILED=YES") as caught:
        windows_of(payload, max_pixels=35 * 20)
    assert caught.value.status == "too_large"
    # Without compression a strip is read line by line.
    assert windows_of(write_tiff(*layout_of("rgb", 8)), max_pixels=35 * 20).size == (21, 35)


@pytest.mark.parametrize("kept", [6, 10, 100])
def test_a_file_that_ends_early_is_named_so(kept: int) -> None:
    # The directory is at the end; the header's 8 bytes say where.
    payload = write_tiff(*layout_of("rgb", 8, tile=(16, 16)))
    place = int.from_bytes(payload[4:8], sys.byteorder)
    with pytest.raises(ImageError, match=r"^unreadable: truncated TIFF: the file ends before the image does$"):
        windows_of(payload[: place + kept])


def test_damage_is_a_reason_not_wrong_pixels(large: tuple[bytes, Any]) -> None:
    payload = write_tiff(*layout_of("rgb", 8, compression="zstd", tile=(16, 16)))
    at = payload.index(b"\x28\xb5\x2f\xfd")
    broken = bytearray(payload)
    broken[at : at + 40] = bytes(40)
    with pytest.raises(ImageError, match="damaged TIFF") as caught:
        windows_of(bytes(broken)).read(0, 0, 21, 35)
    assert caught.value.status == "unreadable"
    assert "\n" not in caught.value.reason
    assert "htc-" not in caught.value.reason
    for share in (0.00001, 0.001, 0.5):
        with pytest.raises(ImageError):
            windows_of(large[0][: int(len(large[0]) * share)]).read(0, 0, 1024, 1024)


def test_a_window_outside_is_a_mistake_of_the_caller() -> None:
    image = windows_of(write_tiff(*layout_of("rgb", 8)))
    for place in ((0, 0, 22, 35), (-1, 0, 2, 2), (0, 0, 0, 5), (20, 30, 1, 6)):
        with pytest.raises(ValueError, match="is not within"):
            image.read(*place)
        with pytest.raises(ValueError, match="is not within"):
            ArrayWindows(np.zeros((21, 35, 3), np.uint8)).valid(*place)
