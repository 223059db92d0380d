"""Georeference: where an image lies on the ground."""

from dataclasses import dataclass

Affine6 = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f), see `Georeference.transform`."""


@dataclass(frozen=True)
class Georeference:
    """Where an image lies on the ground.

    crs: the coordinate system, as "EPSG:n" where it has a number there, else as WKT; None where the file names none.
    transform: (a, b, c, d, e, f), in the order of rasterio and of STAC's `proj:transform`: a point of the image
    (column, row), counted in pixels from the upper left corner of the upper left pixel, lies at
    x = a * column + b * row + c, y = d * column + e * row + f.
    """

    crs: str | None
    transform: Affine6
