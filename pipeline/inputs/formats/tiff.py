"""TIFF files: which page is the image, and the pixels of the layouts that Pillow does not read rightly.

A TIFF is judged by its tags before anything is decoded. Ordinary 8-bit images, bilevel and palette images stay with
Pillow, which is fast; deep samples, planes and newer compressions go through tifffile and imagecodecs; everything else
is refused with the reason. Camera raw files are TIFFs too, and their first image is a thumbnail: they are recognised
and refused, because a thumbnail in the photo's place would be a wrong result without a word.

Numbers of tags and of their values: TIFF 6.0; BigTIFF; TIFF/EP (ISO 12234-2); DNG 1.7; tifffile's `TIFF.TAGS`.
"""

import io
import logging
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError
from pipeline.inputs.formats.detect import raw_reason

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_PHOTOMETRIC_NAMES = {
    4: "transparency mask",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32844: "LogL",
    32845: "LogLuv",
}
# Colour filter array (TIFF/EP), LinearRaw (DNG), and CFA with a depth map (DNG).
_RAW_PHOTOMETRICS = frozenset({32803, 34892, 51177})
# Nikon's, Sony's, Samsung's, Kodak's and Pentax's own compressions of sensor data.
_RAW_COMPRESSIONS = frozenset({34713, 32767, 32769, 32770, 65000, 65535})
_COMPRESSION_NAMES = {
    6: "old-style JPEG",
    7: "JPEG",
    34661: "JBIG",
    34676: "SGILog",
    34677: "SGILog24",
    34712: "JPEG 2000",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
# None, LZW, deflate (two numbers), PackBits, LZMA, Zstandard: what comes out is a strip's or tile's bytes, so that the
# tags alone bound what decoding takes. The others hold whole image files with sizes of their own.
_BYTE_COMPRESSIONS = frozenset({1, 5, 8, 32946, 32773, 34925, 50000})
_PILLOW_COMPRESSIONS = frozenset({1, 5, 6, 7, 8, 32946, 32773})
_CCITT = frozenset({2, 3, 4})
_SAMPLE_KINDS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "untyped", 5: "complex", 6: "complex"}
_UNSIGNED = 1
_DEEPEST = 16
_ASSOCIATED_ALPHA = 1
# NewSubfileType: a reduced copy of another image, a transparency mask.
_REDUCED, _MASK = 1, 4
_PAGES_SEARCHED = 32
# Bounds on what tags may claim. Real files: at most one value per strip or tile, and tiles of 16 to 1024 pixels a side.
_MAX_VALUES = 4_000_000
_MAX_SEGMENTS = 2_000_000
_MAX_SAMPLES = 64
_LARGEST_SMALL_TILE = 1 << 22
_TAG_DNG_VERSION, _TAG_MAKE, _TAG_COLOR_MAP, _TAG_SUB_IFDS, _TAG_ORIENTATION = 50706, 271, 320, 330, 274
_TAG_SUBSAMPLING, _TAG_REFERENCE_BLACK_WHITE, _TAG_INK_SET = 530, 532, 332
_CMYK_INKS = 1
# Photometric interpretation -> least and most samples per pixel; those behind the colours are alpha, or anything else.
_SAMPLES = {
    _WHITE_IS_ZERO: (1, 2),
    _BLACK_IS_ZERO: (1, 2),
    _PALETTE: (1, 2),
    _RGB: (3, _MAX_SAMPLES),
    _YCBCR: (3, _MAX_SAMPLES),
    _CMYK: (4, _MAX_SAMPLES),
}
# Bits, samples, photometric interpretation.
_JPEG_LAYOUTS = frozenset({(8, 1, _WHITE_IS_ZERO), (8, 1, _BLACK_IS_ZERO), (8, 3, _RGB), (8, 3, _YCBCR), (8, 4, _CMYK)})
_BYTE_TYPES = frozenset({1, 2, 6, 7})  # BYTE, ASCII, SBYTE, UNDEFINED


@dataclass(frozen=True)
class TiffPage:
    """The page that is the image.

    index: its place in the file's chain of pages, None for one that only tifffile reaches (a SubIFD).
    is_for_pillow: Pillow reads this layout as written.
    """

    index: int | None
    is_for_pillow: bool
    page: Any


