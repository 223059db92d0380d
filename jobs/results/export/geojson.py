"""GeoJSON: one FeatureCollection of multipolygons in pixels, for QGIS, QuPath, shapely and PostGIS."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.results.export.polygons import with_polygons
from jobs.results.export.writers import ExportFolder, Progress
from pipeline.errors import SpecError

if TYPE_CHECKING:
    from jobs.results.export.selection import ExportedInstance, Selection

FILE = "instances.geojson"


def write_geojson(selection: "Selection", folder: ExportFolder, progress: Progress, *, tolerance_px: float) -> None:
    """Write `instances.geojson`: a feature per instance, its image, category, score and box as properties.

    Coordinates are pixels from the image's upper left corner, x to the right and y down. They are no longitudes: a
    reader must not project them. Outer rings have a positive signed area in (x, y), as RFC 7946 wants, and holes a
    negative one.
    """
    try:
        with folder.file(FILE).open("w", encoding="utf-8") as sink:
            sink.write('{"type": "FeatureCollection", "features": [')
            separator = "\n"
            for image, geometries in with_polygons(selection.by_image(is_sparse=True), tolerance_px):
                for each in image.instances:
                    feature = {
                        "type": "Feature",
                        "geometry": _geometry(each, geometries.get(each.instance)),
                        "properties": {
                            "image": image.name,
                            "uri": image.uri,
                            "instance": each.instance,
                            "category": each.category.name,
                            "category_id": each.category.category_id,
                            "score": each.score,
                            "area": each.area,
                            "bbox": list(each.bbox_xywh),
                        },
                    }
                    sink.write(separator + json.dumps(feature, ensure_ascii=False))
                    separator = ",\n"
                progress(len(image.instances))
            sink.write("\n]}\n")
    except OSError as error:
        raise SpecError(f"{folder.final / FILE} cannot be written: {error.strerror or error}.") from error


def _geometry(instance: "ExportedInstance", parts: list[list[Any]] | None) -> dict[str, Any]:
    if parts is None:
        x, y, width, height = instance.bbox_xywh
        corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
        return {"type": "Polygon", "coordinates": [_closed(corners)]}
    return {"type": "MultiPolygon", "coordinates": [[_closed(ring) for ring in part] for part in parts]}


def _closed(ring: Any) -> list[list[float]]:
    points: list[list[float]] = ring.tolist()
    return [*points, points[0]]
