"""World coordinates for GeoJSON: outlines in pixels through their image's transform into a coordinate system.

Corners are transformed; the edges between them stay straight. Many instances of one coordinate system are transformed
at once, as PROJ takes longer to begin than for a thousand corners.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, SpecError
from pipeline.text import count_of

if TYPE_CHECKING:
    from jobs.results.export.polygons import Points
    from jobs.results.export.selection import ExportedImage, Selection

    Shapes = dict[int, list[list[Points]]]


class Crs(StrEnum):
    """In what coordinates GeoJSON is written.

    auto: WGS 84 where images of the run say where they lie, else pixels. wgs84: longitude and latitude, as RFC 7946
    wants. native: those of the images, which must be of one system. pixels: from the image's upper left corner.
    """

    AUTO = "auto"
    WGS84 = "wgs84"
    NATIVE = "native"
    PIXELS = "pixels"


WGS84 = "EPSG:4326"
INSTALL = "pip install 'htc-batch[geo]'"
# Their axes are longitude and latitude of WGS 84 (OGC 07-092r1), so that nothing is to be transformed.
_LONGITUDE_LATITUDE = frozenset({WGS84, "OGC:CRS84"})
# At most so many instances are transformed at once; a call of PROJ costs as much as some thousand corners.
BATCH_INSTANCES = 2048
# 0.1 mm on the ground in degrees, and in metres: finer than any pixel.
_DEGREE_DECIMALS, _UNIT_DECIMALS = 9, 4
_AUTHORITY = re.compile(r"[A-Za-z]+:[A-Za-z0-9.]+")
# Projections that enlarge what is far from the equator, up to any factor: areas in them are not those on the ground.
_ENLARGING = frozenset({"merc", "webmerc"})


@dataclass(frozen=True)
class WorldSystem:
    """A target of the transformation.

    crs: its name; None for the system of the images. member: its name in a file that is not in WGS 84, as GDAL and QGIS
    read it; None where there is none.
    """

    crs: str | None
    member: str | None = None

    @property
    def decimals(self) -> int:
        """The digits behind the point of a coordinate that is written."""
        return _DEGREE_DECIMALS if self.crs in _LONGITUDE_LATITUDE else _UNIT_DECIMALS


@dataclass(frozen=True)
class PlacedInstance:
    """An instance on the ground.

    parts: of each polygon the outer ring, counterclockwise, and the rings of its holes, clockwise, [V, 2] (x, y).
    area_m2: of its pixels; None where the coordinate system is not one of metres.
    """

    parts: "list[list[Points]]"
    area_m2: float | None


def choose_system(selection: "Selection", asked: Crs) -> WorldSystem | None:
    """Choose the target by the images; None for pixels.

    Raises:
        SpecError: no image says where it lies, images are of several systems, or rasterio is missing.
    """
    if asked is Crs.PIXELS:
        return None
    systems = selection.coordinate_systems()
    if not systems:
        if asked is Crs.AUTO:
            return None
        raise SpecError(
            f"No image of run {selection.run} says where it lies; leave --crs out, or add --crs pixels, for pixels."
        )
    if asked is Crs.NATIVE:
        systems = selection.coordinate_systems(is_sparse=True) if len(systems) > 1 else systems
        if len(systems) > 1:
            names = ", ".join(_short(each) for each in systems[:4])
            raise SpecError(
                f"The images of run {selection.run} are in {count_of(len(systems), 'coordinate system')} ({names}), "
                "and a file holds one; use --crs wgs84, or choose instances of one with --where."
            )
        # Without an instance that is chosen, any of them will do.
        only = systems[0] if systems else WGS84
        return WorldSystem(only, _member(only))
    if any(each not in _LONGITUDE_LATITUDE for each in systems):
        _check_rasterio(systems)
    return WorldSystem(WGS84)


def _short(crs: str) -> str:
    if _AUTHORITY.fullmatch(crs):
        return crs
    named = re.match(r'\w+\["([^"]*)"', crs)
    return named[1] if named else "one without a name"


def _member(crs: str) -> str | None:
    """Return a system's name as the `crs` member of GeoJSON 2008 has it."""
    if crs in _LONGITUDE_LATITUDE or not _AUTHORITY.fullmatch(crs):
        return None
    authority, _, code = crs.partition(":")
    return f"urn:ogc:def:crs:{authority}::{code}"


def _check_rasterio(systems: Sequence[str]) -> None:
    try:
        import rasterio.warp  # noqa: F401
    except ImportError:
        first = next(each for each in systems if each not in _LONGITUDE_LATITUDE)
        raise SpecError(
            f"From {_short(first)} to longitude and latitude needs rasterio ({INSTALL}); --crs native keeps the "
            "images' own coordinates."
        ) from None