def open_tiff(payload: bytes, max_pixels: int) -> TiffPage:
    """Find the image of a TIFF and check its header; nothing is decoded.

    Args:
        max_pixels: width x height beyond which it is refused.

    Raises:
        ImageError: `too_large`, or `unreadable`: camera raw, or a layout that nothing here decodes.
        Exception: whatever tifffile raises on damage; see `pipeline.inputs.decode`.
    """
    import tifffile

    _check_counts(payload)
    # Else each odd tag becomes a line of the log; what matters becomes a row's reason.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    # Vendors' private structures are not needed for the pixels, and reading them would trust more of the file.
    file = tifffile.TiffFile(io.BytesIO(payload), is_ndpi=False, is_lsm=False, is_scanimage=False, is_eer=False)
    index, page = _choose(payload, _pages(file.pages))
    _check_page(page, max_pixels)
    is_for_pillow = index is not None and _is_for_pillow(page, payload)
    if not is_for_pillow:
        _check_layout(page)
        _check_segments(page, len(payload), max_pixels)
    return TiffPage(index, is_for_pillow, page)


def decode_tiff_page(found: TiffPage) -> NDArray[np.uint8]:
    """Decode a page whose layout is not Pillow's.

    Samples of 9 to 16 bits keep their upper 8, those of fewer than 8 are spread over 0 to 255. Alpha and other extra
    samples are dropped and the colours left as they are stored, associated alpha too, as OpenCV does.

    Returns:
        [H, W, 3] uint8 RGB, upright.
    """
    page = found.page
    needed = {_RGB: 3, _YCBCR: 3, _CMYK: 4}.get(_photometric(page), 1)
    depth = int(page.bitspersample)
    is_index = page.photometric == _PALETTE
    samples = np.zeros((page.imagelength, page.imagewidth, needed), np.uint16 if is_index else np.uint8)
    for decoded, place, shape in page.segments(maxworkers=1):
        if decoded is None:
            raise ImageError("unreadable", "TIFF: a strip or tile is left out")
        first, top, left = place[0], place[2], place[3]
        if page.planarconfig == 2 and first >= needed:
            continue
        block = decoded[0, : page.imagelength - top, : page.imagewidth - left, :needed]
        channels = slice(first, first + 1) if page.planarconfig == 2 else slice(None)
        samples[top : top + shape[1], left : left + shape[2], channels] = block if is_index else _to_bytes(block, depth)
    return _upright(_to_rgb(samples, page), page)


def _pages(pages: Any) -> Iterator[Any]:
    for index in range(_PAGES_SEARCHED):
        try:
            yield pages[index]
        except IndexError:
            return


def _choose(payload: bytes, pages: Iterator[Any]) -> tuple[int | None, Any]:
    """Return the page that is the image: the first, unless that is a reduced copy of another."""
    first = next(pages, None)
    if first is None or not len(first.tags):
        raise ValueError("it holds no image")
    is_reduced = bool(_subfile_type(first) & (_REDUCED | _MASK))
    has_more = _TAG_MAKE in first.tags or _TAG_SUB_IFDS in first.tags
    chain = [first, *pages] if is_reduced or has_more else [first]
    nested = [page for parent in chain if _TAG_SUB_IFDS in parent.tags for page in _nested(parent)]
    _refuse_raw(payload, first, [*chain, *nested])
    whole = [
        (index, page)
        for index, page in (*enumerate(chain), *((None, page) for page in nested))
        if not _subfile_type(page) & (_REDUCED | _MASK) and page.imagewidth and page.imagelength
    ]
    if is_reduced and whole:
        return whole[0]
    return 0, first


def _nested(page: Any) -> list[Any]:
    """Load a page's SubIFDs; damaged ones are as good as none."""
    import tifffile

    try:
        return list(_pages(page.pages or ()))
    except (tifffile.TiffFileError, ValueError, TypeError, struct.error, OSError):
        return []


def _refuse_raw(payload: bytes, first: Any, pages: list[Any]) -> None:
    kind = None
    if any(_TAG_DNG_VERSION in page.tags for page in pages):
        kind = "DNG"
    elif payload[8:10] == b"CR":
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


