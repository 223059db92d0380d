"""Joins what a model found in the overlapping tiles of one image: instances that seams cut come out once.

Masks stay run lengths throughout: no bitmap of the image is drawn, and the work grows with the number of runs.

1. Two instances of one class in two tiles are *the same* if their masks agree where the tiles overlap: the pixels that
   both have there are more than half of those that one of them has. Each instance has one such partner in each other
   tile at most; the pairs that agree best are taken first.
2. An instance without a partner that is *cut* by its tile's border inside another tile belongs to the instance there
   that holds more than half of its pixels in the overlap; so both legs of an object that only the next tile shows to be
   one are joined to it.
3. What is linked, over any number of tiles, is one object. If one of its parts saw all of it (no part has a pixel
   outside that part's tile), that part is kept as it is and the others, cut or doubles, are dropped. Otherwise each
   pixel is decided by one tile: of those tiles with a part of the object that contain the pixel, the one whose middle
   row is nearest, then whose middle column is nearest.

For a model that finds the same pixels in each tile, the result is exactly the object, whatever the layout of the tiles.
Nothing depends on the order in which tiles come. Instances that only touch share no pixel, and stay two.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from htc_model.masks.many_runs import (
    ColumnRuns,
    ForegroundRuns,
    decode_counts,
    intersection_areas,
    join_texts,
)
from htc_model.masks.rle import encode_runs_of_sizes
from htc_model.masks.tile_box import TileBox
from htc_model.structures import Detections, Rle

# Of the pixels in the overlap: more than half, so that no mask agrees with two others that do not overlap.
LEAST_AGREEMENT = 0.5
# A mask that ends this near to its tile's border counts as cut by it: masks are drawn from maps of 28 x 28 cells, whose
# outer cells often end short of the border. In pixels, and as a share of the mask's own side.
CUT_PIXELS = 4
CUT_SHARE = 0.05
# Instances of one tile that are compared at once with all of another.
_COMPARED_AT_ONCE = 1024

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class MixedMasksError(ValueError):
    """Instances of some tiles have masks and those of others have none: no one result holds both."""


class SeamCounts(NamedTuple):
    """What joining did.

    found: instances of all tiles. cut: those that a border between tiles cuts.
    joined: objects made of the parts of several tiles. doubles: instances dropped because another tile saw all of the
    same object. kept: instances of the result.
    """

    found: int
    cut: int
    joined: int
    doubles: int
    kept: int


@dataclass(frozen=True)
class Joined:
    """detections: of the whole image, in its coordinates, most confident first. counts: how they came about."""

    detections: Detections
    counts: SeamCounts


def join_tiles(
    size: tuple[int, int], tiles: Iterable[tuple[TileBox, Detections]], *, least_agreement: float = LEAST_AGREEMENT
) -> Joined:
    """Join the detections of an image's tiles.

    Args:
        size: (height, width) of the image in pixels.
        tiles: in any order: where each tile lies, and what was found in it, boxes and masks in the tile's coordinates,
            the masks of the tile's size; without masks, boxes are joined as if they were masks. Whether a tile without
            instances has (no) masks says nothing.
        least_agreement: of two masks in the overlap, from 0 to 1.

    Returns:
        An instance that was not joined keeps its score and its box. A joined one has the mean of its parts' scores,
        weighted by the pixels that each contributes, and the box around its mask; without masks, around its parts.

    Raises:
        ValueError: a tile is not within the image, lies twice in one place, or a mask is not one of its tile's size.
        MixedMasksError: some tiles with instances have masks, and others have none.
    """
    ordered = sorted(tiles, key=lambda tile: tile[0])
    has_masks = _have_masks([found for _, found in ordered])
    boxes = [box for box, _ in ordered]
    _check_places(boxes, size)
    neighbours = list(_neighbours(boxes))
    overlaps: list[list[TileBox]] = [[] for _ in boxes]
    for a, b, overlap in neighbours:
        overlaps[a].append(overlap)
        overlaps[b].append(overlap)
    parts = [_Tile.of(box, found, shared) for (box, found), shared in zip(ordered, overlaps, strict=True)]
    first = np.concatenate([[0], np.cumsum([len(tile.found) for tile in parts])]).astype(np.int64)
    is_cut = [tile.cut_by(size) for tile in parts]
    groups = _Groups(int(first[-1]))
    for a, b, overlap in neighbours:
        for i, j in _links(parts[a], parts[b], overlap, least_agreement):
            groups.link(int(first[a]) + i, int(first[b]) + j)
    result = _Result(size, has_masks=has_masks)
    for members in groups.of_several():
        tile_of = np.searchsorted(first, members, side="right") - 1
        result.add_object(
            [(parts[tile], int(member - first[tile])) for tile, member in zip(tile_of, members, strict=True)]
        )
    for number, tile in enumerate(parts):
        alone = np.flatnonzero(groups.is_alone[first[number] : first[number + 1]])
        result.add_alone(tile, alone)
    detections = result.detections()
    counts = SeamCounts(
        found=int(first[-1]),
        cut=int(sum(each.sum() for each in is_cut)),
        joined=result.joined,
        doubles=result.doubles,
        kept=len(detections),
    )
    return Joined(detections, counts)


def _have_masks(tiles: Sequence[Detections]) -> bool:
    """Return whether the instances of all tiles have masks, whatever is said of tiles without instances.

    Raises:
        MixedMasksError: those of some have, and those of others have not.
    """
    kinds = {found.masks is not None for found in tiles if len(found)}
    if len(kinds) > 1:
        raise MixedMasksError("the instances of some tiles have masks, and those of others have none")
    return kinds.pop() if kinds else all(found.masks is not None for found in tiles)


def _check_places(boxes: Sequence[TileBox], size: tuple[int, int]) -> None:
    for box in boxes:
        if box.top < 0 or box.left < 0 or box.bottom > size[0] or box.right > size[1] or min(box[2:]) < 1:
            raise ValueError(f"the tile {tuple(box)} is not within the image of {size[0]} x {size[1]} pixels")
    for before, after in itertools.pairwise(boxes):
        if before == after:
            raise ValueError(f"two tiles lie at {tuple(after)}")


@dataclass(frozen=True)
class _Tile:
    """A tile's instances in a fixed order, whatever order the model gave them in.

    bounds: [N, 4] x0, y0, x1, y1 of the masks in whole pixels of the tile; zeros for an empty mask.
    seam_runs: of the masks that reach into other tiles, which are looked at many times; the texts of the others are a
        tenth of the size of their runs, and are read again when they are needed.
    seam_row: [N] of each mask its place in `seam_runs`, -1 for the others.
    """

    box: TileBox
    found: Detections
    bounds: Ints
    labels: Ints
    seam_runs: ForegroundRuns
    seam_row: Ints

    @classmethod
    def of(cls, box: TileBox, found: Detections, overlaps: Sequence[TileBox]) -> "_Tile":
        found = _in_fixed_order(found)
        runs = _runs_of(found, (box.height, box.width))
        xywh = runs.boxes_xywh().astype(np.int64)
        bounds = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        reaches = np.zeros(len(bounds), bool)
        for overlap in overlaps:
            reaches[_reaching(bounds, box, overlap)] = True
        seam_row = np.where(reaches, np.cumsum(reaches) - 1, -1)
        return cls(
            box, found, bounds, found.labels.numpy().astype(np.int64), runs.take(np.flatnonzero(reaches)), seam_row
        )

    def runs(self, places: Ints) -> ForegroundRuns:
        """Return the runs of some masks, in the tile's coordinates; of a box-only model, of its boxes."""
        rows = self.seam_row[places]
        if (rows >= 0).all():
            return self.seam_runs.take(rows)
        return _runs_of(_chosen(self.found, places), (self.box.height, self.box.width))

    def inside(self, overlap: TileBox) -> Ints:
        """Return the instances whose masks reach into an overlap, by their bounds."""
        return _reaching(self.bounds, self.box, overlap)

    def within(self, overlap: TileBox, places: Ints) -> ForegroundRuns:
        """Return the parts of some masks that lie in an overlap, in the overlap's coordinates."""
        window = [overlap.left - self.box.left, overlap.top - self.box.top, overlap.width, overlap.height]
        return self.runs(places).crop(np.tile(np.array(window, np.float64), (len(places), 1)))

    def cut_by(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which masks end at a border of the tile that is none of the image's."""
        box, cut = self.box, self._near_borders()
        is_inner = np.array([box.left > 0, box.top > 0, box.right < size[1], box.bottom < size[0]])
        return np.asarray((cut & is_inner).any(axis=1))

    def cut_inside(self, other: TileBox) -> NDArray[np.bool_]:
        """Return which masks end at a border of the tile beyond which another tile goes on."""
        box = self.box
        goes_on = [other.left < box.left, other.top < box.top, other.right > box.right, other.bottom > box.bottom]
        return np.asarray((self._near_borders() & np.array(goes_on)).any(axis=1))

    def _near_borders(self) -> NDArray[np.bool_]:
        """Return which masks end near the left, upper, right and lower border, [N, 4]."""
        x0, y0, x1, y1 = self.bounds.T
        gaps = np.stack([x0, y0, self.box.width - x1, self.box.height - y1], axis=1)
        sides = np.stack([x1 - x0, y1 - y0, x1 - x0, y1 - y0], axis=1)
        near: NDArray[np.bool_] = (gaps <= np.maximum(CUT_PIXELS, CUT_SHARE * sides)) & (sides > 0)
        return near


def _in_fixed_order(found: Detections) -> Detections:
    scores, labels, boxes = found.scores.tolist(), found.labels.tolist(), found.boxes_xyxy.tolist()
    texts = [b""] * len(scores) if found.masks is None else [mask["counts"] for mask in found.masks]
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], labels[i], boxes[i], texts[i]))
    return _chosen(found, np.array(order, np.int64))


