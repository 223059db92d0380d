"""From the shapes of one image to COCO annotations: joined, clipped to the image, measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pycocotools.mask

from htc_model.masks.rle import encode_bitmap
from pipeline.datasets.geometry import (
    box_polygon,
    clip_polygon,
    draw_parts,
    is_outside,
    polygon_pixels,
    upright_bitmap,
    upright_points,
)
from pipeline.datasets.source import Flaws, MaskPatch, Points, Size, SourceObject
from pipeline.inputs.decode import StoredSize

MIN_CORNERS = 3
# COCO's own files have hundredths of pixels.
_DECIMALS = 2


@dataclass(frozen=True)
class Canvas:
    """The image that shapes are fitted to.

    size: (width, height), upright. turned_from: the stored size and orientation, where shapes were drawn on the stored
        pixels; None where they were drawn on the upright ones.
    """

    size: Size
    turned_from: StoredSize | None = None


def build_annotations(
    objects: Sequence[SourceObject], canvas: Canvas, name: str, flaws: Flaws
) -> list[tuple[str, dict[str, Any]]]:
    """Build the annotations of one image.

    Args:
        name: of the image, for the flaws.

    Returns:
        For each object its label, and its segmentation, bbox, area and iscrowd.
    """
    built = []
    for shapes in _joined(objects):
        parts = _without_boxes(shapes, name, flaws)
        place = f"{name}, {parts[0].where}"
        fitted = [part for part in (_fit(each, canvas, name, flaws) for each in parts) if part is not None]
        if not fitted:
            continue
        entry = _measure(fitted, canvas.size)
        if entry is None:
            flaws.leave_out("mask without a pixel", place)
            continue
        if "segmentation" not in entry:
            flaws.change("box without a mask, kept as a box", place)
        built.append((parts[0].label, entry))
    return built


def _joined(objects: Sequence[SourceObject]) -> list[list[SourceObject]]:
    """Gather the shapes of each object, in the order of their first shapes."""
    gathered: dict[object, list[SourceObject]] = {}
    for number, each in enumerate(objects):
        key = number if each.group is None else (each.label, str(each.group))
        gathered.setdefault(key, []).append(each)
    return list(gathered.values())


def _without_boxes(parts: list[SourceObject], name: str, flaws: Flaws) -> list[SourceObject]:
    """Leave out the boxes of an object that has a mask: they bound it, and are no part of it."""
    if len(parts) == 1 or all(part.box is not None for part in parts):
        return parts
    for part in parts:
        if part.box is not None:
            flaws.change("box in a group that has a mask, taken as its box", f"{name}, {part.where}")
    return [part for part in parts if part.box is None]


def _fit(part: SourceObject, canvas: Canvas, name: str, flaws: Flaws) -> SourceObject | None:
    """Turn a shape upright and clip it to the image; None, and recorded, if nothing is left of it."""
    place = f"{name}, {part.where}"
    if part.box is not None:
        return _fit_box(part, canvas, place, flaws)
    polygons = [
        each for each in (_fit_polygon(each, canvas, place, flaws) for each in part.polygons) if each is not None
    ]
    patches = [each for each in (_fit_patch(each, canvas, place, flaws) for each in part.patches) if each is not None]
    rle = part.rle
    if rle is not None and canvas.turned_from is not None:
        stored = canvas.turned_from
        bitmap = draw_parts((), (), rle, (stored.width, stored.height))
        patches.append(MaskPatch(0, 0, upright_bitmap(bitmap, stored.orientation)))
        rle = None
    if not polygons and not patches and rle is None:
        return None
    return replace(part, polygons=tuple(polygons), patches=tuple(patches), rle=rle)


def _fit_box(part: SourceObject, canvas: Canvas, place: str, flaws: Flaws) -> SourceObject | None:
    box = part.box or (0.0, 0.0, 0.0, 0.0)
    if box[2] <= 0 or box[3] <= 0:
        flaws.leave_out("box without an area", place)
        return None
    polygon = _fit_polygon(box_polygon(box), canvas, place, flaws)
    if polygon is None:
        return None
    (x1, y1), (x2, y2) = polygon.min(axis=0).tolist(), polygon.max(axis=0).tolist()
    return replace(part, box=(x1, y1, x2 - x1, y2 - y1))


def _fit_polygon(points: Points, canvas: Canvas, place: str, flaws: Flaws) -> Points | None:
    if canvas.turned_from is not None:
        stored = canvas.turned_from
        points = upright_points(points, (stored.width, stored.height), stored.orientation)
    if len(np.unique(points, axis=0)) < MIN_CORNERS:
        flaws.leave_out("polygon with < 3 points", place)
        return None
    clipped = clip_polygon(points, canvas.size)
    if len(clipped) < MIN_CORNERS or (np.ptp(clipped, axis=0) == 0).any():
        kind = "polygon without an area" if (np.ptp(points, axis=0) == 0).any() else "mask off the image"
        flaws.leave_out(kind, place)
        return None
    if is_outside(points, canvas.size):
        flaws.change("mask partly off the image, clipped", place)
    return clipped


def _fit_patch(patch: MaskPatch, canvas: Canvas, place: str, flaws: Flaws) -> MaskPatch | None:
    size = canvas.size
    if canvas.turned_from is not None:
        size = (canvas.turned_from.width, canvas.turned_from.height)
    if not patch.bitmap.any():
        flaws.leave_out("mask without a pixel", place)
        return None
    drawn = draw_parts((), (patch,), None, size)
    inside = int(drawn.sum())
    if not inside:
        flaws.leave_out("mask off the image", place)
        return None
    if inside < int(patch.bitmap.sum()):
        flaws.change("mask partly off the image, clipped", place)
    if canvas.turned_from is not None:
        return MaskPatch(0, 0, upright_bitmap(drawn, canvas.turned_from.orientation))
    return patch


def _measure(parts: Sequence[SourceObject], size: Size) -> dict[str, Any] | None:
    """Return the segmentation of all parts together, its box and its area; None if it covers no pixel."""
    is_crowd = int(any(part.is_crowd for part in parts))
    if all(part.box is not None for part in parts):
        return _measure_boxes([part.box for part in parts if part.box is not None], is_crowd)
    polygons = [each for part in parts for each in part.polygons]
    patches = [each for part in parts for each in part.patches]
    rles = [part.rle for part in parts if part.rle is not None]
    if not patches and not rles:
        pixels = polygon_pixels(polygons, size)
        corners = np.concatenate(polygons)
        (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        segmentation: Any = [np.round(each, _DECIMALS).ravel().tolist() for each in polygons]
        box = [x1, y1, x2 - x1, y2 - y1]
    else:
        mask = draw_parts(polygons, patches, None, size)
        for rle in rles:
            mask |= draw_parts((), (), rle, size)
        pixels = int(mask.sum())
        encoded = encode_bitmap(mask)
        counts = encoded["counts"]
        segmentation = {
            "size": list(encoded["size"]),
            "counts": counts.decode() if isinstance(counts, bytes) else counts,
        }
        box = pycocotools.mask.toBbox(segmentation).tolist()
    if not pixels:
        return None
    bbox = [round(value, _DECIMALS) for value in box]
    return {"segmentation": segmentation, "bbox": bbox, "area": pixels, "iscrowd": is_crowd}


def _measure_boxes(boxes: Sequence[tuple[float, float, float, float]], is_crowd: int) -> dict[str, Any]:
    x1, y1 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x2, y2 = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    bbox = [round(value, _DECIMALS) for value in (x1, y1, x2 - x1, y2 - y1)]
    return {"bbox": bbox, "area": round((x2 - x1) * (y2 - y1), _DECIMALS), "iscrowd": is_crowd}


def image_entry(number: int, file_name: str, size: Size, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Build an image's entry of the COCO document."""
    others = {key: value for key, value in fields.items() if key != "id"}
    return {"id": number, "file_name": file_name, "width": size[0], "height": size[1], **others}
