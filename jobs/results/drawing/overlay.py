"""Draws instances over their image: tinted masks with an anti-aliased outline, boxes, labels with scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from jobs.results.drawing.colours import Colour, luminance, text_colour
from jobs.results.drawing.fonts import choose_font, writable
from jobs.results.drawing.instances import DrawnInstance, Masks, Window
from jobs.results.drawing.labels import Placed, Shape, Wanted, place_labels
from jobs.results.drawing.style import Style

# How much a bright line's dark rim, and a dark line's bright one, covers: it sets the line off from any picture.
_RIM_OPACITY = 0.55
# Lines are at most this share of an instance's smaller side, so that they do not hide small instances.
_MAX_LINE_SHARE = 0.12
_MIN_LINE_PX = 1.0
# Cells across an instance, of which labels know whether they are in its mask.
_SHAPE_CELLS = 40
# Regions of stuff that cover less of the picture have no label.
_LABELLED_STUFF_SHARE = 0.01
_WHITE, _BLACK, _NOTE = (255, 255, 255), (0, 0, 0), (200, 30, 30)

_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Overlay:
    """A drawn picture, and what is not on it.

    pixels: [H, W, 3] uint8 RGB.
    unlabelled: how many instances have no label, because there was no room.
    damaged: why an instance was left out, by its place in the sequence: its mask cannot be read, or has another size.
    """

    pixels: NDArray[np.uint8]
    unlabelled: int
    damaged: dict[int, str]


def draw_overlay(
    pixels: NDArray[np.uint8], instances: Sequence[DrawnInstance], style: Style | None = None
) -> NDArray[np.uint8]:
    """Draw instances over a copy of an image; see `render_overlay`, which also returns what is not on it."""
    return render_overlay(pixels, instances, style).pixels


def render_overlay(
    pixels: NDArray[np.uint8],
    instances: Sequence[DrawnInstance],
    style: Style | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> Overlay:
    """Draw instances over a copy of an image.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        instances: in any order; the largest are drawn first, so that small ones stay visible, and the most confident
            are labelled first. One whose mask is damaged is left out, and a line of text on the picture says so.
        style: None for the default one.
        size: (height, width) of the image that the instances are of, where `pixels` are a reduced copy of it.

    Returns:
        The picture, of the size of `pixels` unless the style asks for another one.
    """
    style = style or Style()
    height, width = size or (pixels.shape[0], pixels.shape[1])
    masks = Masks(instances, height, width)
    drawn_width, drawn_height = style.drawn_size(pixels.shape[1], pixels.shape[0])
    canvas = Image.fromarray(np.ascontiguousarray(pixels))
    if canvas.size != (drawn_width, drawn_height):
        canvas = canvas.resize((drawn_width, drawn_height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    scale = (drawn_width / width, drawn_height / height)
    boxes = _boxes(instances, masks, scale)
    line = style.line_width(drawn_width, drawn_height)
    colours = {place: instances[place].drawn_colour(style, place) for place in boxes}
    windows = {place: _Window.of(masks.boxes[place], scale, canvas.size) for place in boxes if place in masks.boxes}
    parts = masks.cut({place: window.on_image for place, window in windows.items()})
    shapes: dict[int, Shape | None] = {}
    for place in sorted(boxes, key=lambda place: (not instances[place].is_stuff, -_area(boxes[place]))):
        # A line no wider than the instance can bear.
        own = max(_MIN_LINE_PX, min(line, _MAX_LINE_SHARE * _smaller_side(boxes[place])))
        if place in windows:
            window = windows[place]
            part = window.scaled(parts.bitmap(place))
            if instances[place].is_stuff:
                _tint(canvas, part, window.corner, colours[place], style.stuff_opacity)
                shapes[place] = _inner_shape(part, window.corner, style, canvas.size)
            else:
                _draw_mask(canvas, part, window.corner, _look(colours[place], style.opacity, own, max(scale)))
                shapes[place] = _shape(part, window.corner)
        if (style.has_boxes and not instances[place].is_stuff) or instances[place].mask is None:
            _draw_box(canvas, boxes[place], colours[place], line)
    unlabelled = _draw_labels(canvas, _wanted_labels(instances, shapes, boxes, style), colours, style)
    if masks.damaged:
        _write_note(canvas, _damage_note(instances, masks.damaged), style)
    return Overlay(np.array(canvas), unlabelled, masks.damaged)


def _boxes(instances: Sequence[DrawnInstance], masks: Masks, scale: tuple[float, float]) -> dict[int, _Box]:
    """Return the drawn instances' boxes (left, top, right, bottom) in pixels of the picture, by their places."""
    boxes = {}
    for place, instance in enumerate(instances):
        box = instance.box_xywh or masks.boxes.get(place)
        if place in masks.damaged or box is None or not all(map(math.isfinite, box)):
            continue
        x, y, width, height = box
        boxes[place] = (x * scale[0], y * scale[1], (x + width) * scale[0], (y + height) * scale[1])
    return boxes