def _chosen(found: Detections, places: Ints) -> Detections:
    at = torch.from_numpy(places)
    masks = None if found.masks is None else [found.masks[i] for i in places.tolist()]
    return Detections(found.boxes_xyxy[at], found.scores[at], found.labels[at], masks)


def _reaching(bounds: Ints, box: TileBox, overlap: TileBox) -> Ints:
    x0, y0 = overlap.left - box.left, overlap.top - box.top
    return np.flatnonzero(
        (bounds[:, 2] > x0)
        & (bounds[:, 0] < x0 + overlap.width)
        & (bounds[:, 3] > y0)
        & (bounds[:, 1] < y0 + overlap.height)
    )


def _runs_of(found: Detections, size: tuple[int, int]) -> ForegroundRuns:
    if found.masks is None:
        return _runs_of_boxes(found.boxes_xyxy.numpy(), size)
    if any(tuple(mask["size"]) != size for mask in found.masks):
        raise ValueError(f"a mask is not of its tile's size, {size[0]} x {size[1]}")
    sizes = np.tile(np.array(size, np.int64), (len(found.masks), 1))
    lengths = decode_counts(*join_texts([mask["counts"] for mask in found.masks]), sizes)
    if not lengths.is_valid.all():
        raise ValueError("a mask's counts cannot be read as run lengths of its size")
    return lengths.runs()


