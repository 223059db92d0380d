"""TIFF, BigTIFF and GeoTIFF read by windows: samples by GDAL, everything else as when a file is decoded whole.

GDAL finds, reads and decompresses the strips or tiles of a window. Depths, palettes, inks, bands and orientation are
then treated by the functions of `pipeline.inputs.formats.tiff`, so that a window has the pixels of the whole image.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.inputs.byte_ranges import ByteRanges, RangeFile
from pipeline.inputs.formats.bands import AS_STORED, BandRule, check_bands, permute
from pipeline.inputs.formats.tiff import TiffPage, choose_page, levels_type, to_levels, to_rgb, turn_upright
from pipeline.inputs.formats.tiff_layout import (
    YCBCR,
    check_layout,
    check_segments,
    has_levels,
    has_subsampled_colors,
    is_decoded_in_segments,
    missing_segments,
    needed_samples,
    photometric_of,
    segment_size,
)
from pipeline.inputs.georeference import Georeference
from pipeline.inputs.geotiff import georeference_of
from pipeline.inputs.raster import Place, Raster
from pipeline.inputs.windowed_image import check_window
from pipeline.text import message_of

FILL_COLOR = (124, 116, 104)
"""Red, green and blue of pixels without data: the mean colour that the published networks subtract from every pixel
(MMDetection's `img_norm_cfg`, rounded), so that to a network they are as padding."""

# GDAL's types of samples that the functions of `formats.tiff` know.
_TYPES = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"})
_UNCOMPRESSED = 1
# Read at once by the reader of the header, which asks for a few bytes at a time.
_HEADER_BYTES = 64 * 2**10
_ON_ITS_SIDE = (5, 6, 7, 8)
_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    ZeroDivisionError,
    zlib.error,
    OSError,
)


class NotByWindowsError(Exception):
    """The layout of a TIFF is one that only decoding it whole gives the right pixels of."""


