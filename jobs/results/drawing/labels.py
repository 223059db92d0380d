"""Where labels go: none covers another or leaves the picture; one apart from its instance has a line to it.

Every label is tried in many places around its instance, and takes the free one that hides least and is nearest.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The share of a picture that labels may cover in all. More hide what they name.
MAX_COVER = 0.22
# Above this share, labels are shortened to the category.
MAX_FULL_COVER = 0.12
# Costs of a place: of each step down the list of places, of a gap of one label height to the instance, and of hiding
# all of an instance, or as much of it as six labels have. Chosen by eye, on photos with crowds and with few objects.
_RANK_COST = 0.02
_GAP_COST = 0.12
_HIDING_COST = 2.0
_HIDDEN_LABELS = 6
# A label this many label heights away from its instance has a line.
_MAX_GAP = 0.7
# A place beside the instance that costs no more is taken without looking further away.
_GOOD_COST = 0.25
# Labels without room at their instance lie on rings around it, so many label heights away.
_RINGS = (0.2, 1.2, 2.2, 3.5, 5.0, 7.0, 9.0)
_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_COSINES, _SINES = np.cos(_ANGLES), np.sin(_ANGLES)
# Along a line to an instance, where it is compared with plates.
_STEPS = np.linspace(0, 1, 24)
# Shares of an instance's width, from the middle outwards.
_ALONG = np.array([1 / 2, 1 / 3, 2 / 3, 1 / 6, 5 / 6, 0, 1])
_PLACES_ALONG = len(_ALONG)

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; right and bottom exclusive."""
Spot = tuple[Rectangle, tuple[float, float] | None]
"""A plate, and the end of its line if it has one."""


@dataclass(frozen=True)
class Shape:
    """An instance's rough shape as columns: x of their middles, tops and bottoms [C], and their width in pixels."""

    x: NDArray[np.float64]
    tops: NDArray[np.float64]
    bottoms: NDArray[np.float64]
    width: float

    @classmethod
    def of_box(cls, box: Rectangle) -> "Shape":
        """Return a box's shape."""
        left, top, right, bottom = box
        columns = 9
        width = (right - left) / columns
        x = left + (np.arange(columns, dtype=np.float64) + 0.5) * width
        return cls(x, np.full(columns, top), np.full(columns, bottom), width)

    @property
    def box(self) -> Rectangle:
        """The box around it."""
        half = self.width / 2
        return float(self.x[0] - half), float(self.tops.min()), float(self.x[-1] + half), float(self.bottoms.max())


@dataclass(frozen=True)
class Wanted:
    """A label to place.

    place: of its instance in the sequence. texts: the full one and its short form. shape: the instance's.
    """

    place: int
    texts: tuple[str, str]
    shape: Shape


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
    room = _Room(size, [each.shape for each in wanted])
    budget = MAX_COVER * area
    placed: list[Placed] = []
    for number, each in enumerate(wanted):
        for text in [each.texts[1]] if is_short else dict.fromkeys(each.texts):
            plate_size = measure(text)
            # The first label may cover more: on a thumbnail one is better than none.
            if placed and plate_size[0] * plate_size[1] > budget:
                continue
            found = room.find(number, plate_size)
            if found is None:
                continue
            plate, leader = found
            room.take(plate, leader)
            budget -= plate_size[0] * plate_size[1]
            placed.append(Placed(each.place, text, plate, leader))
            break
    return placed