def _runs_of_boxes(boxes: NDArray[np.float32], size: tuple[int, int]) -> ForegroundRuns:
    """Return boxes, rounded to whole pixels, as masks of a tile."""
    height, width = size
    limits = np.array([width, height, width, height])
    whole = np.clip(np.rint(boxes.reshape(-1, 4)).astype(np.int64), 0, limits)
    x0, y0, x1, y1 = whole.T
    columns = np.where(y1 > y0, np.maximum(x1 - x0, 0), 0)
    box = np.repeat(np.arange(len(whole)), columns)
    first = np.concatenate([[0], np.cumsum(columns)])
    x = x0[box] + np.arange(len(box)) - first[:-1][box]
    return ForegroundRuns.of(
        x * height + y0[box], x * height + y1[box], columns, np.tile(np.array(size, np.int64), (len(whole), 1))
    )


def _neighbours(boxes: Sequence[TileBox]) -> Iterator[tuple[int, int, TileBox]]:
    """Yield the pairs of tiles that overlap, with what they share; the boxes ascend by their upper edge."""
    tallest = max((box.height for box in boxes), default=0)
    tops = np.array([box.top for box in boxes], np.int64)
    lefts = np.array([box.left for box in boxes], np.int64)
    rights = np.array([box.right for box in boxes], np.int64)
    bottoms = np.array([box.bottom for box in boxes], np.int64)
    for a, box in enumerate(boxes):
        # No tile that begins below this one overlaps it.
        end = int(np.searchsorted(tops, min(box.bottom, box.top + tallest)))
        later = np.arange(a + 1, end)
        shares = (lefts[later] < box.right) & (rights[later] > box.left) & (bottoms[later] > box.top)
        for b in later[shares].tolist():
            overlap = box.overlap(boxes[b])
            if overlap is not None:
                yield a, b, overlap


