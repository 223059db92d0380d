"""The layout of a TIFF page, judged by its tags before decoding: which decoder reads it, and which are refused.

| the page | decoded by |
|---|---|
| 8-bit RGB, LZW or JPEG, chunky | Pillow |
| 1-bit gray, CCITT | Pillow |
| 16-bit gray, deflate | tifffile and imagecodecs |
| 8-bit RGB in planes, or with associated alpha | tifffile and imagecodecs |
| four bands of 16 bits, declared as gray | tifffile and imagecodecs: the first three, or those asked for |
| 32-bit floating-point samples | refused: they have no defined brightness, unless a range of values is given |
| JPEG 2000 or another image format inside | refused: the tags do not limit what its decoder allocates |

Numbers of tags and of their values: TIFF 6.0; BigTIFF; TIFF/EP (ISO 12234-2); DNG 1.7; tifffile's `TIFF.TAGS`.
"""

import math
import struct
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.inputs.formats.bands import AS_STORED, BandRule, check_bands

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
_PHOTOMETRIC_NAMES = {
    4: "transparency mask",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32844: "LogL",
    32845: "LogLuv",
}
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
# None, LZW, deflate (two numbers), PackBits, LZMA, Zstandard: they decompress to the bytes of a strip or tile, so the
# tags bound the memory that decoding takes. The others contain image files with sizes of their own.
_BYTE_COMPRESSIONS = frozenset({1, 5, 8, 32946, 32773, 34925, 50000})
_PILLOW_COMPRESSIONS = frozenset({1, 5, 6, 7, 8, 32946, 32773})
_CCITT = frozenset({2, 3, 4})
_JPEG = 7
_SAMPLE_KINDS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "untyped", 5: "complex", 6: "complex"}
_UNSIGNED = 1
_SPARSE = "TIFF: strips or tiles are missing (a sparse file); fill them first"
# Depths that become levels where a range of values is given.
_SCALED_BITS = {
    "unsigned": frozenset({*range(1, 17), 32}),
    "signed": frozenset({8, 16, 32}),
    "floating-point": frozenset({16, 32, 64}),
}
_DEEPEST = 16
_ASSOCIATED_ALPHA = 1
# Bounds on the values of tags. Real files have at most one value per strip or tile, and tiles of 16 to 1024 pixels a
# side.
_MAX_VALUES = 4_000_000
_MAX_SEGMENTS = 2_000_000
_MAX_SAMPLES = 64
# A file cannot be positioned beyond what a signed number of 64 bits says.
_FURTHEST = 2**63 - 1
_LARGEST_SMALL_TILE = 1 << 22
_TAG_COLOR_MAP, _TAG_SUBSAMPLING, _TAG_REFERENCE_BLACK_WHITE, _TAG_INK_SET = 320, 530, 532, 332
_CMYK_INKS = 1
# Photometric interpretation -> least and most samples per pixel; those after the colours are alpha, or anything else.
_SAMPLES = {
    WHITE_IS_ZERO: (1, 2),
    BLACK_IS_ZERO: (1, 2),
    PALETTE: (1, 2),
    RGB: (3, _MAX_SAMPLES),
    YCBCR: (3, _MAX_SAMPLES),
    CMYK: (4, _MAX_SAMPLES),
}
# Bits, samples, photometric interpretation.
_JPEG_LAYOUTS = frozenset({(8, 1, WHITE_IS_ZERO), (8, 1, BLACK_IS_ZERO), (8, 3, RGB), (8, 3, YCBCR), (8, 4, CMYK)})
_BYTE_TYPES = frozenset({1, 2, 6, 7})  # BYTE, ASCII, SBYTE, UNDEFINED


def check_counts(file: IO[bytes]) -> None:
    """Check the number of values of each tag in the first directory, before a library turns them into objects.

    Raises:
        ValueError: a tag says that it holds more values than any real file.
        struct.error: the file ends before it.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = struct.unpack(order + "H", head[2:4])[0] == 43
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), head, 8 if is_big else 4)
    file.seek(min(start, _FURTHEST))
    number = file.read(8 if is_big else 2)
    (count,) = struct.unpack(order + ("Q" if is_big else "H"), number)
    entry, size = (order + "HHQ", 20) if is_big else (order + "HHI", 12)
    entries = file.read(min(count, 4096) * size)
    for at in range(min(count, 4096)):
        tag, kind, values = struct.unpack_from(entry, entries, at * size)
        if values > _MAX_VALUES and kind not in _BYTE_TYPES:
            raise ValueError(f"tag {tag} says that it holds {values} values")


def is_read_by_pillow(page: Any, head: bytes) -> bool:
    """Return whether Pillow returns this layout's pixels as they are stored, as the tests compare it."""
    if _sample_format(page) != _UNSIGNED or head[:4] == b"MM\0+" or page.predictor not in (1, 2):
        return False
    layout = (page.bitspersample, int(page.samplesperpixel), photometric_of(page))
    if page.compression in _CCITT:
        return layout in {(1, 1, WHITE_IS_ZERO), (1, 1, BLACK_IS_ZERO)}
    if page.compression in (6, 7):
        return layout in _JPEG_LAYOUTS
    if page.compression not in _PILLOW_COMPRESSIONS or page.fillorder != 1:
        return False
    return _is_plain(page, layout)


