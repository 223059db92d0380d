"""A page of drawn detections: a few fixed images, the annotated objects on the left, what was found on the right."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from htc_model.masks.rle import decode_rle
from htc_model.structures import Detections
from htc_model.training.annotations import CocoAnnotations, ImageAnnotations, ObjectAnnotation, decode_mask

# Detections below this score are not drawn; a network begins with many weak ones.
_MIN_SCORE = 0.3
_WIDTH, _GAP, _CAPTION = 420, 6, 16
_OPACITY = 0.45
# Neighbouring numbers are far apart on the colour wheel: the golden ratio.
_HUE_STEP = 0.618034


@dataclass(frozen=True)
class _Drawn:
    """One object to draw: its mask [H, W] bool, or None; its box in pixels; a label in [0, C); a text."""

    mask: NDArray[np.bool_] | None
    box_xyxy: Sequence[float]
    label: int
    text: str


class PicturePage:
    """Collects the images of one page.

    Args:
        annotations: of the data set.
        count: how many images are drawn: spread evenly over the data set, the same at each evaluation.
    """

    def __init__(self, annotations: CocoAnnotations, count: int) -> None:
        self._annotations = annotations
        images = len(annotations.images)
        shown = min(count, images)
        self._wanted = {number * images // shown for number in range(shown)} if shown else set()
        self._rows: list[tuple[str, Image.Image, Image.Image]] = []

    def add(self, number: int, pixels: NDArray[np.uint8], detections: Detections) -> None:
        """Draw an image with its objects and its detections, if it is one of the page's."""
        if number not in self._wanted:
            return
        image = self._annotations.images[number]
        truth = _draw(pixels, [_annotated(entry, image, self._annotations.classes) for entry in image.objects])
        found = _draw(pixels, _detected(detections, self._annotations.classes))
        self._rows.append((Path(image.file_name).name, truth, found))

    def write(self, path: Path, title: str) -> bool:
        """Write the page as a JPEG; returns False where it would have no image."""
        if not self._rows:
            return False
        heights = [truth.height + _CAPTION + _GAP for _, truth, _ in self._rows]
        page = Image.new("RGB", (2 * _WIDTH + 3 * _GAP, sum(heights) + _CAPTION + 2 * _GAP), "white")
        draw = ImageDraw.Draw(page)
        font = ImageFont.load_default()
        draw.text((_GAP, _GAP), f"{title}: annotated (left), found (right)", fill="black", font=font)
        top = _CAPTION + _GAP
        for (name, truth, found), height in zip(self._rows, heights, strict=True):
            draw.text((_GAP, top), name.encode("ascii", "replace").decode(), fill="black", font=font)
            page.paste(truth, (_GAP, top + _CAPTION))
            page.paste(found, (_WIDTH + 2 * _GAP, top + _CAPTION))
            top += height
        path.parent.mkdir(parents=True, exist_ok=True)
        page.save(path, format="JPEG", quality=88)
        return True


def _annotated(entry: ObjectAnnotation, image: ImageAnnotations, classes: Sequence[str]) -> _Drawn:
    mask = decode_mask(entry, image.height, image.width).astype(bool)
    text = f"{classes[entry.label]} (crowd)" if entry.is_crowd else classes[entry.label]
    return _Drawn(mask, entry.box_xyxy, entry.label, text)


def _detected(detections: Detections, classes: Sequence[str]) -> list[_Drawn]:
    drawn = []
    rows = zip(detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    for index, (box, score, label) in enumerate(rows):
        if score >= _MIN_SCORE:
            mask = None if detections.masks is None else decode_rle(detections.masks[index]).astype(bool)
            drawn.append(_Drawn(mask, box, label, f"{classes[label]} {score:.2f}"))
    return drawn


def _draw(pixels: NDArray[np.uint8], objects: Sequence[_Drawn]) -> Image.Image:
    canvas = pixels.astype(np.float32)
    for entry in objects:
        if entry.mask is not None:
            canvas[entry.mask] += _OPACITY * (np.array(_colour(entry.label), np.float32) - canvas[entry.mask])
    factor = _WIDTH / pixels.shape[1]
    size = _WIDTH, max(1, round(pixels.shape[0] * factor))
    picture = Image.fromarray(np.rint(canvas).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default()
    for entry in objects:
        left, top, right, bottom = (value * factor for value in entry.box_xyxy)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=_colour(entry.label))
        text = entry.text.encode("ascii", "replace").decode()
        place = left + 2, max(top, 0)
        draw.rectangle(draw.textbbox(place, text, font=font), fill=_colour(entry.label))
        draw.text(place, text, fill="white", font=font)
    return picture


def _colour(label: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label * _HUE_STEP % 1.0, 0.85, 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)