def _area(box: _Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _smaller_side(box: _Box) -> float:
    return min(box[2] - box[0], box[3] - box[1])


@dataclass(frozen=True)
class _Window:
    """The rectangle around a mask.

    corner, size: in pixels of the picture. on_image: what it covers of the image, grown to whole pixels. inner: the
    very rectangle within that; None where picture and image have one size.
    """

    corner: tuple[int, int]
    size: tuple[int, int]
    on_image: Window
    inner: tuple[float, float, float, float] | None
    is_smaller: bool

    @classmethod
    def of(cls, box: tuple[int, int, int, int], scale: tuple[float, float], size: tuple[int, int]) -> "_Window":
        """Return the window of a mask's box (x, y, width, height in pixels of the image)."""
        x, y, width, height = box
        left, top = math.floor(x * scale[0]), math.floor(y * scale[1])
        right = min(math.ceil((x + width) * scale[0]), size[0])
        bottom = min(math.ceil((y + height) * scale[1]), size[1])
        corner, drawn = (left, top), (right - left, bottom - top)
        if scale == (1.0, 1.0):
            return cls(corner, drawn, (left, top, right, bottom), None, is_smaller=False)
        exact = (left / scale[0], top / scale[1], right / scale[0], bottom / scale[1])
        outer = (math.floor(exact[0]), math.floor(exact[1]), math.ceil(exact[2] - 1e-6), math.ceil(exact[3] - 1e-6))
        inner = (
            exact[0] - outer[0],
            exact[1] - outer[1],
            min(exact[2], outer[2]) - outer[0],
            min(exact[3], outer[3]) - outer[1],
        )
        return cls(corner, drawn, outer, inner, is_smaller=scale[0] < 1)

    def scaled(self, part: Image.Image) -> Image.Image:
        """Return the mask's part on the image as it is on the picture, 0 to 255."""
        if self.inner is None:
            return part
        filtered = Image.Resampling.BOX if self.is_smaller else Image.Resampling.BICUBIC
        return part.resize(self.size, filtered, box=self.inner)


def _shape(part: Image.Image, corner: tuple[int, int]) -> Shape:
    """Return a mask's rough shape, for labels."""
    columns, rows = min(part.width, _SHAPE_CELLS), min(part.height, _SHAPE_CELLS)
    cells = np.asarray(part.resize((columns, rows), Image.Resampling.BOX))
    # Of a thin or scattered mask no cell may be half covered.
    is_in = cells > min(127, int(cells.max()) // 2)
    used = np.flatnonzero(is_in.any(axis=0))
    width, height = part.width / columns, part.height / rows
    top = is_in[:, used].argmax(axis=0) * height + corner[1]
    bottom = (rows - is_in[::-1, used].argmax(axis=0)) * height + corner[1]
    return Shape((used.astype(np.float64) + 0.5) * width + corner[0], top, bottom, width)


def _inner_shape(part: Image.Image, corner: tuple[int, int], style: Style, canvas: tuple[int, int]) -> Shape | None:
    """Return a line deep inside a region, above which its label lies; None where the region is too small for one."""
    columns, rows = min(part.width, _SHAPE_CELLS), min(part.height, _SHAPE_CELLS)
    cells = part.resize((columns, rows), Image.Resampling.BOX)
    is_in = np.pad(np.asarray(cells) > 127, 1)
    if is_in.sum() / (columns * rows) * part.width * part.height < _LABELLED_STUFF_SHARE * canvas[0] * canvas[1]:
        return None
    # What is left when the region shrinks cell by cell is farthest from its edge.
    deepest = is_in
    while is_in.any():
        deepest = is_in
        is_in = np.asarray(Image.fromarray(is_in.astype(np.uint8)).filter(ImageFilter.MinFilter(3))).astype(bool)
    y, x = np.nonzero(deepest)
    nearest = int(np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2))
    middle_x = corner[0] + (x[nearest] - 0.5) * part.width / columns
    middle_y = corner[1] + (y[nearest] - 0.5) * part.height / rows
    size = style.text_size(*canvas)
    below = middle_y + _plate_size("Ag", size, style)[1] / 2
    return Shape.of_box((middle_x - 1, below, middle_x + 1, below + 1))


def _tint(canvas: Image.Image, part: Image.Image, corner: tuple[int, int], colour: Colour, opacity: float) -> None:
    """Tint a region up to its very edge: regions that touch have no seam between them."""
    canvas.paste(colour, corner, part.point([round(value * opacity) for value in range(256)]))


def _draw_mask(canvas: Image.Image, part: Image.Image, corner: tuple[int, int], look: "_Look") -> None:
    """Tint a mask and draw its outline; all work is inside the mask's box."""
    margin = look.margin
    framed = Image.new("L", (part.width + 2 * margin, part.height + 2 * margin))
    framed.paste(part, (margin, margin))
    soft = framed.filter(ImageFilter.GaussianBlur(look.spread))
    soft.putpalette(look.palette, "RGBA")
    painted = soft.convert("RGBA")
    canvas.paste(painted, (corner[0] - margin, corner[1] - margin), painted)


@dataclass(frozen=True)
class _Look:
    """How a mask is painted.

    spread: standard deviation of the blur. margin: of its frame, for the line's outer half. palette: 256 times red,
    green, blue and opacity, for each value of the blurred mask.
    """

    spread: float
    margin: int
    palette: bytes


@lru_cache(1024)
def _look(colour: Colour, opacity: float, line: float, enlargement: float) -> _Look:
    """Return how a mask is painted in a colour, with a line of a width.

    A straight edge that was blurred by a Gaussian of standard deviation `spread` has at a distance d inside the value
    255 * Phi(d / spread), so the value gives the distance from the edge, and the distance the share of the pixel that a
    line along the edge covers. Fill, rim and line lie over each other: their colours and opacities are put together
    here, once for each value, and not at each pixel.
    """
    # Of a mask enlarged by a factor, stairs of that many pixels are smoothed.
    spread = max(0.5 + 0.35 * line, 0.5 * enlargement)
    normal = NormalDist()
    inside = np.array([normal.inv_cdf((value + 0.5) / 256) for value in range(256)]) * spread
    inside[0] = -math.inf
    fill = np.clip(inside + 0.5, 0, 1) * opacity
    rim = np.clip(line / 2 + 1.5 - np.abs(inside), 0, 1) * _RIM_OPACITY * (inside < 0)
    outline = np.clip(line / 2 + 0.5 - np.abs(inside), 0, 1)
    painted, covered = np.zeros((256, 3)), np.zeros(256)
    for layer, layer_colour in ((fill, colour), (rim, _rim_colour(colour)), (outline, colour)):
        painted = painted * (1 - layer[:, None]) + np.array(layer_colour) * layer[:, None]
        covered = covered * (1 - layer) + layer
    plain = painted / np.maximum(covered, 1e-9)[:, None]
    rgba = np.concatenate([plain, covered[:, None] * 255], axis=1)
    return _Look(spread, math.ceil(line / 2 + 2), np.round(rgba).astype(np.uint8).tobytes())


def _rim_colour(colour: Colour) -> Colour:
    return _BLACK if luminance(colour) > 0.18 else _WHITE


def _draw_box(canvas: Image.Image, box: _Box, colour: Colour, line: float) -> None:
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(line))
    left = min(max(round(box[0]), 0), canvas.width - 1)
    top = min(max(round(box[1]), 0), canvas.height - 1)
    right = min(max(round(box[2]) - 1, left), canvas.width - 1)
    bottom = min(max(round(box[3]) - 1, top), canvas.height - 1)
    draw.rectangle((left, top, right, bottom), outline=colour, width=width)