def _links(a: _Tile, b: _Tile, overlap: TileBox, least: float) -> list[tuple[int, int]]:
    """Return the pairs of instances of two tiles that are one object, by their places in the tiles."""
    in_a, in_b = a.inside(overlap), b.inside(overlap)
    left, right = _close_pairs(a, b, in_a, in_b)
    if not len(left):
        return []
    masks_a, masks_b = a.within(overlap, in_a), b.within(overlap, in_b)
    both = intersection_areas(masks_a.take(left), masks_b.take(right)).astype(np.float64)
    area_a, area_b = masks_a.areas()[left], masks_b.areas()[right]
    shares_any = both > 0
    left, right, area_a, area_b = (each[shares_any] for each in (left, right, area_a, area_b))
    both = both[shares_any]
    agreement = both / (area_a + area_b - both)
    links: list[tuple[int, int]] = []
    taken_a, taken_b = np.zeros(len(in_a), bool), np.zeros(len(in_b), bool)
    for pair in _best_first(agreement, left, right):
        i, j = left[pair], right[pair]
        if agreement[pair] <= least:
            break
        if not taken_a[i] and not taken_b[j]:
            taken_a[i] = taken_b[j] = True
            links.append((int(in_a[i]), int(in_b[j])))
    for is_open, share, own in (
        (a.cut_inside(b.box)[in_a] & ~taken_a, both / area_a, left),
        (b.cut_inside(a.box)[in_b] & ~taken_b, both / area_b, right),
    ):
        has_host = is_open.copy()
        for pair in _best_first(share, left, right):
            if share[pair] <= least:
                break
            if has_host[own[pair]]:
                has_host[own[pair]] = False
                links.append((int(in_a[left[pair]]), int(in_b[right[pair]])))
    return links


def _best_first(share: Floats, left: Ints, right: Ints) -> list[int]:
    """Return the pairs, largest share first; among equals those of the first instances."""
    return [int(pair) for pair in np.lexsort((right, left, -share))]


