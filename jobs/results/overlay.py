"""Draw instances over their image: translucent masks with a contour, boxes, labels with scores."""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

MASK_OPACITY = 0.45
# Smaller images are enlarged by an integer factor before drawing: below this size, a label would cover the image.
MIN_LONG_SIDE = 480
MAX_ENLARGEMENT = 16
# Successive hues one golden section apart stay distinct for any number of instances.
GOLDEN_SECTION = (math.sqrt(5) - 1) / 2

Colour: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[int, int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class DrawnInstance:
    """One instance to draw.

    category: its label's text.
    score: in [0, 1]; None for an annotation, which has none.
    box_xywh: x, y, width, height in pixels of the original image.
    load_mask: returns [H, W] bool of the original image's size; None for a box-only model. A function, so that a
        hundred full-size masks are never in memory at once.
    """

    category: str
    score: float | None
    box_xywh: tuple[float, float, float, float]
    load_mask: Callable[[], NDArray[np.bool_]] | None


def draw_overlay(image: NDArray[np.uint8], instances: Sequence[DrawnInstance]) -> Image.Image:
    """Draw the instances over a copy of the image.

    Args:
        image: [H, W, 3] uint8 RGB.
        instances: in any order; the largest is drawn first, so that small ones stay visible.

    Returns:
        An RGB image of the same size, enlarged by an integer factor if its long side is under 480 pixels.
    """
    enlargement = _enlargement(image.shape[0], image.shape[1])
    canvas = _enlarge(image, enlargement)
    height, width = canvas.shape[:2]
    line_width = max(1, round(min(height, width) / 320))
    ordered = sorted(enumerate(instances), key=lambda pair: -pair[1].box_xywh[2] * pair[1].box_xywh[3])
    for index, instance in ordered:
        if instance.load_mask is not None:
            _blend_mask(canvas, _enlarge(instance.load_mask(), enlargement), instance_colour(index), line_width)
    overlay = Image.fromarray(canvas)
    draw = ImageDraw.Draw(overlay)
    font = ImageFont.load_default(size=min(max(min(height, width) / 34, 12), 48))
    placed: list[Rectangle] = []
    for index, instance in ordered:
        _draw_box(draw, _scaled_box(instance, enlargement, width, height), instance_colour(index), line_width)
    for index, instance in reversed(ordered):
        box = _scaled_box(instance, enlargement, width, height)
        placed.append(_draw_label(draw, instance, box, colour=instance_colour(index), font=font, placed=placed))
    return overlay


def instance_colour(index: int) -> Colour:
    """Return a bright colour (RGB, 0 to 255) that differs from those of neighbouring indices."""
    hue = (0.02 + index * GOLDEN_SECTION) % 1
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.9, 0.8))[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(background: Colour) -> Colour:
    """Return black or white, the one with more contrast to the background (WCAG 2.1, "contrast ratio")."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


def _enlargement(height: int, width: int) -> int:
    return min(MAX_ENLARGEMENT, max(1, math.ceil(MIN_LONG_SIDE / max(height, width))))


def _enlarge(pixels: NDArray[Scalar], factor: int) -> NDArray[Scalar]:
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)


def _blend_mask(canvas: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour, line_width: int) -> None:
    """Tint the mask's pixels in place and draw its contour, inside the mask's bounding box only."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = mask[window]
    region = canvas[window]
    tint = np.array(colour, dtype=np.float32) * np.float32(MASK_OPACITY)
    region[inside] = (region[inside] * np.float32(1 - MASK_OPACITY) + tint).astype(np.uint8)
    # The border of zeros closes the contour along the image's edge too.
    padded = Image.fromarray(np.pad(inside, line_width).astype(np.uint8) * 255)
    eroded = np.asarray(padded.filter(ImageFilter.MinFilter(2 * line_width + 1))) > 0
    kept = eroded[line_width:-line_width, line_width:-line_width]
    region[inside & ~kept] = colour


def _scaled_box(instance: DrawnInstance, factor: int, width: int, height: int) -> Rectangle:
    x, y, box_width, box_height = (value * factor for value in instance.box_xywh)
    left, top = min(max(round(x), 0), width - 1), min(max(round(y), 0), height - 1)
    right = min(max(round(x + box_width) - 1, left), width - 1)
    bottom = min(max(round(y + box_height) - 1, top), height - 1)
    return left, top, right, bottom


def _draw_box(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line_width: int) -> None:
    draw.rectangle(box, outline=colour, width=line_width)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    instance: DrawnInstance,
    box: Rectangle,
    *,
    colour: Colour,
    font: Font,
    placed: Sequence[Rectangle],
) -> Rectangle:
    """Write category and score on a plate at the first free corner of the box; return the plate."""
    text = instance.category if instance.score is None else f"{instance.category} {instance.score:.2f}"
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    margin = max(2, round((bottom - top) / 4))
    plate_width, plate_height = round(right - left) + 2 * margin, round(bottom - top) + 2 * margin
    plate = _plate_position(box, (plate_width, plate_height), draw.im.size, placed)
    draw.rectangle(plate, fill=colour)
    draw.text((plate[0] + margin - left, plate[1] + margin - top), text, fill=text_colour(colour), font=font)
    return plate


def _plate_position(
    box: Rectangle, plate_size: tuple[int, int], canvas_size: tuple[int, int], placed: Sequence[Rectangle]
) -> Rectangle:
    left, top, right, bottom = box
    plate_width, plate_height = plate_size
    corners = [
        (left, top - plate_height),
        (left, top),
        (left, bottom - plate_height),
        (left, bottom + 1),
        (right - plate_width, top - plate_height),
        (right - plate_width, bottom - plate_height),
    ]
    plates = [_moved_inside(x, y, plate_size, canvas_size) for x, y in corners]
    free = (plate for plate in plates if not any(_overlap(plate, other) for other in placed))
    return next(free, plates[0])


def _moved_inside(x: int, y: int, plate_size: tuple[int, int], canvas_size: tuple[int, int]) -> Rectangle:
    left = max(0, min(x, canvas_size[0] - plate_size[0]))
    top = max(0, min(y, canvas_size[1] - plate_size[1]))
    return left, top, left + plate_size[0] - 1, top + plate_size[1] - 1


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
