"""labelme's format: a JSON file per image, beside the image or with its absolute path."""

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jobs.results.export.polygons import with_polygons
from jobs.results.export.selection import bitmap_of
from jobs.results.export.writers import ExportFolder, Progress

if TYPE_CHECKING:
    from jobs.results.export.images import FindPath
    from jobs.results.export.selection import ExportedImage, ExportedInstance, Selection

# The release whose reader has the shape type "mask" (5.2 is the first).
VERSION = "5.2.0"


def write_labelme(
    selection: "Selection",
    folder: ExportFolder,
    progress: Progress,
    *,
    tolerance_px: float,
    find_path: "FindPath",
) -> None:
    """Write `NAME.json` of each image.

    An instance is a polygon per part, of one `group_id`; with a hole, which labelme's polygons cannot have, a shape of
    the type "mask".

    Args:
        find_path: where labelme finds an image; others are named by their URI.
    """
    for image, outlines in with_polygons(selection.by_image(), tolerance_px):
        shapes: list[dict[str, Any]] = []
        for group, each in enumerate(image.instances):
            parts = outlines.get(each.instance)
            if parts is None:
                x, y, width, height = each.bbox_xywh
                shapes.append(_shape(each, None, "rectangle", [[x, y], [x + width, y + height]]))
            elif any(len(part) > 1 for part in parts):
                folder.counts["{n} with holes, written as masks"] += 1
                shapes.append(_mask_shape(image, each, group))
            else:
                shapes += [_shape(each, group, "polygon", part[0].tolist()) for part in parts]
        folder.write_json(f"{image.stem}.json", _document(image, shapes, find_path(image) or image.uri))
        progress(len(image.instances))


def _document(image: "ExportedImage", shapes: list[dict[str, Any]], path: str) -> dict[str, Any]:
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": path,
        "imageData": None,
        "imageHeight": image.height,
        "imageWidth": image.width,
    }


def _shape(
    instance: "ExportedInstance", group: int | None, shape_type: str, points: list[list[float]], mask: str | None = None
) -> dict[str, Any]:
    return {
        "label": instance.category.name,
        "points": points,
        "group_id": group,
        "description": f"score {instance.score:.4g}",
        "shape_type": shape_type,
        "flags": {},
        "mask": mask,
    }


def _mask_shape(image: "ExportedImage", instance: "ExportedInstance", group: int) -> dict[str, Any]:
    """Return a shape with the mask as a PNG of its box; the box's second corner is inclusive."""
    bitmap = bitmap_of(image, instance)
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    top, bottom, left, right = (int(value) for value in (rows[0], rows[-1], columns[0], columns[-1]))
    file = io.BytesIO()
    Image.fromarray(bitmap[top : bottom + 1, left : right + 1].astype(np.uint8) * 255).convert("1").save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    return _shape(instance, group, "mask", [[left, top], [right, bottom]], text)
