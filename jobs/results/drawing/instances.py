"""What is drawn: instances, and regions of stuff, with masks as run lengths or bitmaps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from htc_model.masks.many_runs import ForegroundRuns, decode_counts, join_texts
from jobs.results.drawing.colours import Colour, colour_of, instance_colour, stuff_colour
from jobs.results.drawing.style import Style

Rle: TypeAlias = Mapping[str, Any]
"""A COCO mask: size [height, width] and counts, compressed run lengths as text or bytes."""
Mask: TypeAlias = Rle | NDArray[np.bool_]
Window: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the image; right and bottom exclusive."""


@dataclass(frozen=True)
class DrawnInstance:
    """One instance to draw.

    category: names it, and chooses its colour.
    score: in [0, 1]; None for an annotation, which has none.
    box_xywh: x, y, width, height in pixels of the image; None takes the box around the mask.
    mask: COCO run lengths, or [H, W] bool, of the image's size; None for a box alone.
    number: of the instance within its image, as in the tables; None takes its place in the sequence that is drawn.
    colour: in the place of the style's.
    label: in the place of category and score; an empty text for no label.
    is_stuff: a region without an outline, in a muted colour, below all that is none; named inside, where it is large.
    """

    category: str
    score: float | None = None
    box_xywh: tuple[float, float, float, float] | None = None
    mask: Mask | None = None
    number: int | None = None
    colour: Colour | None = None
    label: str | None = None
    is_stuff: bool = False

    def drawn_colour(self, style: Style, place: int) -> Colour:
        """Return the colour in which it is drawn; `place` is its place in the sequence."""
        if self.colour is not None:
            return self.colour
        if self.is_stuff:
            return stuff_colour(self.category)
        if style.colour_by == "instance":
            return instance_colour(place if self.number is None else self.number)
        return colour_of(self.category)

    def drawn_label(self, style: Style) -> tuple[str, str]:
        """Return the label and its short form, for pictures with many."""
        if not style.has_labels:
            return "", ""
        if self.label is not None:
            return self.label, self.label
        if self.score is None or not style.has_scores:
            return self.category, self.category
        return f"{self.category} {self.score:.2f}", self.category


def instance_of_row(row: Mapping[str, Any]) -> DrawnInstance:
    """Return what to draw of a row of `instances` (columns instance, category, score, bbox, mask)."""
    box = row["bbox"]
    return DrawnInstance(
        category=row["category"],
        score=row["score"],
        box_xywh=(box["x"], box["y"], box["width"], box["height"]),
        mask=row["mask"],
        number=row.get("instance"),
    )


def damaged_masks(instances: Sequence[DrawnInstance], height: int, width: int) -> dict[int, str]:
    """Find the masks that cannot be drawn: their code is wrong, or they are not of the image's size.

    Returns:
        The reason by the instance's place in the sequence.
    """
    return Masks(instances, height, width).damaged


