"""One annotation's box and mask, checked value by value: what cannot be used is told in a few words."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pycocotools.mask

from htc_model.rle import decode_lengths

# A polygon of fewer corners has no inside; COCO stores two numbers per corner.
_MIN_POLYGON_NUMBERS = 6
# So many image sizes may a corner lie outside. pycocotools walks along an edge pixel by pixel, however long it is.
_MOST_IMAGE_SIZES = 2

Size = tuple[int, int]


class RejectedError(Exception):
    """An annotation cannot be used; the message is a short name to count by."""


def sound_segmentation(segmentation: Any, size: Size) -> tuple[Any, list[str]]:
    """Keep what can be drawn.

    Args:
        segmentation: polygons, run lengths (plain or compressed), or nothing.
        size: (height, width) of the image.

    Returns:
        the segmentation without its flawed polygons (None for nothing at all), and those polygons' flaws.

    Raises:
        RejectedError: there are run lengths, and they are not this image's.
    """
    if segmentation is None or segmentation in ([], {}):
        return None, []
    if not isinstance(segmentation, list):
        if not _is_sound_rle(segmentation, size):
            raise RejectedError("the run lengths do not fit the image")
        return segmentation, []
    flaws = [_polygon_flaw(part, size) for part in segmentation]
    sound = [part for part, flaw in zip(segmentation, flaws, strict=True) if flaw is None]
    return sound, [flaw for flaw in flaws if flaw is not None]


def _polygon_flaw(part: Any, size: Size) -> str | None:
    if isinstance(part, Mapping):
        return "run lengths among polygons"
    if not _are_numbers(part) or len(part) < _MIN_POLYGON_NUMBERS or len(part) % 2:
        return "polygon with < 3 points"
    reach = _MOST_IMAGE_SIZES * max(size)
    if min(part) < -reach or max(part) > max(size) + reach:
        return "polygon far outside the image"
    return None


def _are_numbers(values: Any) -> bool:
    """Whether this is a list of finite numbers; true and false are none."""
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value)) for value in values
    )


def _is_sound_rle(segmentation: Any, size: Size) -> bool:
    if not isinstance(segmentation, Mapping) or segmentation.get("size") != list(size):
        return False
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        are_whole = all(isinstance(count, int) and count >= 0 for count in counts)
        return are_whole and sum(counts) == size[0] * size[1]
    if not isinstance(counts, str | bytes):
        return False
    try:
        decode_lengths(segmentation)
    except ValueError:
        return False
    return True


def clip_box(bbox: Any, segmentation: Any, size: Size) -> tuple[float, float, float, float]:
    """Find an object's box in pixels, x1, y1, x2, y2, clipped to the image.

    Args:
        bbox: COCO's x, y, width, height; without it the box is the mask's.
        segmentation: of `sound_segmentation`.
        size: (height, width) of the image.

    Raises:
        RejectedError: there is no box, or nothing of it inside the image.
    """
    if bbox:
        if not _are_numbers(bbox) or len(bbox) != 4:
            raise RejectedError("the box is not four numbers")
        x1, y1, x2, y2 = bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]
    elif isinstance(segmentation, list):
        corners = np.concatenate([np.asarray(part, float).reshape(-1, 2) for part in segmentation])
        (x1, y1), (x2, y2) = corners.min(axis=0), corners.max(axis=0)
    elif segmentation is not None:
        x1, y1, width, height = pycocotools.mask.toBbox(to_rle(segmentation, size)).tolist()
        x2, y2 = x1 + width, y1 + height
    else:
        raise RejectedError("no box and no mask")
    limits = (size[1], size[0]) * 2
    x1, y1, x2, y2 = (
        min(max(float(edge), 0.0), float(limit)) for edge, limit in zip((x1, y1, x2, y2), limits, strict=True)
    )
    if not (x2 > x1 and y2 > y1):
        raise RejectedError("no area inside the image")
    return x1, y1, x2, y2


def read_area(area: Any, box_xyxy: tuple[float, float, float, float]) -> float:
    """Take the file's area in pixels, or the box's where there is none; scoring sorts objects by it."""
    if _are_numbers([area]) and area >= 0:
        return float(area)
    x1, y1, x2, y2 = box_xyxy
    return (x2 - x1) * (y2 - y1)


def to_rle(segmentation: Any, size: Size) -> Any:
    """Turn a sound segmentation into pycocotools' compressed run lengths."""
    if isinstance(segmentation, list):
        return pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return pycocotools.mask.frPyObjects(segmentation, *size)
    return segmentation
