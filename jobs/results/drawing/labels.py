"""Where labels go: none covers another or leaves the picture; one without room is led by a line, or left out."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The share of a picture that labels may cover in all. More hide what they name.
MAX_COVER = 0.22
# Above this share, labels are shortened to the category.
MAX_FULL_COVER = 0.12
# What a place's distance from the best corner costs, in shares of a label that covers another instance.
_RANK_COST = 0.02
# Labels with a line lie on rings around their instance, so many label heights away.
_RINGS = (1.2, 2.2, 3.5, 5.0, 7.0)
_DIRECTIONS = 16
_LEADER_COST = 0.6

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; right and bottom exclusive."""


@dataclass(frozen=True)
class Wanted:
    """A label to place.

    place: of its instance in the sequence. texts: the full one and its short form. box: around the instance.
    peak: x of the instance's top.
    """

    place: int
    texts: tuple[str, str]
    box: Rectangle
    peak: float


@dataclass(frozen=True)
class Placed:
    """A label's plate, and where the line to its instance ends if it is apart from it."""

    place: int
    text: str
    plate: Rectangle
    leader: tuple[float, float] | None


def place_labels(
    wanted: Sequence[Wanted], size: tuple[int, int], measure: Callable[[str], tuple[float, float]]
) -> list[Placed]:
    """Find a place for each label.

    Args:
        wanted: most important first; those at the end are left out when there is no room.
        size: (width, height) of the picture.
        measure: returns the (width, height) of a plate with a text.

    Returns:
        The labels that have a place, which do not overlap and lie inside the picture.
    """
    if not wanted:
        return []
    area = size[0] * size[1]
    full = [measure(each.texts[0]) for each in wanted]
    is_short = sum(w * h for w, h in full) > MAX_FULL_COVER * area
    room = _Room(size, np.array([each.box for each in wanted], np.float64))
    budget = MAX_COVER * area
    placed: list[Placed] = []
    for number, each in enumerate(wanted):
        for text in [each.texts[1]] if is_short else dict.fromkeys(each.texts):
            plate_size = measure(text)
            # The first label may cover more: on a thumbnail one is better than none.
            if placed and plate_size[0] * plate_size[1] > budget:
                continue
            found = room.find(number, each.peak, plate_size)
            if found is None:
                continue
            plate, leader = found
            room.take(plate)
            budget -= plate_size[0] * plate_size[1]
            placed.append(Placed(each.place, text, plate, leader))
            break
    return placed


class _Room:
    """The picture's room for labels: its size, the boxes [N, 4] of all instances, the plates [P, 4] placed so far."""

    def __init__(self, size: tuple[int, int], boxes: NDArray[np.float64]) -> None:
        self._size = size
        self._boxes = boxes
        self._plates = np.zeros((0, 4))

    def take(self, plate: Rectangle) -> None:
        self._plates = np.vstack([self._plates, plate])

    def find(
        self, number: int, peak: float, plate_size: tuple[float, float]
    ) -> tuple[Rectangle, tuple[float, float] | None] | None:
        """Return the plate at the instance's box that hides least; else one apart, with a line; None without room."""
        if plate_size[0] > self._size[0] or plate_size[1] > self._size[1]:
            return None
        box = self._boxes[number]
        near = self._inside(_near(box, peak, plate_size), plate_size)
        free = ~_overlaps(near, self._plates).any(axis=1)
        if free.any():
            cost = _hidden(near, self._boxes, number) + _RANK_COST * np.arange(len(near))
            return _rectangle(near[int(np.where(free, cost, np.inf).argmin())]), None
        anchor = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        far = self._inside(_rings(box, plate_size), plate_size)
        far = far[~_overlaps(far, self._plates).any(axis=1)]
        centres = (far[:, :2] + far[:, 2:]) / 2
        distance = np.hypot(centres[:, 0] - anchor[0], centres[:, 1] - anchor[1]) / plate_size[1]
        cost = _hidden(far, self._boxes, number) + _LEADER_COST * distance
        for choice in np.argsort(cost, kind="stable"):
            if not _is_crossed(centres[choice], anchor, self._plates):
                return _rectangle(far[choice]), anchor
        return None

    def _inside(self, corners: Iterator[tuple[float, float]], plate_size: tuple[float, float]) -> NDArray[np.float64]:
        """Return plates [P, 4] with these top left corners, moved into the picture and to whole pixels."""
        corner = np.round(np.array(list(corners)))
        corner = np.clip(corner, 0, np.array(self._size) - np.array(plate_size))
        return np.concatenate([corner, corner + np.array(plate_size)], axis=1)


def _near(box: NDArray[np.float64], peak: float, plate_size: tuple[float, float]) -> Iterator[tuple[float, float]]:
    left, top, right, bottom = box.tolist()
    width, height = plate_size
    middle = (left + right - width) / 2
    yield peak - width / 2, top - height - 1
    yield left, top - height
    yield left, top
    yield right - width, top - height
    yield middle, top - height
    yield left, bottom
    yield right - width, top
    yield right - width, bottom
    yield left, bottom - height
    yield right - width, bottom - height
    yield middle, bottom
    yield right, top
    yield left - width, top
    yield middle, (top + bottom - height) / 2


def _rings(box: NDArray[np.float64], plate_size: tuple[float, float]) -> Iterator[tuple[float, float]]:
    left, top, right, bottom = box.tolist()
    width, height = plate_size
    for ring in _RINGS:
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            x = (left + right) / 2 + math.cos(angle) * ((right - left) / 2 + width / 2 + ring * height)
            y = (top + bottom) / 2 + math.sin(angle) * ((bottom - top) / 2 + ring * height)
            yield x - width / 2, y - height / 2


def _rectangle(values: NDArray[np.float64]) -> Rectangle:
    left, top, right, bottom = values.tolist()
    return left, top, right, bottom


def _overlaps(plates: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of P plates overlap which of O others, [P, O]; a pixel is left between them."""
    a, b = plates[:, None], others[None]
    overlaps: NDArray[np.bool_] = (
        (a[..., 0] < b[..., 2] + 1)
        & (b[..., 0] < a[..., 2] + 1)
        & (a[..., 1] < b[..., 3] + 1)
        & (b[..., 1] < a[..., 3] + 1)
    )
    return overlaps


def _hidden(plates: NDArray[np.float64], boxes: NDArray[np.float64], own: int) -> NDArray[np.float64]:
    """Return what each plate hides, [P]: the share of itself over other instances, and of its own instance twice."""
    a, b = plates[:, None], boxes[None]
    width = np.clip(np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]), 0, None)
    height = np.clip(np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]), 0, None)
    common = width * height
    plate_area = (plates[:, 2] - plates[:, 0]) * (plates[:, 3] - plates[:, 1])
    box_area = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1)
    # Of a large instance a label hides little, of a small one all.
    share = common / np.minimum(box_area, 6 * plate_area[:, None])
    share[:, own] *= 2
    hidden: NDArray[np.float64] = share.sum(axis=1)
    return hidden


def _is_crossed(centre: NDArray[np.float64], anchor: tuple[float, float], plates: NDArray[np.float64]) -> bool:
    """Return whether the line from a plate to its instance runs over another plate."""
    if not plates.size:
        return False
    steps = np.linspace(0, 1, 24)
    x = centre[0] + steps * (anchor[0] - centre[0])
    y = centre[1] + steps * (anchor[1] - centre[1])
    on = (x >= plates[:, None, 0]) & (x <= plates[:, None, 2]) & (y >= plates[:, None, 1]) & (y <= plates[:, None, 3])
    return bool(on.any())