def place_instances(
    images: "Iterable[tuple[ExportedImage, Shapes]]", system: WorldSystem
) -> "Iterator[tuple[ExportedImage, Mapping[int, PlacedInstance]]]":
    """Place the outlines of images that say where they lie.

    Args:
        images: each with the parts of its masks in pixels, by the instance's number.

    Yields:
        Each image with its instances on the ground; those without a place in the target system are not there.

    Raises:
        InputError: an image's coordinate system is not known to PROJ.
    """
    waiting: list[tuple[ExportedImage, Shapes]] = []
    count = 0
    for each in images:
        waiting.append(each)
        count += len(each[1])
        if count >= BATCH_INSTANCES:
            yield from _placed(waiting, system)
            waiting, count = [], 0
    yield from _placed(waiting, system)


def _placed(
    images: "Sequence[tuple[ExportedImage, Shapes]]", system: WorldSystem
) -> "Iterator[tuple[ExportedImage, dict[int, PlacedInstance]]]":
    rings: dict[str, list[NDArray[np.float64]]] = {}
    for image, shapes in images:
        own = rings.setdefault(image.crs or "", [])
        own.extend(_on_ground(ring, image) for parts in shapes.values() for part in parts for ring in part)
    moved = {crs: iter(_transformed(own, crs, system)) for crs, own in rings.items()}
    for image, shapes in images:
        following = moved[image.crs or ""]
        unit = _square_metres(image.crs or "")
        pixel_m2 = None if unit is None else abs(_determinant(image)) * unit
        placed: dict[int, PlacedInstance] = {}
        for each in image.instances:
            if each.instance not in shapes:
                continue
            parts = [[next(following) for _ in part] for part in shapes[each.instance]]
            if all(np.isfinite(ring).all() for part in parts for ring in part):
                area = None if pixel_m2 is None or each.area is None else each.area * pixel_m2
                placed[each.instance] = PlacedInstance([_turned(part) for part in parts], area)
        yield image, placed


def _determinant(image: "ExportedImage") -> float:
    a, b, _, d, e, _ = image.transform or (0.0,) * 6
    return a * e - b * d


def _on_ground(ring: NDArray[np.float64], image: "ExportedImage") -> NDArray[np.float64]:
    """Apply an image's transform to corners in pixels."""
    a, b, c, d, e, f = image.transform or (0.0,) * 6
    x, y = ring[:, 0], ring[:, 1]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def _transformed(rings: Sequence[NDArray[np.float64]], crs: str, system: WorldSystem) -> Sequence[NDArray[np.float64]]:
    """Transform rings of one system; corners without a place in the target become infinite."""
    if not rings or system.crs == crs:
        return rings
    if crs in _LONGITUDE_LATITUDE:
        return [_unbroken(ring) for ring in rings]
    corners = _to_wgs84(np.concatenate(rings), crs)
    if corners is None:
        # One corner without a place makes PROJ refuse all: find whose it is.
        each = [_to_wgs84(ring, crs) for ring in rings]
        moved = [np.full_like(ring, np.inf) if one is None else one for ring, one in zip(rings, each, strict=True)]
    else:
        moved = np.split(corners, np.cumsum([len(ring) for ring in rings])[:-1])
    return [_unbroken(ring) for ring in moved]


def _to_wgs84(corners: NDArray[np.float64], crs: str) -> NDArray[np.float64] | None:
    """Return longitudes and latitudes; None where PROJ has none for a corner."""
    # Rasterio raises GDAL's errors as they are, and has no public name for them.
    from rasterio._err import CPLE_BaseError
    from rasterio.warp import transform

    try:
        x, y = transform(_known(crs), _known(WGS84), corners[:, 0], corners[:, 1])
    except CPLE_BaseError:
        return None
    return np.stack([np.asarray(x), np.asarray(y)], axis=1)


def _unbroken(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep a ring across the 180th meridian together: beyond it longitudes go on counting."""
    x = ring[:, 0]
    if len(x) and np.isfinite(x).all() and np.ptp(x) > 180:
        ring = np.stack([np.where(x < 0, x + 360, x), ring[:, 1]], axis=1)
    return ring


def _turned(part: "list[Points]") -> "list[Points]":
    """Return the rings in the directions of RFC 7946, 3.1.6."""
    return [ring if (_signed_area(ring) > 0) == (number == 0) else ring[::-1] for number, ring in enumerate(part)]


def _signed_area(ring: NDArray[np.float64]) -> float:
    # From the first corner on: coordinates in metres are large beside the ring, and their products would cancel out.
    x, y = (ring - ring[0]).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


@cache
def _known(crs: str) -> Any:
    """Return rasterio's object of a coordinate system.

    Raises:
        InputError: PROJ does not know it.
    """
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return CRS.from_user_input(crs)
    except CRSError as error:
        raise InputError(
            f"The coordinate system {_short(crs)} is not known to this PROJ ({error}); --crs native keeps it."
        ) from error


@cache
def _square_metres(crs: str) -> float | None:
    """Return the square metres of a square unit of a projected system; None where areas in it are not those on the
    ground, or rasterio is not installed."""
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return None
    found = _known(crs)
    if not found.is_projected or found.to_dict().get("proj") in _ENLARGING:
        return None
    return float(found.linear_units_factor[1]) ** 2
