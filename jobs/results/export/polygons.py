"""Polygons for formats that hold simple ones only: holes cut open, parts joined, corners thinned out."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from htc_model.masks.outlines import trace_outlines
from jobs.results.export.selection import ExportedImage, runs_of
from pipeline.errors import SpecError

if TYPE_CHECKING:
    from htc_model.masks.outlines import Polygon

# So many at once cost least for each (benchmarks/export.py).
TRACED_MASKS = 256
Points = NDArray[np.float64]
"""[V, 2] (x, y) in pixels."""


def with_polygons(
    images: Iterable[ExportedImage], tolerance_px: float
) -> Iterator[tuple[ExportedImage, dict[int, list[list[Points]]]]]:
    """Trace the masks of images, those of many images at once.

    Args:
        tolerance_px: how far a polygon may be from the pixels' edges; 0 keeps every corner.

    Yields:
        Each image with the parts of its masks, by the instance's number: each part is the outer ring and the rings of
        its holes. Instances without a mask are not there; an empty mask has no part.

    Raises:
        InputError: a mask is damaged.
    """
    waiting: list[ExportedImage] = []
    masks = 0
    for image in images:
        waiting.append(image)
        masks += len(image.instances)
        if masks >= TRACED_MASKS:
            yield from _traced(waiting, tolerance_px)
            waiting, masks = [], 0
    yield from _traced(waiting, tolerance_px)


def _traced(
    images: Sequence[ExportedImage], tolerance_px: float
) -> Iterator[tuple[ExportedImage, dict[int, list[list[Points]]]]]:
    owners = [(image, each) for image in images for each in image.instances if each.mask is not None]
    outlines = trace_outlines(runs_of(owners)) if owners else []
    shapes: dict[int, dict[int, list[list[Points]]]] = {image.number: {} for image in images}
    for (image, each), parts in zip(owners, outlines, strict=True):
        shapes[image.number][each.instance] = [ring for part in parts if (ring := _rings(part, tolerance_px))]
    for image in images:
        yield image, shapes[image.number]


def _rings(part: "Polygon", tolerance_px: float) -> list[Points]:
    return simplify(part, tolerance_px) if tolerance_px else [ring.astype(np.float64) for ring in part]


def check_tolerance(tolerance_px: float) -> None:
    """Refuse a tolerance where shapely is missing.

    Raises:
        SpecError: it is.
    """
    if tolerance_px:
        try:
            import shapely  # noqa: F401
        except ImportError:
            raise SpecError(
                "--tolerance needs shapely; install htc-batch[export], or leave --tolerance out for exact outlines."
            ) from None


def simplify(polygon: "Polygon", tolerance_px: float) -> list[Points]:
    """Leave out corners that are nearer than this to the outline without them (Douglas-Peucker, by shapely)."""
    import shapely

    shape = shapely.Polygon(polygon[0], polygon[1:]).simplify(tolerance_px, preserve_topology=True)
    rings = [shape.exterior, *shape.interiors] if not shape.is_empty else []
    return [shapely.get_coordinates(ring)[:-1] for ring in rings]


def cut_open(rings: Sequence[Points]) -> Points:
    """Return one ring that runs into each hole and out again by the same way; it fills the same pixels."""
    outline = rings[0]
    # From the left, so that a hole's way out never crosses a later hole.
    for hole in sorted(rings[1:], key=lambda ring: float(ring[:, 0].min())):
        outline = _linked(outline, hole)
    return outline


def join_parts(parts: Sequence[Points]) -> Points:
    """Return one ring through all parts, linked by lines without an area."""
    outline = parts[0]
    for part in parts[1:]:
        outline = _linked(outline, part)
    return outline


def _linked(outline: Points, ring: Points) -> Points:
    """Insert a ring into an outline, at the two corners that are nearest to each other."""
    distances = ((outline[:, None] - ring[None]) ** 2).sum(axis=2)
    at, start = np.unravel_index(int(distances.argmin()), distances.shape)
    turned = np.roll(ring, -int(start), axis=0)
    return np.concatenate([outline[: at + 1], turned, turned[:1], outline[at:]])


def ring_area(ring: Points) -> float:
    """Return the area inside a ring in pixels, without sign."""
    x, y = ring[:, 0], ring[:, 1]
    return abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2