class Masks:
    """The masks of an image's instances, as runs; `cut` makes bitmaps, of the parts inside rectangles only.

    Attributes:
        damaged: why a mask cannot be drawn, by its instance's place.
        boxes: the box around each mask that can be drawn and is not empty, by its instance's place: x, y, width,
            height in pixels.
    """

    def __init__(self, instances: Sequence[DrawnInstance], height: int, width: int) -> None:
        self.damaged: dict[int, str] = {}
        self.boxes: dict[int, tuple[int, int, int, int]] = {}
        self._size = (height, width)
        self._bitmaps: dict[int, NDArray[np.bool_]] = {}
        coded: dict[int, Rle] = {}
        for place, instance in enumerate(instances):
            if isinstance(instance.mask, np.ndarray):
                self._add_bitmap(place, instance.mask)
            elif instance.mask is not None:
                self._add_code(place, instance.mask, coded)
        self._read_codes(coded)

    def _add_bitmap(self, place: int, mask: NDArray[np.bool_]) -> None:
        if mask.shape != self._size:
            self.damaged[place] = _wrong_size(mask.shape, self._size)
            return
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            x, y = int(columns[0]), int(rows[0])
            self.boxes[place] = (x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)
            self._bitmaps[place] = mask

    def _add_code(self, place: int, mask: Rle, coded: dict[int, Rle]) -> None:
        size, counts = mask.get("size"), mask.get("counts")
        if not isinstance(counts, str | bytes) or size is None or len(size) != 2 or None in size:
            self.damaged[place] = "its mask lacks the size or the run lengths"
        elif tuple(size) != self._size:
            self.damaged[place] = _wrong_size(tuple(size), self._size)
        elif isinstance(counts, str) and not counts.isascii():
            self.damaged[place] = "its mask's run lengths cannot be read"
        else:
            coded[place] = mask

    def _read_codes(self, coded: dict[int, Rle]) -> None:
        runs, is_valid = _decode(list(coded.values()))
        for place, valid in zip(list(coded), is_valid, strict=True):
            if not valid:
                self.damaged[place] = "its mask's run lengths cannot be read"
                del coded[place]
        if not is_valid.all():
            runs, _ = _decode(list(coded.values()))
        self._runs = runs
        self._run_place = {place: number for number, place in enumerate(coded)}
        for (place, number), box in zip(self._run_place.items(), runs.boxes_xywh().astype(int).tolist(), strict=True):
            if runs.first[number + 1] > runs.first[number]:
                self.boxes[place] = (box[0], box[1], box[2], box[3])

    def cut(self, windows: Mapping[int, Window]) -> "MaskParts":
        """Cut masks to rectangles of the image, all at once.

        Args:
            windows: by the instance's place, which must be one of `boxes`; inside the image and not empty.
        """
        coded = [place for place in windows if place in self._run_place]
        numbers = np.array([self._run_place[place] for place in coded], np.int64)
        rectangles = np.array([windows[place] for place in coded], np.float64).reshape(-1, 4)
        rectangles[:, 2:] -= rectangles[:, :2]
        parts = {
            place: self._bitmaps[place][top:bottom, left:right]
            for place, (left, top, right, bottom) in windows.items()
            if place in self._bitmaps
        }
        return MaskParts(_subset(self._runs, numbers).crop(rectangles), coded, parts)

    def bitmap(self, place: int, window: Window) -> Image.Image:
        """Cut one mask to a rectangle, as a picture of 0 and 255."""
        return self.cut({place: window}).bitmap(place)


class MaskParts:
    """Parts of masks, as runs; each becomes a bitmap when it is drawn."""

    def __init__(self, runs: ForegroundRuns, places: Sequence[int], bitmaps: Mapping[int, NDArray[np.bool_]]) -> None:
        """Keep runs of the masks at these places, and bitmaps of others."""
        self._runs = runs
        self._number = {place: number for number, place in enumerate(places)}
        self._bitmaps = bitmaps

    def bitmap(self, place: int) -> Image.Image:
        """Return a part as a picture of 0 and 255."""
        if place in self._bitmaps:
            return Image.fromarray(self._bitmaps[place].astype(np.uint8) * np.uint8(255))
        number = self._number[place]
        first, last = int(self._runs.first[number]), int(self._runs.first[number + 1])
        height, width = self._runs.sizes[number].tolist()
        edges = np.zeros(2 * (last - first) + 2, np.int64)
        edges[1:-1:2], edges[2:-1:2] = self._runs.begins[first:last], self._runs.ends[first:last]
        edges[-1] = height * width
        values = np.zeros(len(edges) - 1, np.uint8)
        values[1::2] = 255
        columns = np.repeat(values, np.diff(edges)).reshape(width, height)
        return Image.fromarray(columns).transpose(Image.Transpose.TRANSPOSE)


def _subset(runs: ForegroundRuns, numbers: NDArray[np.int64]) -> ForegroundRuns:
    """Return some of the masks, in this order."""
    if np.array_equal(numbers, np.arange(len(runs.first) - 1)):
        return runs
    counts = np.diff(runs.first)[numbers]
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    chosen = np.repeat(runs.first[:-1][numbers] - first[:-1], counts) + np.arange(first[-1])
    return ForegroundRuns(runs.begins[chosen], runs.ends[chosen], first, runs.sizes[numbers])


def _decode(masks: Sequence[Rle]) -> tuple[ForegroundRuns, NDArray[np.bool_]]:
    chars, first = join_texts([mask["counts"] for mask in masks])
    sizes = np.array([list(mask["size"]) for mask in masks], np.int64).reshape(-1, 2)
    decoded = decode_counts(chars, first, sizes)
    return decoded.runs(), decoded.is_valid


def _wrong_size(size: Sequence[int], wanted: tuple[int, int]) -> str:
    return f"its mask has {size[1]} x {size[0]} pixels, the image {wanted[1]} x {wanted[0]}"