def _wanted_labels(
    instances: Sequence[DrawnInstance], shapes: Mapping[int, Shape | None], boxes: Mapping[int, _Box], style: Style
) -> list[Wanted]:
    """Return the labels, most confident first."""
    wanted = []
    for place in sorted(boxes, key=lambda place: _importance(instances[place], boxes[place])):
        texts = instances[place].drawn_label(style)
        if texts[0] and not (instances[place].is_stuff and shapes.get(place) is None):
            wanted.append(Wanted(place, texts, shapes.get(place) or Shape.of_box(boxes[place])))
    return wanted


def _draw_labels(canvas: Image.Image, wanted: Sequence[Wanted], colours: dict[int, Colour], style: Style) -> int:
    """Write the labels; return how many have no room."""
    size = style.text_size(*canvas.size)
    wanted = [replace(each, texts=_fitting(each.texts, size, style, canvas.width)) for each in wanted]
    placed = place_labels(wanted, canvas.size, lambda text: _plate_size(text, size, style))
    draw = ImageDraw.Draw(canvas)
    for label in placed:
        if label.leader is not None:
            _draw_leader(draw, label, colours[label.place], max(1, round(size / 10)))
    for label in placed:
        _draw_plate(draw, label, colours[label.place], size, style)
    return len(wanted) - len(placed)