def _check_counts(payload: bytes) -> None:
    """Refuse a first directory whose tags hold absurdly many values, before a library turns them into objects."""
    order = "<" if payload[:2] == b"II" else ">"
    is_big = struct.unpack(order + "H", payload[2:4])[0] == 43
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), payload, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), payload, start)
    entry, size = (order + "HHQ", 20) if is_big else (order + "HHI", 12)
    for number in range(min(count, 4096)):
        tag, kind, values = struct.unpack_from(entry, payload, start + (8 if is_big else 2) + number * size)
        if values > _MAX_VALUES and kind not in _BYTE_TYPES:
            raise ValueError(f"tag {tag} says that it holds {values} values")


def _check_page(page: Any, max_pixels: int) -> None:
    width, height = int(page.imagewidth), int(page.imagelength)
    if width < 1 or height < 1:
        raise ValueError(f"the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} is {width * height} pixels; the limit is {max_pixels}")


def _is_for_pillow(page: Any, payload: bytes) -> bool:
    """Tell whether Pillow gives this layout's pixels as they are stored (compared over the matrix of the tests)."""
    if _sample_format(page) != _UNSIGNED or payload[:4] == b"MM\0+" or page.predictor not in (1, 2):
        return False
    layout = (page.bitspersample, int(page.samplesperpixel), _photometric(page))
    if page.compression in _CCITT:
        return layout in {(1, 1, _WHITE_IS_ZERO), (1, 1, _BLACK_IS_ZERO)}
    if page.compression in (6, 7):
        return layout in _JPEG_LAYOUTS
    if page.compression not in _PILLOW_COMPRESSIONS or page.fillorder != 1:
        return False
    return _is_plain(page, layout)


def _is_plain(page: Any, layout: tuple[Any, int, int]) -> bool:
    bits, count, photometric = layout
    if count == 1:
        is_palette = photometric == _PALETTE and not _has_byte_colors(page)
        return bits in (1, 2, 4, 8) and (is_palette or photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO))
    if bits != 8 or page.planarconfig != 1:
        return False
    if photometric == _RGB:
        return count == 3 or (count == 4 and _ASSOCIATED_ALPHA not in _extra_samples(page))
    return photometric == _CMYK and count == 4 and _is_cmyk(page)


def _check_layout(page: Any) -> None:
    """Refuse what `decode_tiff_page` does not decode."""
    bits, compression = page.bitspersample, int(page.compression or 1)
    kind = _SAMPLE_KINDS.get(_sample_format(page), "unknown")
    if not isinstance(bits, int):
        raise _unsupported(
            f"samples of different depths ({', '.join(str(each) for each in bits)} bits)", "save it as RGB"
        )
    if kind != "unsigned" or bits > _DEEPEST:
        reason = f"TIFF: {kind} {bits}-bit samples have no defined brightness; store 8 or 16 bits per sample, unsigned"
        raise ImageError("unreadable", reason)
    if compression not in _BYTE_COMPRESSIONS:
        name = _COMPRESSION_NAMES.get(compression, f"number {compression}")
        raise _unsupported(f"compression {name} and {bits}-bit samples of this layout", "save it with deflate or LZW")
    if page.predictor not in (1, 2):
        raise _unsupported(f"predictor {int(page.predictor)} and unsigned samples", "save it without")
    if int(page.imagedepth) != 1 or int(page.tiledepth) != 1:
        raise _unsupported("a volume of several slices", "save them as images")
    _check_colors(page, bits)


def _check_colors(page: Any, bits: int) -> None:
    count, photometric = int(page.samplesperpixel), _photometric(page)
    if photometric not in _SAMPLES:
        name = _PHOTOMETRIC_NAMES.get(photometric, f"photometric interpretation {photometric}")
        raise _unsupported(f"{name} colours", "save it as RGB")
    least, most = _SAMPLES[photometric]
    if not least <= count <= most:
        raise _unsupported(f"{count} samples per pixel that it does not name the colours of", "save it as RGB")
    if photometric == _CMYK and not _is_cmyk(page):
        raise _unsupported("inks other than CMYK", "save it as RGB")
    if photometric == _YCBCR and (bits != 8 or not _is_plain_ycbcr(page)):
        raise _unsupported("YCbCr that is subsampled or has levels of its own, outside JPEG", "save it as RGB")
    if photometric == _PALETTE and len(_color_map(page)) != 3 << bits:
        raise ValueError(f"its palette has {len(_color_map(page))} values, not {3 << bits}")


def _unsupported(what: str, way_out: str) -> ImageError:
    return ImageError("unreadable", f"TIFF with {what} is not supported; {way_out}")


