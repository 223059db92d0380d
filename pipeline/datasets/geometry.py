"""Polygons and bitmaps in pixels: clip, turn upright, measure, find self-crossings."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from pipeline.datasets.source import MaskPatch, Points, Size
from pipeline.inputs.formats.jpeg_decoders import make_upright

# Corners beyond the image by no more than this are rounding of the annotation tool.
_ROUNDING_PX = 0.5
# A polygon of more corners is cut into this many edges at a time when crossings are searched: 8 MB of numbers.
_EDGES_AT_ONCE = 1000
_CIRCLE_CORNERS = 72


def clip_polygon(points: Points, size: Size) -> Points:
    """Clip a polygon to the image, one border after the other (Sutherland and Hodgman, CACM 17(1), 1974).

    Args:
        points: [N, 2] corners.
        size: (width, height) in pixels.

    Returns:
        [M, 2] corners within the image; M is 0 if nothing of it is inside.
    """
    width, height = size
    for axis, limit, sign in ((0, 0.0, 1.0), (0, float(width), -1.0), (1, 0.0, 1.0), (1, float(height), -1.0)):
        if not len(points):
            break
        inside = (points[:, axis] - limit) * sign >= 0
        if inside.all():
            continue
        following, is_next_inside = np.roll(points, -1, axis=0), np.roll(inside, -1)
        kept: list[NDArray[np.float64]] = []
        for one, other, is_in, is_next in zip(points, following, inside, is_next_inside, strict=True):
            if is_in:
                kept.append(one)
            if is_in != is_next:
                share = (limit - one[axis]) / (other[axis] - one[axis])
                crossing = one + share * (other - one)
                crossing[axis] = limit
                kept.append(crossing)
        points = np.array(kept).reshape(-1, 2)
    return points


def is_outside(points: Points, size: Size) -> bool:
    """Return whether a corner lies outside the image by more than rounding."""
    return bool((points.min(axis=0) < -_ROUNDING_PX).any() or (points.max(axis=0) > np.add(size, _ROUNDING_PX)).any())


def upright_points(points: Points, size: Size, orientation: int) -> Points:
    """Turn corners on the stored pixels of an image to the upright image (EXIF 2.32, 4.6.4, orientation 1 to 8).

    Args:
        size: (width, height) as stored.
    """
    width, height = size
    x, y = points[:, 0], points[:, 1]
    turned = {
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }.get(orientation, (x, y))
    return np.stack(turned, axis=1)


def upright_bitmap(bitmap: NDArray[np.bool_], orientation: int) -> NDArray[np.bool_]:
    """Turn a bitmap [H, W] of the stored pixels to the upright image."""
    return make_upright(bitmap[:, :, None].astype(np.uint8), orientation)[:, :, 0].astype(bool)


def draw_parts(polygons: Sequence[Points], patches: Sequence[MaskPatch], rle: Any, size: Size) -> NDArray[np.bool_]:
    """Rasterise the union of polygons, patches and run lengths: [H, W] bool; what lies off the image is cut away."""
    width, height = size
    mask = np.zeros((height, width), bool)
    if polygons:
        parts = pycocotools.mask.frPyObjects([part.ravel().tolist() for part in polygons], height, width)
        mask |= pycocotools.mask.decode(pycocotools.mask.merge(parts)).astype(bool)
    for patch in patches:
        top, left = max(patch.top, 0), max(patch.left, 0)
        bottom, right = (
            min(patch.top + patch.bitmap.shape[0], height),
            min(patch.left + patch.bitmap.shape[1], width),
        )
        if bottom > top and right > left:
            cut = patch.bitmap[top - patch.top : bottom - patch.top, left - patch.left : right - patch.left]
            mask[top:bottom, left:right] |= cut
    if rle is not None:
        plain = pycocotools.mask.frPyObjects(rle, height, width) if isinstance(rle["counts"], list) else rle
        mask |= pycocotools.mask.decode(plain).astype(bool)
    return mask


def polygon_pixels(polygons: Sequence[Points], size: Size) -> int:
    """Count the pixels of the polygons' union as COCO rasterises it."""
    parts = pycocotools.mask.frPyObjects([part.ravel().tolist() for part in polygons], size[1], size[0])
    return int(pycocotools.mask.area(pycocotools.mask.merge(parts)))


def ellipse_polygon(center: tuple[float, float], radii: tuple[float, float], rotation_degrees: float = 0.0) -> Points:
    """Return an ellipse as a polygon of 72 corners: at a radius of 500 pixels it deviates by half a pixel."""
    angles = np.linspace(0, 2 * math.pi, _CIRCLE_CORNERS, endpoint=False)
    return rotate_points(
        np.stack([center[0] + radii[0] * np.cos(angles), center[1] + radii[1] * np.sin(angles)], axis=1),
        center,
        rotation_degrees,
    )


def box_polygon(box: tuple[float, float, float, float], rotation_degrees: float = 0.0) -> Points:
    """Return a box x, y, width, height, turned clockwise about its middle, as a polygon."""
    x, y, width, height = box
    corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], float)
    return rotate_points(corners, (x + width / 2, y + height / 2), rotation_degrees)


def rotate_points(points: Points, center: tuple[float, float], degrees: float) -> Points:
    """Rotate clockwise as seen on the screen, where y goes down."""
    if not degrees:
        return points
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    offset: Points = points - center
    return np.asarray(offset @ np.array([[cosine, sine], [-sine, cosine]]) + center, np.float64)


def crosses_itself(points: Points) -> bool:
    """Return whether two edges of a polygon cross in their insides; edges that only touch do not count."""
    ends = np.roll(points, -1, axis=0)
    edges = len(points)
    for first in range(0, edges, _EDGES_AT_ONCE):
        a, b = points[first : first + _EDGES_AT_ONCE, None], ends[first : first + _EDGES_AT_ONCE, None]
        sides_of_other = _side(a, b, points[None]) * _side(a, b, ends[None])
        sides_of_one = _side(points[None], ends[None], a) * _side(points[None], ends[None], b)
        if ((sides_of_other < 0) & (sides_of_one < 0)).any():
            return True
    return False


def _side(start: NDArray[np.float64], end: NDArray[np.float64], point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return on which side of the line from start to end the point is: the sign of the cross product, 0 on the line."""
    run, other = end - start, point - start
    return np.sign(np.round(run[..., 0] * other[..., 1] - run[..., 1] * other[..., 0], 9))