def _importance(instance: DrawnInstance, box: _Box) -> tuple[bool, float, float]:
    return instance.is_stuff, -(1.0 if instance.score is None else instance.score), -_area(box)


def _fitting(texts: tuple[str, str], size: float, style: Style, room: int) -> tuple[str, str]:
    """Cut texts that are wider than the picture."""
    full, short = (writable(text, style.font) for text in texts)
    if short and _plate_size(short, size, style)[0] > room:
        kept = short
        while len(kept) > 1 and _plate_size(f"{kept}…", size, style)[0] > room:
            kept = kept[:-1]
        short = f"{kept.rstrip()}…"
    return (full if _plate_size(full, size, style)[0] <= room else short), short


@lru_cache(4096)
def _text_box(text: str, size: float, font: Path | None) -> _Box:
    """Return the box around a text that is written at (0, 0)."""
    return choose_font(text, size, font).getbbox(text)


@lru_cache(4096)
def _plate_size(text: str, size: float, style: Style) -> tuple[int, int]:
    if not text:
        return 0, 0
    left, _, right, _ = _text_box(text, size, style.font)
    top, bottom = _line_of(size, style)
    return math.ceil(right - left) + 2 * _margin(size), bottom - top + max(2, round(size * 0.2))


def _margin(size: float) -> int:
    return max(2, round(size * 0.3))


@lru_cache(64)
def _line_of(size: float, style: Style) -> tuple[int, int]:
    """Return the top of a capital and the bottom of a descender, in pixels below the top of the line."""
    _, top, _, bottom = choose_font("Ag", size, style.font).getbbox("Ag")
    return math.floor(top), math.ceil(bottom)


def _draw_plate(draw: ImageDraw.ImageDraw, label: Placed, colour: Colour, size: float, style: Style) -> None:
    font = choose_font(label.text, size, style.font)
    left, top, right, bottom = (round(value) for value in label.plate)
    draw.rounded_rectangle((left, top, right - 1, bottom - 1), radius=max(1, round(size * 0.18)), fill=colour)
    offset = _text_box(label.text, size, style.font)
    line_top, line_bottom = _line_of(size, style)
    y = top + (bottom - top - (line_bottom - line_top)) // 2 - line_top
    # A text of another script may be higher than Latin letters. At a fraction of a pixel Pillow cuts letters off.
    at = (round(left + _margin(size) - offset[0]), round(min(y, bottom - offset[3])))
    draw.text(at, label.text, fill=text_colour(colour), font=font)


def _draw_leader(draw: ImageDraw.ImageDraw, label: Placed, colour: Colour, width: int) -> None:
    if label.leader is None:
        return
    left, top, right, bottom = label.plate
    start = ((left + right) / 2, (top + bottom) / 2)
    draw.line((*start, *label.leader), fill=_rim_colour(colour), width=width + 2)
    draw.line((*start, *label.leader), fill=colour, width=width)
    x, y = label.leader
    radius = width + 1.5
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=_rim_colour(colour))


def _damage_note(instances: Sequence[DrawnInstance], damaged: dict[int, str]) -> str:
    names = [
        f"instance {place if instances[place].number is None else instances[place].number}" for place in sorted(damaged)
    ]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"left out, mask damaged: {', '.join(names[:3])}{more}"


def with_note(pixels: NDArray[np.uint8], text: str, style: Style) -> NDArray[np.uint8]:
    """Return a copy of a picture [H, W, 3] with a sentence in its bottom left corner, white on red."""
    canvas = Image.fromarray(pixels)
    _write_note(canvas, text, style)
    return np.array(canvas)


def _write_note(canvas: Image.Image, text: str, style: Style) -> None:
    size = style.text_size(*canvas.size)
    text, _ = _fitting((text, text), size, style, canvas.width)
    width, height = _plate_size(text, size, style)
    plate = (0.0, float(canvas.height - height), float(width), float(canvas.height))
    _draw_plate(ImageDraw.Draw(canvas), Placed(-1, text, plate, None), _NOTE, size, style)