def _is_plain(page: Any, layout: tuple[Any, int, int]) -> bool:
    bits, count, photometric = layout
    if page.planarconfig != 1:
        # Also of one sample: Pillow takes each of its strips for a plane.
        return False
    if count == 1:
        is_palette = photometric == PALETTE and not has_byte_colors(page)
        return bits in (1, 2, 4, 8) and (is_palette or photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO))
    if bits != 8:
        return False
    if photometric == RGB:
        return count == 3 or (count == 4 and _ASSOCIATED_ALPHA not in _extra_samples(page))
    return photometric == CMYK and count == 4 and _is_cmyk(page)


def has_levels(page: Any) -> bool:
    """Return whether a page's samples are levels of bands, of gray or of red, green and blue: no palette, no ink."""
    return photometric_of(page) in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)


def needed_samples(page: Any, rule: BandRule) -> tuple[int, ...]:
    """Return which samples of a pixel its colour is made of, from 0.

    Raises:
        ImageError: `unreadable`: a band is asked for that the page does not have.
    """
    count, photometric = int(page.samplesperpixel), photometric_of(page)
    if has_levels(page):
        if rule.bands is not None:
            check_bands(rule.bands, count)
            return tuple(band - 1 for band in rule.bands)
        return (0,) if count < 3 else (0, 1, 2)
    return tuple(range({YCBCR: 3, CMYK: 4}.get(photometric, 1)))


def is_scaled(page: Any, rule: BandRule) -> bool:
    """Return whether the samples become levels by the range of values in the rule."""
    is_deep = isinstance(page.bitspersample, int) and page.bitspersample > 8
    return rule.value_range is not None and has_levels(page) and (is_deep or _sample_format(page) != _UNSIGNED)


def check_layout(page: Any, rule: BandRule = AS_STORED) -> None:
    """Check that `decode_tiff_page` can decode a page's samples, compression and colours.

    Raises:
        ImageError: `unreadable`: it cannot; the message says how to save the file instead.
        ValueError: the page is damaged.
    """
    bits, compression = page.bitspersample, int(page.compression or 1)
    kind = _SAMPLE_KINDS.get(_sample_format(page), "unknown")
    if not isinstance(bits, int):
        raise _unsupported(
            f"samples of different depths ({', '.join(str(each) for each in bits)} bits)", "save it as RGB"
        )
    is_number = kind in _SCALED_BITS and bits in _SCALED_BITS[kind]
    if not (is_scaled(page, rule) and is_number) and (kind != "unsigned" or bits > _DEEPEST):
        way_out = "store 8 or 16 bits per sample, unsigned"
        if is_number and has_levels(page):
            way_out += ", or set input.value_range to the values that are black and white"
        raise ImageError("unreadable", f"TIFF: {kind} {bits}-bit samples have no defined brightness; {way_out}")
    if compression not in _BYTE_COMPRESSIONS:
        name = _COMPRESSION_NAMES.get(compression, f"number {compression}")
        raise _unsupported(f"compression {name} and {bits}-bit samples of this layout", "save it with deflate or LZW")
    if page.predictor not in ((1, 2, 3) if kind == "floating-point" else (1, 2)):
        raise _unsupported(f"predictor {int(page.predictor)} and unsigned samples", "save it without")
    if int(page.imagedepth) != 1 or int(page.tiledepth) != 1:
        raise _unsupported("a volume of several slices", "save them as images")
    _check_colors(page, bits)


def _check_colors(page: Any, bits: int) -> None:
    count, photometric = int(page.samplesperpixel), photometric_of(page)
    if photometric not in _SAMPLES:
        name = _PHOTOMETRIC_NAMES.get(photometric, f"photometric interpretation {photometric}")
        raise _unsupported(f"{name} colours", "save it as RGB")
    least, most = _SAMPLES[photometric]
    if photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and count >= 3:
        # Bands of a satellite or a multispectral camera, which writers declare as gray with extra samples.
        most = _MAX_SAMPLES
    if not least <= count <= most:
        raise _unsupported(f"{count} samples per pixel of unknown colours", "save it as RGB")
    if photometric == CMYK and not _is_cmyk(page):
        raise _unsupported("inks other than CMYK", "save it as RGB")
    if photometric == YCBCR and (bits != 8 or not _is_plain_ycbcr(page)):
        raise _unsupported("YCbCr that is subsampled or not full-range, outside JPEG", "save it as RGB")
    if photometric == PALETTE and len(color_map(page)) != 3 << bits:
        raise ValueError(f"its palette has {len(color_map(page))} values, not {3 << bits}")


