"""GeoJSON: one FeatureCollection of multipolygons, on the ground or in pixels, for QGIS, PostGIS and QuPath."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.results.export.polygons import with_polygons
from jobs.results.export.world import Crs, WorldSystem, choose_system, place_instances
from jobs.results.export.writers import ExportFolder, Progress
from pipeline.errors import SpecError

if TYPE_CHECKING:
    from jobs.results.export.polygons import Points
    from jobs.results.export.selection import ExportedImage, ExportedInstance, Selection

FILE = "instances.geojson"
_UNPLACED = "Images without a place on the ground, left out (--crs pixels exports all): {n}"
_BEYOND = "Instances without a longitude and latitude, left out: {n}"


def write_geojson(
    selection: "Selection", folder: ExportFolder, progress: Progress, *, tolerance_px: float, crs: Crs = Crs.AUTO
) -> None:
    """Write `instances.geojson`: a feature per instance, its image, category, score and box as properties.

    On the ground, coordinates are longitude and latitude (RFC 7946), or those of the images' own system, which a member
    `crs` then names; outer rings are counterclockwise and holes clockwise. In pixels they count from the image's upper
    left corner, x to the right and y down, and must not be projected; outer rings have a positive area in (x, y).

    Raises:
        SpecError: the images do not say where they lie as it is asked for, or the file cannot be written.
        InputError: a mask is damaged, or a coordinate system is not known.
    """
    system = choose_system(selection, crs)
    if system is None:
        features = _in_pixels(selection, progress, tolerance_px)
    else:
        folder.left_out_images = selection.count_unplaced()
        folder.counts[_UNPLACED] += folder.left_out_images
        features = _on_ground(selection, folder, progress, tolerance_px, system)
    written = 0
    try:
        with folder.file(FILE).open("w", encoding="utf-8") as sink:
            sink.write(f'{{"type": "FeatureCollection", {_member(system)}"features": [')
            separator = "\n"
            for feature in features:
                sink.write(separator + json.dumps(feature, ensure_ascii=False))
                separator = ",\n"
                written += 1
            sink.write("\n]}\n")
    except OSError as error:
        raise SpecError(f"{folder.final / FILE} cannot be written: {error.strerror or error}.") from error
    folder.left_out_instances = selection.instances - written


def _member(system: WorldSystem | None) -> str:
    if system is None or system.member is None:
        return ""
    member = {"type": "name", "properties": {"name": system.member}}
    return f'"crs": {json.dumps(member)}, '


def _in_pixels(selection: "Selection", progress: Progress, tolerance_px: float) -> Iterator[dict[str, Any]]:
    for image, geometries in with_polygons(selection.by_image(is_sparse=True), tolerance_px):
        for each in image.instances:
            properties = _properties(image, each) | {"area": each.area, "bbox": list(each.bbox_xywh)}
            yield _feature(_geometry(geometries.get(each.instance, [_box(each)]), each), properties)
        progress(len(image.instances))


def _on_ground(
    selection: "Selection", folder: ExportFolder, progress: Progress, tolerance_px: float, system: WorldSystem
) -> Iterator[dict[str, Any]]:
    traced = with_polygons(selection.by_image(is_sparse=True, is_placed=True), tolerance_px)
    with_boxes = (
        (image, {each.instance: shapes.get(each.instance, [_box(each)]) for each in image.instances})
        for image, shapes in traced
    )
    for image, placed in place_instances(with_boxes, system):
        for each in image.instances:
            if (found := placed.get(each.instance)) is None:
                folder.counts[_BEYOND] += 1
                continue
            area = None if found.area_m2 is None else round(found.area_m2, 4)
            properties = _properties(image, each) | {
                "run": image.run,
                "area_px": each.area,
                "area_m2": area,
                "bbox_px": list(each.bbox_xywh),
            }
            yield _feature(_geometry(found.parts, each, system.decimals), properties)
        progress(len(image.instances))


def _properties(image: "ExportedImage", each: "ExportedInstance") -> dict[str, Any]:
    return {
        "image": image.name,
        "uri": image.uri,
        "instance": each.instance,
        "category": each.category.name,
        "category_id": each.category.category_id,
        "score": each.score,
    }


def _feature(geometry: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _box(instance: "ExportedInstance") -> "list[Points]":
    x, y, width, height = instance.bbox_xywh
    return [np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])]


def _geometry(parts: "list[list[Points]]", instance: "ExportedInstance", decimals: int | None = None) -> dict[str, Any]:
    rings = [[_closed(ring, decimals) for ring in part] for part in parts]
    if instance.mask is None:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def _closed(ring: "Points", decimals: int | None) -> list[list[float]]:
    points: list[list[float]] = (ring if decimals is None else ring.round(decimals)).tolist()
    return [*points, points[0]]
