"""TIFF files: chooses the page that is the image, and decodes the layouts that Pillow does not read correctly.

Ordinary 8-bit images, bilevel and palette images are left to Pillow, which is fast; deep samples, planes and newer
compressions go through tifffile and imagecodecs; everything else is refused with the reason
(`pipeline.inputs.formats.tiff_layout`). Camera raw files are TIFFs too, and their first image is a thumbnail: they are
recognised and refused, because a thumbnail in place of the image would be a wrong result without an error.

An example: a scanner's file holds a chain of two pages, first a thumbnail (NewSubfileType 1), then the scan with 16-bit
samples. `open_tiff` chooses the second page (index 1) and finds that Pillow would round its samples, so
`decode_tiff_page` assembles the page's strips and keeps the upper 8 bits. A Nikon NEF looks the same up to its SubIFD
with sensor data, which is why SubIFDs are read before a page is chosen.
"""

import io
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError
from pipeline.inputs.formats.bands import AS_STORED, BandRule, check_bands, scale_values
from pipeline.inputs.formats.detect import raw_reason
from pipeline.inputs.formats.size_limit import check_size
from pipeline.inputs.formats.tiff_layout import (
    CMYK,
    PALETTE,
    WHITE_IS_ZERO,
    YCBCR,
    check_counts,
    check_layout,
    check_segments,
    color_map,
    has_byte_colors,
    has_levels,
    is_read_by_pillow,
    is_scaled,
    needed_samples,
    photometric_of,
    refuse_sparse,
)

# Colour filter array (TIFF/EP), LinearRaw (DNG), and CFA with a depth map (DNG).
_RAW_PHOTOMETRICS = frozenset({32803, 34892, 51177})
# Nikon's, Sony's, Samsung's, Kodak's and Pentax's own compressions of sensor data.
_RAW_COMPRESSIONS = frozenset({34713, 32767, 32769, 32770, 65000, 65535})
# NewSubfileType: a reduced copy of another image, a transparency mask.
_REDUCED, _MASK = 1, 4
_PAGES_SEARCHED = 32
_HEAD_BYTES = 16
_TAG_DNG_VERSION, _TAG_MAKE, _TAG_SUB_IFDS, _TAG_ORIENTATION = 50706, 271, 330, 274


@dataclass(frozen=True)
class TiffPage:
    """The page that is the image.

    index: its place in the file's chain of pages; None for a SubIFD, which Pillow cannot open.
    is_for_pillow: whether Pillow returns this layout's pixels as they are stored.
    page: tifffile's page.
    """

    index: int | None
    is_for_pillow: bool
    page: Any


def open_tiff(payload: bytes, max_pixels: int, rule: BandRule = AS_STORED) -> TiffPage:
    """Choose the page of a TIFF that is the image, and check its header; nothing is decoded.

    Args:
        max_pixels: the limit on width x height.
        rule: how the bands become colours.

    Raises:
        ImageError: `too_large`, or `unreadable`: camera raw, or a layout that is not supported.
        Exception: whatever tifffile raises on damage; see `pipeline.inputs.decode`.
    """
    found = choose_page(io.BytesIO(payload))
    page = found.page
    check_size((int(page.imagewidth), int(page.imagelength)), max_pixels)
    if found.is_for_pillow and rule.bands is not None and has_levels(page):
        # Pillow decodes no sample beyond the third.
        check_bands(rule.bands, int(page.samplesperpixel))
        found = replace(found, is_for_pillow=max(rule.bands) <= 3)
    if found.is_for_pillow:
        refuse_sparse(page)
    else:
        check_layout(page, rule)
        check_segments(page, len(payload), max_pixels)
    return found


def choose_page(file: IO[bytes]) -> TiffPage:
    """Choose the page of a TIFF that is the image; its layout is not checked.

    Raises:
        ImageError: `unreadable`: camera raw.
        Exception: whatever tifffile raises on damage; see `pipeline.inputs.decode`.
    """
    import tifffile

    head = file.read(_HEAD_BYTES)
    check_counts(file)
    file.seek(0)
    # tifffile logs each odd tag; real problems become a row's reason instead.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    # The pixels do not need vendors' private structures, and parsing them would trust more of the file.
    tiff = tifffile.TiffFile(file, is_ndpi=False, is_lsm=False, is_scanimage=False, is_eer=False)
    index, page = _choose(head, _pages(tiff.pages))
    return TiffPage(index, index is not None and is_read_by_pillow(page, head), page)


def decode_tiff_page(found: TiffPage, rule: BandRule = AS_STORED) -> NDArray[np.uint8]:
    """Decode a page whose layout Pillow does not read correctly.

    Samples of 9 to 16 bits keep their upper 8, or become 0 to 255 by the rule's range of values; samples of fewer than
    8 are scaled to 0 to 255. Alpha and other extra samples are dropped unless the rule asks for them, and the colours
    stay as they are stored, also with associated alpha, as in OpenCV.

    Returns:
        [H, W, 3] uint8 RGB, upright.
    """
    page = found.page
    needed = needed_samples(page, rule)
    samples = np.zeros((page.imagelength, page.imagewidth, len(needed)), levels_type(page))
    for decoded, place, shape in page.segments(maxworkers=1):
        if decoded is None:
            raise ImageError("unreadable", "TIFF: a strip or tile is missing")
        first, top, left = place[0], place[2], place[3]
        block = decoded[0, : page.imagelength - top, : page.imagewidth - left]
        area = (slice(top, top + shape[1]), slice(left, left + shape[2]))
        if page.planarconfig == 2:
            for channel, sample in enumerate(needed):
                if sample == first:
                    samples[*area, channel] = to_levels(block[..., 0], page, rule)
        else:
            samples[*area, :] = to_levels(block[..., list(needed)], page, rule)
    return turn_upright(to_rgb(samples, page), page)