class _Room:
    """The picture's room for labels: its size, the shapes of all instances, the plates [P, 4] placed so far."""

    def __init__(self, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        self._size = size
        self._shapes = shapes
        self._box_list = [shape.box for shape in shapes]
        self._boxes = np.array(self._box_list, np.float64)
        self._taken: list[Rectangle] = []
        # Points along the lines of labels that are apart, which later plates must not hide.
        self._line_points = np.zeros((0, 2))
        self._plates = np.zeros((0, 4))

    def take(self, plate: Rectangle, leader: tuple[float, float] | None) -> None:
        """Occupy a plate, and the line to its instance if it has one."""
        self._taken.append(plate)
        self._plates = np.array(self._taken)
        if leader is not None:
            self._line_points = np.vstack([self._line_points, _line(np.array(plate), np.array(leader))])

    def find(self, number: int, plate_size: tuple[float, float]) -> Spot | None:
        """Return the best free plate for an instance and the end of its line, if it needs one; None without room."""
        if plate_size[0] > self._size[0] or plate_size[1] > self._size[1]:
            return None
        if (plate := self._clear_top(number, plate_size)) is not None:
            return plate, None
        shape = self._shapes[number]
        beside = self._best(number, self._inside(_beside(shape, plate_size), plate_size))
        if beside is not None and beside[0] <= _GOOD_COST:
            return beside[1]
        apart = self._best(number, self._inside(_rings(shape.box, plate_size), plate_size))
        found = [each for each in (beside, apart) if each is not None]
        return min(found, key=lambda each: each[0])[1] if found else None

    def _clear_top(self, number: int, plate_size: tuple[float, float]) -> Rectangle | None:
        """Return the plate at an instance's top if it hides nothing: no other place can be better."""
        shape = self._shapes[number]
        x, y = (round(value) for value in _at_top(shape, plate_size))
        plate = (x, y, x + plate_size[0], y + plate_size[1])
        if x < 0 or y < 0 or plate[2] > self._size[0] or plate[3] > self._size[1]:
            return None
        others = (box for other, box in enumerate(self._box_list) if other != number)
        is_hiding = any(_overlap(plate, each) for each in itertools.chain(self._taken, others))
        if is_hiding or _contain(np.array([plate]), self._line_points).any():
            return None
        return plate

    def _best(self, number: int, plates: NDArray[np.float64]) -> tuple[float, Spot] | None:
        """Return the cheapest of some plates and its cost; None if none is free."""
        shape = self._shapes[number]
        is_taken = _overlaps(plates, self._plates).any(axis=1) | _contain(plates, self._line_points).any(axis=1)
        ranks = np.flatnonzero(~is_taken)
        plates = plates[ranks]
        if not len(plates):
            return None
        height = plates[0, 3] - plates[0, 1]
        gaps, anchors = _gaps(plates, shape)
        others = np.delete(self._boxes, number, axis=0)
        cost = (
            _HIDING_COST * (_hidden(plates, others) + _hidden_of_shape(plates, shape))
            + _RANK_COST * ranks
            + _GAP_COST * gaps / height
        )
        for choice in np.argsort(cost, kind="stable"):
            left, top, right, bottom = plates[choice].tolist()
            if gaps[choice] <= _MAX_GAP * height:
                return float(cost[choice]), ((left, top, right, bottom), None)
            if not _is_crossed(plates[choice], anchors[choice], self._plates):
                x, y = anchors[choice].tolist()
                return float(cost[choice]), ((left, top, right, bottom), (x, y))
        return None

    def _inside(self, corners: NDArray[np.float64], plate_size: tuple[float, float]) -> NDArray[np.float64]:
        """Return plates [P, 4] with these top left corners [P, 2], moved into the picture and to whole pixels."""
        plates = np.empty((len(corners), 4))
        last = (self._size[0] - plate_size[0], self._size[1] - plate_size[1])
        plates[:, :2] = np.minimum(np.maximum(corners.round(), 0), last)
        plates[:, 2:] = plates[:, :2] + plate_size
        return plates


def _beside(shape: Shape, plate_size: tuple[float, float]) -> NDArray[np.float64]:
    """Return places at an instance [P, 2], best first: at its top, along its upper edge and its lower one, on it."""
    width, height = plate_size
    left, top, right, bottom = shape.box
    columns = len(shape.x)
    along = _ALONG[: min(columns, _PLACES_ALONG)] * (columns - 1)
    x, tops, bottoms = (values[along.round().astype(int)] for values in (shape.x, shape.tops, shape.bottoms))
    tallest = int((shape.bottoms - shape.tops).argmax())
    middle, low, high = float(shape.x[tallest]), float(shape.bottoms[tallest]), float(shape.tops[tallest])
    above = np.stack([x - width / 2, tops - height - 1], axis=1)
    below = np.stack([x - width / 2, bottoms + 1], axis=1)
    return np.concatenate(
        [
            [_at_top(shape, plate_size)],
            above,
            [(left, top - height - 1), (right - width, top - height - 1)],
            below,
            [
                (right + 1, (shape.tops[-1] + shape.bottoms[-1] - height) / 2),
                (left - width - 1, (shape.tops[0] + shape.bottoms[0] - height) / 2),
                (middle - width / 2, low - height - 1),
                (middle - width / 2, (low + high - height) / 2),
                (left, top),
                (right - width, bottom - height),
            ],
        ]
    )


def _at_top(shape: Shape, plate_size: tuple[float, float]) -> tuple[float, float]:
    """Return the top left corner of a plate above an instance's highest point."""
    top = float(shape.tops.min())
    highest = np.flatnonzero(shape.tops == top)
    return float(shape.x[highest[len(highest) // 2]]) - plate_size[0] / 2, top - plate_size[1] - 1


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    """Return whether two rectangles overlap, or lie less than a pixel apart."""
    return one[0] < other[2] + 1 and other[0] < one[2] + 1 and one[1] < other[3] + 1 and other[1] < one[3] + 1


def _rings(box: Rectangle, plate_size: tuple[float, float]) -> NDArray[np.float64]:
    """Return places around a box [P, 2], nearest first."""
    left, top, right, bottom = box
    width, height = plate_size
    reach = np.array(_RINGS)[:, None] * height
    x = (left + right) / 2 + _COSINES * ((right - left) / 2 + width / 2 + reach)
    y = (top + bottom) / 2 + _SINES * ((bottom - top) / 2 + height / 2 + reach)
    return np.stack([x.ravel() - width / 2, y.ravel() - height / 2], axis=1)


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


def _hidden(plates: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each plate hides of other instances, [P]: shares of their boxes, summed."""
    a, b = plates[:, None], boxes[None]
    width = np.clip(np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]), 0, None)
    height = np.clip(np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]), 0, None)
    box_area = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1)
    hidden: NDArray[np.float64] = _shares(width * height, box_area, plates).sum(axis=1)
    return hidden


def _hidden_of_shape(plates: NDArray[np.float64], shape: Shape) -> NDArray[np.float64]:
    """Return the share of an instance that each plate hides, [P]."""
    width = np.clip(
        np.minimum(plates[:, 2:3], shape.x + shape.width / 2) - np.maximum(plates[:, 0:1], shape.x - shape.width / 2),
        0,
        None,
    )
    height = np.clip(np.minimum(plates[:, 3:4], shape.bottoms) - np.maximum(plates[:, 1:2], shape.tops), 0, None)
    area = np.array([max(float((shape.bottoms - shape.tops).sum()) * shape.width, 1.0)])
    return _shares((width * height).sum(axis=1)[:, None], area, plates)[:, 0]


def _shares(
    common: NDArray[np.float64], areas: NDArray[np.float64], plates: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return common areas [P, O] as shares of those of O instances, but of no more than some labels have."""
    plate_area = (plates[:, 2] - plates[:, 0]) * (plates[:, 3] - plates[:, 1])
    shares: NDArray[np.float64] = common / np.minimum(areas, _HIDDEN_LABELS * plate_area[:, None])
    return shares


def _gaps(plates: NDArray[np.float64], shape: Shape) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each plate's distance from an instance [P], and the nearest point inside it [P, 2]."""
    centre = (plates[:, 1] + plates[:, 3]) / 2
    dx = np.maximum(np.maximum(plates[:, 0:1] - shape.x, shape.x - plates[:, 2:3]) - shape.width / 2, 0)
    dy = np.maximum(np.maximum(plates[:, 1:2] - shape.bottoms, shape.tops - plates[:, 3:4]), 0)
    distance = np.hypot(dx, dy)
    # Of columns equally near, the one in the middle of the plate.
    aside = np.abs(shape.x - (plates[:, 0:1] + plates[:, 2:3]) / 2)
    column = np.lexsort((aside, distance), axis=1)[:, 0]
    inset = 0.2 * (shape.bottoms[column] - shape.tops[column])
    y = np.clip(centre, shape.tops[column] + inset, shape.bottoms[column] - inset)
    return distance[np.arange(len(plates)), column], np.stack([shape.x[column], y], axis=1)


def _is_crossed(plate: NDArray[np.float64], anchor: NDArray[np.float64], plates: NDArray[np.float64]) -> bool:
    """Return whether the line from a plate to its instance runs over another plate."""
    return bool(_contain(plates, _line(plate, anchor)).any())


def _line(plate: NDArray[np.float64], anchor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points along the line from the middle of a plate to a point [P, 2]."""
    middle = (plate[:2] + plate[2:]) / 2
    points: NDArray[np.float64] = middle + _STEPS[:, None] * (anchor - middle)
    return points


def _contain(plates: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of P plates contain which of N points, [P, N]."""
    x, y = points[:, 0], points[:, 1]
    contain: NDArray[np.bool_] = (
        (x >= plates[:, 0:1]) & (x <= plates[:, 2:3]) & (y >= plates[:, 1:2]) & (y <= plates[:, 3:4])
    )
    return contain