def _close_pairs(a: _Tile, b: _Tile, in_a: Ints, in_b: Ints) -> tuple[Ints, Ints]:
    """Return the pairs of one class whose masks' bounds overlap, as places in `in_a` and `in_b`."""
    bounds_a = a.bounds[in_a] + np.array([a.box.left, a.box.top] * 2)
    bounds_b = b.bounds[in_b] + np.array([b.box.left, b.box.top] * 2)
    found: list[tuple[Ints, Ints]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for start in range(0, len(in_a), _COMPARED_AT_ONCE):
        some = bounds_a[start : start + _COMPARED_AT_ONCE, None]
        are_close = (
            (some[..., 0] < bounds_b[:, 2])
            & (some[..., 2] > bounds_b[:, 0])
            & (some[..., 1] < bounds_b[:, 3])
            & (some[..., 3] > bounds_b[:, 1])
            & (a.labels[in_a[start : start + _COMPARED_AT_ONCE], None] == b.labels[in_b])
        )
        left, right = np.nonzero(are_close)
        found.append((left + start, right))
    return np.concatenate([left for left, _ in found]), np.concatenate([right for _, right in found])


class _Groups:
    """Union-find over the instances of all tiles."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self.is_alone = np.ones(count, bool)

    def link(self, a: int, b: int) -> None:
        """Make two instances parts of one object."""
        self.is_alone[[a, b]] = False
        low, high = sorted((self._root(a), self._root(b)))
        # The lowest number names the object, whatever the order of the links.
        self._parent[high] = low

    def of_several(self) -> list[list[int]]:
        """Return the parts of each object that has several, in ascending order."""
        members: dict[int, list[int]] = {}
        for each in np.flatnonzero(~self.is_alone).tolist():
            members.setdefault(self._root(each), []).append(each)
        return list(members.values())

    def _root(self, each: int) -> int:
        while self._parent[each] != each:
            self._parent[each] = self._parent[self._parent[each]]
            each = self._parent[each]
        return each


class _Result:
    """Collects the image's instances: scores, labels, boxes, and masks as texts, which are much smaller than runs."""

    def __init__(self, size: tuple[int, int], *, has_masks: bool) -> None:
        self.joined = self.doubles = 0
        self._size = size
        self._has_masks = has_masks
        self._scores: list[float] = []
        self._labels: list[int] = []
        self._boxes: list[list[float]] = []
        self._masks: list[Rle] = []

    def add_alone(self, tile: _Tile, places: Ints) -> None:
        """Take instances of a tile as they are."""
        if not len(places):
            return
        chosen = torch.from_numpy(places)
        shift = torch.tensor([tile.box.left, tile.box.top] * 2, dtype=torch.float32)
        self._boxes += (tile.found.boxes_xyxy[chosen] + shift).tolist()
        self._scores += tile.found.scores[chosen].tolist()
        self._labels += tile.found.labels[chosen].tolist()
        if self._has_masks:
            columns = tile.runs(places).columns()
            counts = np.diff(columns.first)
            self._masks += self._encode(_placed(columns, tile.box), counts)

    def add_object(self, parts: Sequence[tuple[_Tile, int]]) -> None:
        """Take an object that several instances are parts of."""
        whole = _whole_part(parts, self._size)
        if whole is not None:
            self.doubles += len(parts) - 1
            self.add_alone(parts[whole][0], np.array([parts[whole][1]], np.int64))
            return
        self.joined += 1
        boxes = sorted({tile.box for tile, _ in parts})
        pieces = [_own_pixels(_columns_of(tile, place), tile.box, boxes) for tile, place in parts]
        areas = np.array([int((piece.bottoms - piece.tops).sum()) for piece in pieces], np.float64)
        scores = np.array([float(tile.found.scores[place]) for tile, place in parts])
        mean = float((scores * areas).sum() / areas.sum()) if areas.any() else float(scores.max())
        self._scores.append(min(max(mean, float(scores.min())), float(scores.max())))
        self._labels.append(int(parts[0][0].labels[parts[0][1]]))
        runs = _united(pieces, self._size)
        if self._has_masks:
            self._masks += self._encode(runs, np.diff(runs.first))
            x, y, width, height = runs.boxes_xywh()[0].tolist()
            self._boxes.append([x, y, x + width, y + height])
        else:
            found = np.array(
                [
                    tile.found.boxes_xyxy[place].numpy() + np.array([tile.box.left, tile.box.top] * 2, np.float32)
                    for tile, place in parts
                ]
            )
            self._boxes.append([*found[:, :2].min(axis=0).tolist(), *found[:, 2:].max(axis=0).tolist()])

    def detections(self) -> Detections:
        """Return the instances, most confident first; equal scores by class, box and mask."""
        texts = [mask["counts"] for mask in self._masks] if self._has_masks else [b""] * len(self._scores)
        order = sorted(
            range(len(self._scores)), key=lambda i: (-self._scores[i], self._labels[i], self._boxes[i], texts[i])
        )
        return Detections(
            torch.tensor([self._boxes[i] for i in order], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([self._scores[i] for i in order], dtype=torch.float32),
            torch.tensor([self._labels[i] for i in order], dtype=torch.int64),
            [self._masks[i] for i in order] if self._has_masks else None,
        )

    def _encode(self, runs: "ForegroundRuns | ColumnRuns", counts: Ints) -> list[Rle]:
        if isinstance(runs, ColumnRuns):
            runs = _as_runs(runs, counts, self._size)
        return encode_runs_of_sizes(runs.begins, runs.ends, np.diff(runs.first), runs.sizes)


def _as_runs(columns: ColumnRuns, counts: Ints, size: tuple[int, int]) -> ForegroundRuns:
    begin = columns.x * size[0]
    sizes = np.tile(np.array(size, np.int64), (len(counts), 1))
    return ForegroundRuns.of(begin + columns.tops, begin + columns.bottoms, counts, sizes)


def _placed(columns: ColumnRuns, box: TileBox) -> ColumnRuns:
    """Return a tile's columns in the image's coordinates."""
    return ColumnRuns(
        columns.x + box.left, columns.tops + box.top, columns.bottoms + box.top, columns.first, columns.sizes
    )


def _columns_of(tile: _Tile, place: int) -> ColumnRuns:
    """Return one mask's columns in the image's coordinates."""
    return _placed(tile.runs(np.array([place], np.int64)).columns(), tile.box)


def _whole_part(parts: Sequence[tuple[_Tile, int]], size: tuple[int, int]) -> int | None:
    """Return the part whose tile holds all pixels of the object; the one farthest from its borders, None without one.

    Among equals the more confident one, then the first. The image's own edges are no borders.
    """
    bounds = np.array([tile.bounds[place] + np.array([tile.box.left, tile.box.top] * 2) for tile, place in parts])
    has_pixels = bounds[:, 2] > bounds[:, 0]
    x0, y0 = bounds[has_pixels, :2].min(axis=0)
    x1, y1 = bounds[has_pixels, 2:].max(axis=0)
    tiles = [tile.box for tile, _ in parts]
    ranks = []
    for number, (tile, place) in enumerate(parts):
        box = tile.box
        is_edge = [box.left == 0, box.top == 0, box.right == size[1], box.bottom == size[0]]
        gaps = [x0 - box.left, y0 - box.top, box.right - x1, box.bottom - y1]
        # Two parts in one tile, as legs of an object whose rest another tile shows, are no doubles of each other.
        if min(gaps) >= 0 and tiles.count(box) == 1:
            inner = [gap for gap, edge in zip(gaps, is_edge, strict=True) if not edge]
            ranks.append((min(inner, default=0), float(tile.found.scores[place]), -number))
    return -max(ranks)[2] if ranks else None


def _own_pixels(columns: ColumnRuns, own: TileBox, boxes: Sequence[TileBox]) -> ColumnRuns:
    """Return the pixels of one mask, in the image's coordinates, that no other of the tiles decides.

    Args:
        boxes: the tiles with parts of the object, ascending.
    """
    for other in boxes:
        overlap = own.overlap(other) if other != own else None
        if overlap is not None:
            columns = _without(columns, _nearer_part(overlap, own, other))
    return columns


def _nearer_part(overlap: TileBox, own: TileBox, other: TileBox) -> TileBox:
    """Return the part of an overlap that is nearer to the other tile's middle row, or column where rows are the same.

    Pixels as near to both belong to the tile that is first, above or to the left.
    """
    # Twice the middles, to stay with whole numbers. A pixel's middle is at y + 1/2.
    own_y, other_y = 2 * own.top + own.height, 2 * other.top + other.height
    if own_y != other_y:
        first, last = _nearer_range(overlap.top, overlap.bottom, own_y, other_y)
        return TileBox(first, overlap.left, last - first, overlap.width)
    own_x, other_x = 2 * own.left + own.width, 2 * other.left + other.width
    if own_x != other_x:
        first, last = _nearer_range(overlap.left, overlap.right, own_x, other_x)
        return TileBox(overlap.top, first, overlap.height, last - first)
    # One middle: the smaller tile shows less around the pixel; the larger one decides, then the first.
    is_others = (-other.height * other.width, other) < (-own.height * own.width, own)
    return overlap if is_others else TileBox(overlap.top, overlap.left, 0, 0)


def _nearer_range(begin: int, end: int, own: int, other: int) -> tuple[int, int]:
    """Return the part of begin ... end - 1 nearer to `other`, given twice the middles."""
    # 2 * (2 p + 1) against own + other: both distances are equal there.
    if other > own:
        first = (own + other - 2) // 4 + 1
        return min(max(first, begin), end), end
    # Where both are equally near, it belongs to the first, which is the other one.
    last = (own + other - 2) // 4 + 1
    return begin, min(max(last, begin), end)


def _without(columns: ColumnRuns, box: TileBox) -> ColumnRuns:
    """Return one mask's columns without those in a box."""
    if box.height <= 0 or box.width <= 0:
        return columns
    x, tops, bottoms = columns.x, columns.tops, columns.bottoms
    is_beside = (x < box.left) | (x >= box.right)
    upper = np.where(is_beside, bottoms, np.minimum(bottoms, box.top))
    lower = np.where(is_beside, bottoms, np.maximum(tops, box.bottom))
    new_x, new_tops = np.concatenate([x, x]), np.concatenate([tops, lower])
    new_bottoms = np.concatenate([upper, bottoms])
    stays = new_bottoms > new_tops
    return ColumnRuns(
        new_x[stays], new_tops[stays], new_bottoms[stays], np.array([0, int(stays.sum())], np.int64), columns.sizes
    )


def _united(pieces: Sequence[ColumnRuns], size: tuple[int, int]) -> ForegroundRuns:
    """Return the mask of all pixels of the pieces, in the image's coordinates."""
    begins = np.concatenate([piece.x * size[0] + piece.tops for piece in pieces])
    ends = np.concatenate([piece.x * size[0] + piece.bottoms for piece in pieces])
    order = np.lexsort((ends, begins))
    begins, ends = begins[order], np.maximum.accumulate(ends[order])
    # Parts of one tile may overlap: a run that ends before the one before it is inside that one.
    starts = np.concatenate([[True], begins[1:] > ends[:-1]]) if len(begins) else np.zeros(0, bool)
    merged_begins = begins[starts]
    merged_ends = ends[np.concatenate([np.flatnonzero(starts)[1:] - 1, [len(ends) - 1]])] if len(ends) else ends
    counts = np.array([len(merged_begins)], np.int64)
    return ForegroundRuns.of(merged_begins, merged_ends, counts, np.array([size], np.int64))