def _check_segments(page: Any, file_bytes: int, max_pixels: int) -> None:
    """Refuse strips or tiles that are missing, or so large that decoding one would fill the memory."""
    width, height = int(page.imagewidth), int(page.imagelength)
    across, down = (int(page.tilewidth), int(page.tilelength)) if page.is_tiled else (width, int(page.rowsperstrip))
    if across < 1 or down < 1 or across * down > max(max_pixels, _LARGEST_SMALL_TILE):
        raise ValueError(f"its tiles are said to have {across} x {down} pixels")
    planes = int(page.samplesperpixel) if page.planarconfig == 2 else 1
    if page.planarconfig == 1 and across * down * int(page.samplesperpixel) > 8 * max(max_pixels, _LARGEST_SMALL_TILE):
        raise ValueError(f"its strips or tiles have {page.samplesperpixel} samples for each of {across * down} pixels")
    expected = math.ceil(width / across) * math.ceil(height / down) * planes
    if expected > _MAX_SEGMENTS:
        raise ValueError(f"it is cut into {expected} strips or tiles")
    offsets, sizes = page.dataoffsets, page.databytecounts
    if len(offsets) < expected or len(sizes) < expected:
        raise ValueError(f"{min(len(offsets), len(sizes))} of {expected} strips or tiles are there")
    for offset, size in zip(offsets[:expected], sizes[:expected], strict=True):
        if size == 0:
            raise ImageError("unreadable", "TIFF: strips or tiles are left out (a sparse file); fill them first")
        if offset + size > file_bytes:
            raise EOFError


def _to_bytes(block: NDArray[Any], depth: int) -> NDArray[np.uint8]:
    if block.dtype == np.bool_:
        block = block.astype(np.uint8)
    if depth >= 8:
        return np.asarray(block >> (depth - 8)).astype(np.uint8)
    levels = (1 << depth) - 1
    spread = np.round(np.arange(levels + 1) * (255 / levels)).astype(np.uint8)
    return np.take(spread, block)


def _to_rgb(samples: NDArray[Any], page: Any) -> NDArray[np.uint8]:
    photometric = _photometric(page)
    if photometric == _PALETTE:
        colors = _color_map(page).reshape(3, -1)
        # Some writers put 8-bit levels into the 16-bit map; libtiff judges as here (tif_getimage.c, checkcmap).
        levels = (colors if _has_byte_colors(page) else colors >> 8).astype(np.uint8)
        return np.ascontiguousarray(levels.T[samples[..., 0]])
    if photometric == _CMYK:
        return np.array(Image.fromarray(samples, "CMYK").convert("RGB"))
    if photometric == _YCBCR:
        return np.array(Image.fromarray(samples, "YCbCr").convert("RGB"))
    if photometric == _WHITE_IS_ZERO:
        samples = 255 - samples
    return np.repeat(samples, 3, axis=2) if samples.shape[2] == 1 else samples


def _upright(rgb: NDArray[np.uint8], page: Any) -> NDArray[np.uint8]:
    orientation = page.tags.valueof(_TAG_ORIENTATION)
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(rgb[rows, columns])


def _photometric(page: Any) -> int:
    return int(page.photometric or 0)


def _sample_format(page: Any) -> int:
    value = page.sampleformat
    return int(value) if isinstance(value, int) else 0


def _extra_samples(page: Any) -> tuple[int, ...]:
    value = page.extrasamples
    return tuple(int(each) for each in value) if isinstance(value, tuple) else (int(value or 0),)


def _is_cmyk(page: Any) -> bool:
    return bool(page.tags.valueof(_TAG_INK_SET, _CMYK_INKS) == _CMYK_INKS)


def _is_plain_ycbcr(page: Any) -> bool:
    """Tell whether each pixel has its three samples, over the full range."""
    return tuple(page.tags.valueof(_TAG_SUBSAMPLING, (2, 2))) == (1, 1) and _TAG_REFERENCE_BLACK_WHITE not in page.tags


def _color_map(page: Any) -> NDArray[np.uint16]:
    """Return all reds, then all greens, then all blues; empty without a palette."""
    value = page.tags.valueof(_TAG_COLOR_MAP)
    return np.asarray(() if value is None else value, np.uint16).reshape(-1)


def _has_byte_colors(page: Any) -> bool:
    colors = _color_map(page)
    return bool(colors.size) and int(colors.max()) < 256