class TiffWindows:
    """A TIFF that is read by windows; see `WindowedImage`."""

    def __init__(
        self, ranges: ByteRanges, *, rule: BandRule = AS_STORED, max_pixels: int, max_bytes: int | None = None
    ) -> None:
        """Open a TIFF; only its header is read.

        Args:
            rule: how the bands become colours.
            max_pixels: of a strip or tile, which is decompressed as a whole.
            max_bytes: of a file whose windows may have other pixels than the whole image (JPEG with fewer colours than
                pixels, which Pillow repeats and GDAL interpolates): one within both limits has to be decoded whole.

        Raises:
            ImportError: rasterio is not installed.
            NotByWindowsError: it has to be decoded whole.
            ImageError: `unreadable`, or `too_large`: one of its strips or tiles.
            StorageError: it cannot be read.
        """
        with _damage_is_unreadable():
            found = choose_page(io.BufferedReader(RangeFile(ranges), _HEADER_BYTES))
            self._page, self._rule = found.page, rule
            _check_page(found, ranges, rule, max_pixels, max_bytes)
            self._needed = needed_samples(self._page, rule)
            self._missing = missing_segments(self._page)
            self._orientation = self._page.tags.valueof(274)
            self._stored = (int(self._page.imagelength), int(self._page.imagewidth))
            self._georeference = georeference_of(self._page, ranges)
            self._raster = Raster(ranges)
        kind = (self._raster.size, self._raster.bands)
        if self._raster.dtype not in _TYPES or kind != (self._stored, int(self._page.samplesperpixel)):
            self._raster.close()
            raise NotByWindowsError
        self._is_float = np.dtype(self._raster.dtype).kind == "f"
        self._has_mask = self._raster.has_mask or self._is_float or bool(self._missing.any())

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, upright."""
        height, width = self._stored
        return (width, height) if self._orientation in _ON_ITS_SIDE else (height, width)

    @property
    def georeference(self) -> Georeference | None:
        """Where the image lies on the ground; None where its file does not say."""
        return self._georeference

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Read a window, [height, width, 3] uint8 RGB; pixels without data have `FILL_COLOR`."""
        check_window(self.size, top, left, height, width)
        return self._read(self._as_stored(top, left, height, width), None)

    @property
    def has_overviews(self) -> bool:
        """Whether the file has reduced copies of the image; else all of it is read, band by band."""
        return self._raster.has_overviews

    def read_downsampled(self, max_side: int) -> NDArray[np.uint8]:
        """Read the whole image with sides of at most so many pixels, from a reduced copy where the file has one."""
        height, width = self._stored
        share = min(1.0, max_side / max(height, width))
        shape = (max(1, round(height * share)), max(1, round(width * share)))
        return self._read((0, 0, height, width), shape)

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """Return which pixels of a window hold data and are not transparent; None where all do."""
        check_window(self.size, top, left, height, width)
        found = self._valid(self._as_stored(top, left, height, width), None)
        return None if found is None else np.ascontiguousarray(turn_upright(found, self._page))

    def close(self) -> None:
        """Close the file."""
        self._raster.close()

    def _bands(self) -> tuple[int, ...]:
        return tuple(sample + 1 for sample in self._needed)

    def _read(self, place: Place, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
        samples = self._raster.read(self._bands(), place, shape=shape)
        levels = to_levels(samples, self._page, self._rule).astype(levels_type(self._page), copy=False)
        # libtiff has converted the YCbCr of JPEG already.
        is_rgb = photometric_of(self._page) == YCBCR
        pixels = np.ascontiguousarray(levels) if is_rgb else to_rgb(np.ascontiguousarray(levels), self._page)
        if not has_levels(self._page):
            pixels = permute(pixels, self._rule)
        if (valid := self._valid(place, shape, samples)) is not None:
            pixels[~valid] = FILL_COLOR
        upright: NDArray[np.uint8] = turn_upright(pixels, self._page)
        return upright

    def _valid(
        self, place: Place, shape: tuple[int, int] | None, samples: NDArray[Any] | None = None
    ) -> NDArray[np.bool_] | None:
        """Return which pixels hold data, as stored; None where all do."""
        if not self._has_mask:
            return None
        found = self._raster.mask(self._bands(), place, shape=shape)
        if self._missing.any():
            found &= ~self._lacks(place, found.shape)
        if self._is_float:
            known = self._raster.read(self._bands(), place, shape=shape) if samples is None else samples
            found &= np.isfinite(known).any(axis=-1)
        return None if found.all() else found

    def _lacks(self, place: Place, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return which pixels of a window are in strips or tiles that a sparse file lacks."""
        top, left, height, width = place
        rows, columns = (
            (begin + (np.arange(count) + 0.5) * extent / count) // side
            for begin, extent, count, side in zip(
                (top, left), (height, width), shape, segment_size(self._page), strict=True
            )
        )
        return self._missing[np.ix_(rows.astype(np.int64), columns.astype(np.int64))]

    def _as_stored(self, top: int, left: int, height: int, width: int) -> Place:
        """Return where the pixels of an upright window are in the file; the reverse of `turn_upright`."""
        full_height, full_width = self.size
        if self._orientation in (3, 4, 7, 8):
            top = full_height - top - height
        if self._orientation in (2, 3, 6, 7):
            left = full_width - left - width
        return (left, top, width, height) if self._orientation in _ON_ITS_SIDE else (top, left, height, width)


@contextlib.contextmanager
def _damage_is_unreadable() -> Iterator[None]:
    """Turn what libraries raise on a damaged header into an image's reason."""
    try:
        yield
    except (struct.error, EOFError) as error:
        raise ImageError("unreadable", "truncated TIFF: the file ends before the image does") from error
    except _DAMAGE as error:
        raise ImageError("unreadable", message_of(f"damaged TIFF: {error}", max_chars=200)) from error


def _check_page(found: TiffPage, ranges: ByteRanges, rule: BandRule, max_pixels: int, max_bytes: int | None) -> None:
    page = found.page
    fits_whole = int(page.imagewidth) * int(page.imagelength) <= max_pixels and (
        max_bytes is None or ranges.size <= max_bytes
    )
    if found.index != 0 or not is_decoded_in_segments(page) or (has_subsampled_colors(page) and fits_whole):
        raise NotByWindowsError
    if has_levels(page) and rule.bands is not None:
        check_bands(rule.bands, int(page.samplesperpixel))
    down, across = segment_size(page)
    down = min(down, int(page.imagelength))
    # GDAL reads an image of one uncompressed strip line by line.
    is_by_lines = int(page.compression or 1) == _UNCOMPRESSED and not page.is_tiled and down == int(page.imagelength)
    if across * down > max_pixels and not is_by_lines:
        raise ImageError(
            "too_large",
            f"its strips or tiles are {across} x {down} pixels, more than images.max_pixels = {max_pixels}, and "
            "are decompressed as a whole; rewrite it with `gdal_translate -co TILED=YES`",
        )
    if not found.is_for_pillow:
        check_layout(page, rule)
    check_segments(page, ranges.size, max(across * down, max_pixels), is_sparse_allowed=True)