def _unsupported(what: str, way_out: str) -> ImageError:
    return ImageError("unreadable", f"TIFF with {what} is not supported; {way_out}")


def is_decoded_in_segments(page: Any) -> bool:
    """Return whether GDAL gives the samples of a strip or tile as they are stored, as the tests compare it.

    It converts inks and YCbCr to red, green, blue and alpha.
    """
    photometric, compression = photometric_of(page), int(page.compression or 1)
    if compression == _JPEG:
        return (page.bitspersample, int(page.samplesperpixel), photometric) in _JPEG_LAYOUTS and photometric != CMYK
    return compression in _BYTE_COMPRESSIONS and photometric not in (YCBCR, CMYK) and page.fillorder == 1


def has_subsampled_colors(page: Any) -> bool:
    """Return whether Cb and Cr are stored for several pixels together, which libraries interpolate differently."""
    subsampling = tuple(page.tags.valueof(_TAG_SUBSAMPLING, (2, 2)))
    return photometric_of(page) == YCBCR and subsampling != (1, 1)


def segment_size(page: Any) -> tuple[int, int]:
    """Return the (height, width) of a page's strips or tiles in pixels."""
    if page.is_tiled:
        return int(page.tilelength), int(page.tilewidth)
    return int(page.rowsperstrip), int(page.imagewidth)


def missing_segments(page: Any) -> NDArray[np.bool_]:
    """Return which strips or tiles a sparse page lacks, [down, across]; of planes the first."""
    rows, columns = segment_size(page)
    shape = (math.ceil(int(page.imagelength) / rows), math.ceil(int(page.imagewidth) / columns))
    sizes = np.asarray(page.databytecounts[: shape[0] * shape[1]])
    return np.asarray((sizes == 0).reshape(shape))


def refuse_sparse(page: Any) -> None:
    """Refuse a page that lacks strips or tiles, in whose place Pillow reads the beginning of the file.

    Raises:
        ImageError: `unreadable`: it does.
    """
    if 0 in page.databytecounts:
        raise ImageError("unreadable", _SPARSE)


def check_segments(page: Any, file_bytes: int, max_pixels: int, *, is_sparse_allowed: bool = False) -> None:
    """Check that all strips or tiles are in the file, and that none is so large that decoding it would fill the memory.

    Args:
        is_sparse_allowed: whether strips or tiles may be missing.

    Raises:
        ImageError: `unreadable`: a sparse file.
        ValueError, EOFError: the page is damaged.
    """
    width, height = int(page.imagewidth), int(page.imagelength)
    down, across = segment_size(page)
    if across < 1 or down < 1 or across * down > max(max_pixels, _LARGEST_SMALL_TILE):
        raise ValueError(f"its header says tiles of {across} x {down} pixels")
    planes = int(page.samplesperpixel) if page.planarconfig == 2 else 1
    if page.planarconfig == 1 and across * down * int(page.samplesperpixel) > 8 * max(max_pixels, _LARGEST_SMALL_TILE):
        raise ValueError(f"its strips or tiles have {page.samplesperpixel} samples for each of {across * down} pixels")
    expected = math.ceil(width / across) * math.ceil(height / down) * planes
    if expected > _MAX_SEGMENTS:
        raise ValueError(f"it is cut into {expected} strips or tiles")
    offsets, sizes = page.dataoffsets, page.databytecounts
    if len(offsets) < expected or len(sizes) < expected:
        raise ValueError(f"only {min(len(offsets), len(sizes))} of {expected} strips or tiles exist")
    for offset, size in zip(offsets[:expected], sizes[:expected], strict=True):
        if size == 0 and not is_sparse_allowed:
            raise ImageError("unreadable", _SPARSE)
        if offset + size > file_bytes:
            raise EOFError


def photometric_of(page: Any) -> int:
    """Return the photometric interpretation of a page; 0 (white is zero) where the tag is missing."""
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
    """Return whether each pixel has its three samples, over the full range."""
    return tuple(page.tags.valueof(_TAG_SUBSAMPLING, (2, 2))) == (1, 1) and _TAG_REFERENCE_BLACK_WHITE not in page.tags


def color_map(page: Any) -> NDArray[np.uint16]:
    """Return all reds, then all greens, then all blues; empty without a palette."""
    value = page.tags.valueof(_TAG_COLOR_MAP)
    return np.asarray(() if value is None else value, np.uint16).reshape(-1)


def has_byte_colors(page: Any) -> bool:
    """Return whether the palette holds 8-bit levels, which some writers store in its 16-bit values."""
    colors = color_map(page)
    return bool(colors.size) and int(colors.max()) < 256
