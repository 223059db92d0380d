"""Pictures of several parts: pairs side by side, crops of single instances, contact sheets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from jobs.results.drawing.colours import Colour
from jobs.results.drawing.fonts import choose_font, writable
from jobs.results.drawing.instances import DrawnInstance, Masks
from jobs.results.drawing.overlay import draw_overlay
from jobs.results.drawing.style import Style

_PAPER, _INK, _FLAG = (255, 255, 255), (25, 25, 25), (200, 30, 30)
# Small objects are enlarged to this, so that there is something to see.
_MIN_CROP_PX = 160
_MAX_CROP_ENLARGEMENT = 8
# An image this much wider than high is put above its partner.
_WIDE = 2.0


@dataclass(frozen=True)
class Side:
    """One of several pictures of the same image: its title and its instances."""

    title: str
    instances: Sequence[DrawnInstance]


@dataclass(frozen=True)
class Cell:
    """A picture of a contact sheet: pixels [H, W, 3] uint8 RGB, its caption, whether that is written in red."""

    pixels: NDArray[np.uint8]
    caption: str
    is_flagged: bool = False


def side_by_side(pixels: NDArray[np.uint8], sides: Sequence[Side], style: Style | None = None) -> NDArray[np.uint8]:
    """Draw an image several times with other instances each time, such as truth and detections, under their titles.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        sides: left to right; for panoramas top to bottom.
        style: of each of the pictures.

    Returns:
        [H', W', 3] uint8 RGB.

    Raises:
        ValueError: there is no side.
    """
    if not sides:
        raise ValueError("there is nothing to put side by side")
    style = style or Style()
    drawn = [(side.title, draw_overlay(pixels, side.instances, style)) for side in sides]
    height, width = drawn[0][1].shape[:2]
    size = max(style.text_size(width, height), 11.0)
    bar, gap = round(size * 1.9), max(4, round(size * 0.6))
    is_stacked = width > _WIDE * height
    columns, rows = (1, len(drawn)) if is_stacked else (len(drawn), 1)
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + bar + gap) - gap), _PAPER)
    for number, (title, picture) in enumerate(drawn):
        x, y = (0, number * (height + bar + gap)) if is_stacked else (number * (width + gap), 0)
        _write(page, title, (x, y, width, bar), size=size, colour=_INK, style=style)
        page.paste(Image.fromarray(picture), (x, y + bar))
    return np.array(page)


def crop(
    pixels: NDArray[np.uint8],
    instance: DrawnInstance,
    style: Style | None = None,
    *,
    margin: float = 0.15,
    others: Sequence[DrawnInstance] = (),
) -> NDArray[np.uint8]:
    """Draw one instance with the picture around it.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        margin: what is shown around its box, as a share of the box's longer side.
        others: instances to draw too, where they reach into the crop.

    Returns:
        [H', W', 3] uint8 RGB; small instances are enlarged, at most eight times.

    Raises:
        ValueError: the instance has no box inside the image, or its mask is damaged.
    """
    style = style or Style()
    height, width = pixels.shape[:2]
    drawn = [instance, *others]
    masks = Masks(drawn, height, width)
    if 0 in masks.damaged:
        raise ValueError(masks.damaged[0])
    box = instance.box_xywh or masks.boxes.get(0)
    if box is None or not all(map(math.isfinite, box)):
        raise ValueError("the instance has neither a mask with pixels nor a box")
    around = max(margin * max(box[2], box[3]), 2)
    left, top = max(0, math.floor(box[0] - around)), max(0, math.floor(box[1] - around))
    right = min(width, math.ceil(box[0] + box[2] + around))
    bottom = min(height, math.ceil(box[1] + box[3] + around))
    if right <= left or bottom <= top:
        raise ValueError("the instance's box is outside the image")
    inside = [
        _moved(each, masks, place, (left, top, right, bottom))
        for place, each in enumerate(drawn)
        if place not in masks.damaged
    ]
    longer = max(right - left, bottom - top)
    wanted = style.long_side or max(_MIN_CROP_PX, longer)
    style = replace(style, long_side=min(wanted, longer * _MAX_CROP_ENLARGEMENT), min_long_side=0)
    return draw_overlay(pixels[top:bottom, left:right], [each for each in inside if each is not None], style)


def _moved(
    instance: DrawnInstance, masks: Masks, place: int, window: tuple[int, int, int, int]
) -> DrawnInstance | None:
    """Return an instance as it lies in a window; None if it does not."""
    left, top, right, bottom = window
    box = instance.box_xywh or masks.boxes.get(place)
    if box is None or box[0] >= right or box[1] >= bottom or box[0] + box[2] <= left or box[1] + box[3] <= top:
        return None
    mask = np.asarray(masks.bitmap(place, window)) > 0 if place in masks.boxes else None
    number = place if instance.number is None else instance.number
    if instance.mask is not None and (mask is None or not mask.any()):
        return None
    return replace(instance, box_xywh=(box[0] - left, box[1] - top, box[2], box[3]), mask=mask, number=number)


def contact_sheet(
    cells: Sequence[Cell], *, columns: int = 4, cell_px: int = 420, style: Style | None = None
) -> NDArray[np.uint8]:
    """Put pictures on a page, each fitted into a square above its caption.

    Args:
        cells: left to right, top to bottom.
        columns: at most so many beside each other.
        cell_px: side of the square.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        ValueError: there is no cell.
    """
    if not cells:
        raise ValueError("there is nothing to put on the page")
    style = style or Style()
    columns = min(columns, len(cells))
    text = min(max(cell_px * 0.034, 11.0), 18.0)
    bar, gap = round(text * 1.7), max(6, round(cell_px * 0.02))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    pictures = [[_fitted(cell.pixels, cell_px) for cell in row] for row in rows]
    heights = [max(picture.height for picture in row) + bar + gap for row in pictures]
    page = Image.new("RGB", (columns * (cell_px + gap) + gap, sum(heights) + gap), _PAPER)
    y = gap
    for row, drawn, height in zip(rows, pictures, heights, strict=True):
        for column, (cell, picture) in enumerate(zip(row, drawn, strict=True)):
            x = gap + column * (cell_px + gap)
            room = height - bar - gap
            page.paste(picture, (x + (cell_px - picture.width) // 2, y + room - picture.height))
            colour = _FLAG if cell.is_flagged else _INK
            _write(page, cell.caption, (x, y + room, cell_px, bar), size=text, colour=colour, style=style)
        y += height
    return np.array(page)


def _fitted(pixels: NDArray[np.uint8], cell_px: int) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = min(cell_px / image.width, cell_px / image.height)
    if scale >= 1:
        return image
    fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(fitted, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _write(
    page: Image.Image,
    text: str,
    area: tuple[int, int, int, int],
    *,
    size: float,
    colour: Colour,
    style: Style,
) -> None:
    """Write one line in the middle, cut at its begin if it is too long: the end of a path matters most."""
    x, y, width, height = area
    shown = writable(text, style.font)
    font = choose_font(shown, size, style.font)
    draw = ImageDraw.Draw(page)
    while draw.textlength(shown, font=font) > width - 4 and len(shown) > 2:
        shown = f"…{shown[2:]}"
    draw.text((round(x + width / 2), round(y + height / 2)), shown, fill=colour, font=font, anchor="mm")
