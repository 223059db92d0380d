"""Reads labelme's JSON files: one per image, beside it or elsewhere.

labelme draws on the upright image and writes its size, so coordinates are those of the upright image.
"""

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipeline.datasets.formats.files import ImageFinder, SourceFiles, load_json
from pipeline.datasets.geometry import ellipse_polygon
from pipeline.datasets.source import Flaws, MaskPatch, SourceDataset, SourceImage, SourceObject
from pipeline.errors import InputError, SpecError

# labelme's own names for pixels that are of no class.
NOT_A_CLASS = frozenset({"__ignore__", "_background_"})
_WITHOUT_AREA = frozenset({"point", "points", "line", "linestrip"})


def is_labelme(document: Any) -> bool:
    """Return whether a JSON document is one of labelme's."""
    return isinstance(document, Mapping) and isinstance(document.get("shapes"), list) and "imagePath" in document


def read_labelme(files: SourceFiles, finder: ImageFinder, flaws: Flaws, *, keeps_empty: bool) -> SourceDataset:
    """Read every labelme file.

    Args:
        keeps_empty: images without a labelme file are taken, too, as images without objects.

    Raises:
        InputError: no file can be read.
    """
    images: list[SourceImage] = []
    taken: set[Path] = set()
    for path in files.with_suffix(".json"):
        name = files.name_of(path)
        try:
            document = load_json(path, name)
        except SpecError as error:
            flaws.leave_out("JSON file that cannot be read", str(error).rstrip("."))
            continue
        if not is_labelme(document):
            flaws.leave_out("JSON file that labelme did not write", name)
            continue
        image = _read_file(path, name, document, finder, flaws)
        if image.path is not None:
            if image.path in taken:
                flaws.leave_out("second labelme file of one image", name)
                continue
            taken.add(image.path)
        images.append(image)
    if not images:
        reasons = [f"{kind}: {names[0]}" for kind, names in flaws.left_out.items()]
        raise InputError(f"{files.root} has no labelme file that can be read ({'; '.join(reasons)}).")
    notes = []
    # One labelme file says nothing about the photos beside its own.
    without = [] if files.is_file else [path for path in files.images if path not in taken]
    if without and keeps_empty:
        images.extend(SourceImage(files.name_of(path), path, None) for path in without)
        notes.append(f"{len(without):,} images without a labelme file count as images without objects.")
    elif without:
        notes.append(
            f"{len(without):,} images have no labelme file and are not in the result; --keep-empty takes them as "
            "images without objects."
        )
    return SourceDataset("labelme", tuple(images), notes=tuple(notes))


def _read_file(path: Path, name: str, document: Mapping[str, Any], finder: ImageFinder, flaws: Flaws) -> SourceImage:
    stated = document.get("imagePath")
    # labelme on Windows writes backslashes.
    stated = PureWindowsPath(stated).as_posix() if isinstance(stated, str) and stated else None
    file = finder.beside(path, stated)
    payload = None
    if file is None and isinstance(document.get("imageData"), str):
        try:
            payload = base64.b64decode(document["imageData"], validate=True)
        except binascii.Error:
            flaws.change("imageData that is not base64", name)
    sides = document.get("imageWidth"), document.get("imageHeight")
    size = sides if all(isinstance(side, int) and side > 0 for side in sides) else None
    objects: list[SourceObject] = []
    for number, shape in enumerate(document["shapes"]):
        entry = _read_shape(shape, f"shape {number}", name, flaws)
        if entry is not None:
            objects.append(entry)
    # An image that lies only inside its annotation file is named after that file.
    shown = name if file is not None or payload is None else str(PurePosixPath(name).with_suffix(""))
    return SourceImage(shown, file, size, tuple(objects), payload)  # type: ignore[arg-type]


def _read_shape(shape: Any, where: str, name: str, flaws: Flaws) -> SourceObject | None:
    """Read one shape; None, and recorded, if it is not an object or cannot be used."""
    try:
        return _parse_shape(shape, where)
    except _UnusableError as error:
        flaws.leave_out(str(error), f"{name}, {where}")
        return None


class _UnusableError(Exception):
    """A shape cannot be used; the message is a short reason."""


def _parse_shape(shape: Any, where: str) -> SourceObject:
    label = shape.get("label") if isinstance(shape, Mapping) else None
    if not isinstance(label, str) or not label.strip():
        raise _UnusableError("shape without a label")
    if label in NOT_A_CLASS:
        raise _UnusableError(f"shape that labelme calls {label}")
    kind = str(shape.get("shape_type") or "polygon")
    if kind in _WITHOUT_AREA:
        raise _UnusableError(f"shape without an area ({kind})")
    points = _read_points(shape.get("points"))
    group = shape.get("group_id")
    if kind == "mask":
        return SourceObject(label, where, patches=(_read_mask(shape.get("mask"), points),), group=group)
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return SourceObject(label, where, box=(x1, y1, x2 - x1, y2 - y1), group=group)
    if kind == "circle" and len(points) == 2:
        radius = math.dist(points[0], points[1])
        polygon = ellipse_polygon((float(points[0, 0]), float(points[0, 1])), (radius, radius))
        return SourceObject(label, where, polygons=(polygon,), group=group)
    if kind in {"polygon", "rectangle", "oriented_rectangle"}:
        return SourceObject(label, where, polygons=(points,), group=group)
    raise _UnusableError(f"shape of an unknown type ({kind[:30]})")


def _read_points(values: Any) -> NDArray[np.float64]:
    try:
        points = np.array(values, np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise _UnusableError("shape whose points are not pairs of numbers")
    return points


def _read_mask(encoded: Any, points: NDArray[np.float64]) -> MaskPatch:
    """Read a mask: a PNG of the box that the two points bound, whose edges belong to it."""
    if not isinstance(encoded, str) or len(points) != 2:
        raise _UnusableError("mask that cannot be read")
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(base64.b64decode(encoded, validate=True))) as png:
            bitmap = np.asarray(png.convert("L")) > 0
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise _UnusableError("mask that cannot be read") from None
    left, top = (int(edge) for edge in points.min(axis=0))
    right, bottom = (int(edge) for edge in points.max(axis=0))
    if bitmap.shape != (bottom - top + 1, right - left + 1):
        raise _UnusableError("mask of another size than its box")
    return MaskPatch(left, top, bitmap)


def first_json(path: Path) -> Any:
    """Return a JSON document, or None if it is none: to recognise the format of a folder."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
