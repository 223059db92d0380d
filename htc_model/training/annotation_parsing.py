"""Validates the box, mask and area of one COCO annotation, and names the reason if they cannot be used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import pycocotools.mask

from htc_model.masks.rle import decode_lengths

# A polygon of fewer corners has no inside; COCO stores two numbers per corner.
_MIN_POLYGON_NUMBERS = 6
# How many image sizes a corner may lie outside. pycocotools walks along an edge pixel by pixel, however long it is.
_MAX_IMAGE_SIZES = 2
# Far beyond any coordinate; larger integers than 64 bits hold are no numbers for NumPy.
_LARGEST_NUMBER = 1e18
_NO_FIT = "the run lengths do not fit the image"

Size = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """An object's box in pixels: xyxy is clipped to the image.

    unclipped_xywh: as in the file; None where the box was taken from the mask. flaw: why the file's box cannot be used;
        empty if it is used, or if the file has none.
    """

    xyxy: tuple[float, float, float, float]
    unclipped_xywh: tuple[float, float, float, float] | None = None
    flaw: str = ""


class RejectedError(Exception):
    """An annotation cannot be used; the message is a short reason, by which such annotations are counted."""


def validate_segmentation(segmentation: Any, size: Size) -> tuple[Any, list[str]]:
    """Keep the parts of a segmentation that can be rasterised.

    Args:
        segmentation: polygons, run lengths (plain or compressed), or nothing.
        size: (height, width) of the image.

    Returns:
        the segmentation without its flawed polygons (None for nothing at all), and those polygons' flaws.

    Raises:
        RejectedError: it is neither polygons nor run lengths of this image.
    """
    if segmentation is None or segmentation in ([], {}, ""):
        return None, []
    if not isinstance(segmentation, list):
        return _validate_rle(segmentation, size), []
    # One polygon without the list around it.
    parts = [segmentation] if _are_numbers(segmentation) else segmentation
    flaws = [_polygon_flaw(part, size) for part in parts]
    sound = [part for part, flaw in zip(parts, flaws, strict=True) if flaw is None]
    return sound, [flaw for flaw in flaws if flaw is not None]


def _polygon_flaw(part: Any, size: Size) -> str | None:
    if isinstance(part, Mapping):
        return "run lengths among polygons"
    if not _are_numbers(part):
        return "polygon with coordinates that are not finite numbers"
    if len(part) % 2:
        return "polygon with half a point"
    if len(part) < _MIN_POLYGON_NUMBERS:
        return "polygon with < 3 points"
    reach = _MAX_IMAGE_SIZES * max(size)
    if min(part) < -reach or max(part) > max(size) + reach:
        return "polygon far outside the image"
    return None


def _are_numbers(values: Any) -> TypeGuard[list[float]]:
    """Return whether this is a list of finite numbers; booleans are not numbers."""
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST_NUMBER < value < _LARGEST_NUMBER
        for value in values
    )


def _validate_rle(segmentation: Any, size: Size) -> Mapping[str, Any]:
    """Check run lengths, and convert plain ones to integers.

    Raises:
        RejectedError: they are not run lengths of this image.
    """
    if not isinstance(segmentation, Mapping):
        raise RejectedError("the segmentation is neither polygons nor run lengths")
    rle_size: Any = segmentation.get("size")
    counts: Any = segmentation.get("counts")
    if not _are_numbers(rle_size) or len(rle_size) != 2 or counts is None:
        raise RejectedError("run lengths without size or counts")
    if rle_size != list(size):
        raise RejectedError(_NO_FIT)
    whole: dict[str, Any] = {"size": list(size), "counts": counts}
    if isinstance(counts, list):
        if not _are_numbers(counts) or not all(count >= 0 and float(count).is_integer() for count in counts):
            raise RejectedError(_NO_FIT)
        whole["counts"] = [int(count) for count in counts]
        if sum(whole["counts"]) != size[0] * size[1]:
            raise RejectedError(_NO_FIT)
        return whole
    if not isinstance(counts, str | bytes):
        raise RejectedError(_NO_FIT)
    try:
        decode_lengths(whole)
    except ValueError:
        raise RejectedError(_NO_FIT) from None
    return whole


def read_box(bbox: Any, segmentation: Any, size: Size) -> Box:
    """Find an object's box.

    Args:
        bbox: COCO's x, y, width, height; where it is missing, or cannot be used, the box is the mask's.
        segmentation: from `validate_segmentation`; None without a mask.
        size: (height, width) of the image.

    Raises:
        RejectedError: there is no box, or no part of it is inside the image.
    """
    flaw = ""
    if bbox:
        if not _are_numbers(bbox) or len(bbox) != 4:
            flaw = "the box is not four numbers"
        elif bbox[2] <= 0 or bbox[3] <= 0:
            flaw = "the box has no area"
        else:
            x, y, width, height = (float(value) for value in bbox)
            xyxy = _clip((x, y, x + width, y + height), size)
            if xyxy is not None:
                return Box(xyxy, (x, y, width, height))
            flaw = "no area inside the image"
    if segmentation is None:
        raise RejectedError(flaw or "no box and no mask")
    xyxy = _clip(_box_of_mask(segmentation, size), size)
    if xyxy is None:
        raise RejectedError(flaw or "no area inside the image")
    return Box(xyxy, flaw=flaw)


def _box_of_mask(segmentation: Any, size: Size) -> tuple[float, float, float, float]:
    if isinstance(segmentation, list):
        corners = np.concatenate([np.asarray(part, float).reshape(-1, 2) for part in segmentation])
        (x1, y1), (x2, y2) = corners.min(axis=0), corners.max(axis=0)
        return x1, y1, x2, y2
    x1, y1, width, height = pycocotools.mask.toBbox(to_rle(segmentation, size)).tolist()
    return x1, y1, x1 + width, y1 + height


def _clip(xyxy: tuple[float, float, float, float], size: Size) -> tuple[float, float, float, float] | None:
    """Clip a box to the image; None when nothing is left of it."""
    height, width = size
    x1, x2 = (min(max(float(edge), 0.0), float(width)) for edge in (xyxy[0], xyxy[2]))
    y1, y2 = (min(max(float(edge), 0.0), float(height)) for edge in (xyxy[1], xyxy[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def read_area(area: Any, box_xyxy: tuple[float, float, float, float], segmentation: Any, size: Size) -> float:
    """Take the file's area in pixels, which decides an object's size class in scoring.

    Where it is missing, it is the mask's, or the box's without a mask.

    Args:
        segmentation: from `validate_segmentation`; None without a mask.
        size: (height, width) of the image.
    """
    if _are_numbers([area]) and area >= 0:
        return float(area)
    if segmentation is not None:
        return float(pycocotools.mask.area(to_rle(segmentation, size)))
    x1, y1, x2, y2 = box_xyxy
    return (x2 - x1) * (y2 - y1)


def to_rle(segmentation: Any, size: Size) -> Any:
    """Convert a valid segmentation to pycocotools' compressed run lengths."""
    if isinstance(segmentation, list):
        return pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return pycocotools.mask.frPyObjects(segmentation, *size)
    return segmentation
