"""Reads from the tags of a GeoTIFF where it lies on the ground.

The tags are those of OGC 19-008r4 (GeoTIFF 1.1), read as GDAL reads them. A coordinate system with an EPSG number needs
no further package; one that is described by its parameters alone becomes WKT by rasterio (extra `geo`), and stays
unknown without it. World files (.tfw) and other files beside an image are not read.
"""

import io
import logging
import math
from typing import Any

from pipeline.errors import ImageError
from pipeline.inputs.byte_ranges import ByteRanges, PayloadRanges
from pipeline.inputs.formats.tiff import choose_page
from pipeline.inputs.georeference import Affine6, Georeference
from pipeline.inputs.raster import Raster

_TAG_PIXEL_SCALE, _TAG_TIE_POINTS, _TAG_TRANSFORMATION, _TAG_KEYS = 33550, 33922, 34264, 34735
_KEY_MODEL_TYPE, _KEY_RASTER_TYPE, _KEY_GEOGRAPHIC, _KEY_PROJECTED = 1024, 1025, 2048, 3072
_MODEL_PROJECTED, _MODEL_GEOGRAPHIC = 1, 2
_PIXEL_IS_POINT = 2
# Numbers of EPSG in a key (OGC 19-008r4, requirements 12.4 and 17.4); the others mean "undefined" and "user-defined".
_EPSG_NUMBERS = range(1024, 32767)
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
log = logging.getLogger(__name__)


def is_tiff(head: bytes) -> bool:
    """Return whether a file begins as a TIFF or BigTIFF."""
    return head[:4] in _TIFF_SIGNATURES


def read_georeference(payload: bytes) -> Georeference | None:
    """Read where an image lies on the ground.

    Args:
        payload: a whole file that `decode_image` decodes.

    Returns:
        None for a file that is no TIFF, or one that does not say.
    """
    if not is_tiff(payload):
        return None
    return georeference_of(choose_page(io.BytesIO(payload)).page, PayloadRanges(payload))


def georeference_of(page: Any, ranges: ByteRanges) -> Georeference | None:
    """Return where a page of a TIFF lies, upright as it is decoded.

    Args:
        page: tifffile's.
        ranges: the whole TIFF, in which GDAL looks for a coordinate system without a number.
    """
    keys = _keys(page)
    transform = _transform(page, is_point=keys.get(_KEY_RASTER_TYPE) == _PIXEL_IS_POINT)
    if transform is None:
        return None
    orientation = page.tags.valueof(274)
    size = (int(page.imagelength), int(page.imagewidth))
    return Georeference(_crs(keys, ranges), turn_upright(transform, orientation, size))


def turn_upright(transform: Affine6, orientation: object, size: tuple[int, int]) -> Affine6:
    """Return the transform of an image that is turned upright.

    Args:
        transform: of the pixels as they are stored.
        orientation: TIFF's, 1 to 8; anything else is 1.
        size: (height, width) as stored.
    """
    a, b, c, d, e, f = transform
    height, width = size
    if orientation in (5, 6, 7, 8):
        # Columns of the upright image are rows of the stored one.
        a, b, d, e = b, a, e, d
        height, width = width, height
    if orientation in (2, 3, 6, 7):
        c, f, a, d = c + a * width, f + d * width, -a, -d
    if orientation in (3, 4, 7, 8):
        c, f, b, e = c + b * height, f + e * height, -b, -e
    return (a, b, c, d, e, f)


def _transform(page: Any, *, is_point: bool) -> Affine6 | None:
    matrix, scale, ties = (_numbers(page, tag) for tag in (_TAG_TRANSFORMATION, _TAG_PIXEL_SCALE, _TAG_TIE_POINTS))
    if len(scale) >= 2 and len(ties) >= 6 and scale[0] and scale[1]:
        # As GDAL, which takes the scale as a size: rows run to the south whatever its sign.
        a, e = scale[0], -abs(scale[1])
        found: Affine6 = (a, 0.0, ties[3] - ties[0] * a, 0.0, e, ties[4] - ties[1] * e)
    elif len(matrix) == 16:
        found = (matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7])
    else:
        return None
    a, b, c, d, e, f = found
    if is_point:
        # The tags place the middle of a pixel.
        c, f = c - (a + b) / 2, f - (d + e) / 2
    if not all(map(math.isfinite, (a, b, c, d, e, f))) or a * e == b * d:
        return None
    return (a, b, c, d, e, f)


def _numbers(page: Any, tag: int) -> tuple[float, ...]:
    value = page.tags.valueof(tag)
    if not isinstance(value, tuple):
        return ()
    return tuple(float(each) for each in value if isinstance(each, int | float))


def _keys(page: Any) -> dict[int, int]:
    """Return the keys with a short value (OGC 19-008r4, 7.1.2): a header of four, then four numbers for each key."""
    value = page.tags.valueof(_TAG_KEYS)
    if not isinstance(value, tuple) or not all(isinstance(each, int) for each in value):
        return {}
    entries = [value[at : at + 4] for at in range(4, len(value) - 3, 4)]
    return {key: number for key, location, _, number in entries if location == 0}


def _crs(keys: dict[int, int], ranges: ByteRanges) -> str | None:
    if not keys:
        return None
    model = keys.get(_KEY_MODEL_TYPE)
    number = keys.get(_KEY_PROJECTED if model == _MODEL_PROJECTED else _KEY_GEOGRAPHIC)
    if model in (_MODEL_PROJECTED, _MODEL_GEOGRAPHIC) and number in _EPSG_NUMBERS:
        return f"EPSG:{number}"
    return _described_crs(ranges)


def _described_crs(ranges: ByteRanges) -> str | None:
    """Return the coordinate system as GDAL reads it; None where it names none or rasterio is not installed."""
    try:
        with Raster(ranges) as raster:
            return raster.crs()
    except (ImportError, ImageError, ValueError) as error:
        log.debug("the coordinate system is not known: %s", error)
        return None