def _pages(pages: Any) -> Iterator[Any]:
    for index in range(_PAGES_SEARCHED):
        try:
            yield pages[index]
        except IndexError:
            return


def _choose(head: bytes, pages: Iterator[Any]) -> tuple[int | None, Any]:
    """Return the page that is the image, and its index: the first, unless that is a reduced copy of another."""
    first = next(pages, None)
    if first is None or not len(first.tags):
        raise ValueError("it holds no image")
    is_reduced = bool(_subfile_type(first) & (_REDUCED | _MASK))
    has_more = _TAG_MAKE in first.tags or _TAG_SUB_IFDS in first.tags
    chain = [first, *pages] if is_reduced or has_more else [first]
    nested = [page for parent in chain if _TAG_SUB_IFDS in parent.tags for page in _nested(parent)]
    _refuse_raw(head, first, [*chain, *nested])
    full_size = [
        (index, page)
        for index, page in (*enumerate(chain), *((None, page) for page in nested))
        if not _subfile_type(page) & (_REDUCED | _MASK) and page.imagewidth and page.imagelength
    ]
    if is_reduced and full_size:
        return full_size[0]
    return 0, first


def _nested(page: Any) -> list[Any]:
    """Load a page's SubIFDs; none if they are damaged."""
    import tifffile

    try:
        return list(_pages(page.pages or ()))
    except (tifffile.TiffFileError, ValueError, TypeError, struct.error, OSError):
        return []


def _refuse_raw(head: bytes, first: Any, pages: list[Any]) -> None:
    kind = None
    if any(_TAG_DNG_VERSION in page.tags for page in pages):
        kind = "DNG"
    elif head[8:10] == b"CR":
        kind = "Canon CR2"
    elif any(
        int(page.photometric or 0) in _RAW_PHOTOMETRICS or int(page.compression or 0) in _RAW_COMPRESSIONS
        for page in pages
    ):
        maker = first.tags.valueof(_TAG_MAKE)
        kind = " ".join(maker.split())[:40] if isinstance(maker, str) and maker.strip() else "TIFF/EP"
    if kind is not None:
        raise ImageError("unreadable", raw_reason(kind))


def _subfile_type(page: Any) -> int:
    return int(page.subfiletype or 0)


def levels_type(page: Any) -> type[np.uint8] | type[np.uint16]:
    """Return the type of a page's levels: bytes, or the numbers of a palette's colours."""
    return np.uint16 if photometric_of(page) == PALETTE else np.uint8


def to_levels(samples: NDArray[Any], page: Any, rule: BandRule) -> NDArray[Any]:
    """Return samples of a page as levels from 0 to 255; the numbers of a palette's colours stay."""
    if photometric_of(page) == PALETTE:
        return samples
    if rule.value_range is not None and is_scaled(page, rule):
        return scale_values(samples, rule.value_range)
    return _to_bytes(samples, int(page.bitspersample))


def _to_bytes(block: NDArray[Any], depth: int) -> NDArray[np.uint8]:
    if block.dtype == np.bool_:
        block = block.astype(np.uint8)
    if depth == 8:
        return np.asarray(block).astype(np.uint8, copy=False)
    if depth > 8:
        return np.asarray(block >> (depth - 8)).astype(np.uint8)
    levels = (1 << depth) - 1
    spread = np.round(np.arange(levels + 1) * (255 / levels)).astype(np.uint8)
    return np.take(spread, block)


def to_rgb(samples: NDArray[Any], page: Any) -> NDArray[np.uint8]:
    """Return the colours of [H, W, S] samples of a page: of 8 bits, or a palette's numbers."""
    photometric = photometric_of(page)
    if photometric == PALETTE:
        colors = color_map(page).reshape(3, -1)
        # Some writers put 8-bit levels into the 16-bit map; libtiff uses the same rule (tif_getimage.c, checkcmap).
        levels = (colors if has_byte_colors(page) else colors >> 8).astype(np.uint8)
        return np.ascontiguousarray(levels.T[samples[..., 0]])
    if photometric == CMYK:
        return np.array(Image.fromarray(samples, "CMYK").convert("RGB"))
    if photometric == YCBCR:
        return np.array(Image.fromarray(samples, "YCbCr").convert("RGB"))
    if photometric == WHITE_IS_ZERO:
        samples = 255 - samples
    return np.repeat(samples, 3, axis=2) if samples.shape[2] == 1 else samples


def turn_upright(rgb: NDArray[Any], page: Any) -> NDArray[Any]:
    """Return [H, W, ...] pixels of a page, or of a part of it, turned by its orientation."""
    orientation = page.tags.valueof(_TAG_ORIENTATION)
    if orientation in (5, 6, 7, 8):
        rgb = rgb.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(rgb[rows, columns])
