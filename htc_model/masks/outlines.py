"""The outlines of many COCO masks as polygons along the edges of their pixels, holes kept; with numpy only."""

from collections import defaultdict
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from htc_model.masks.many_runs import ColumnRuns, ForegroundRuns

Ring: TypeAlias = NDArray[np.int64]
"""[V, 2] (x, y) corners in pixels; the first is not repeated. The outer ring is clockwise as drawn, holes are not."""
Polygon: TypeAlias = list[Ring]
"""The outer ring, and the rings of the holes."""

# Directions of edges; the foreground is to the right of each, so that one more is a turn to the right.
_RIGHT, _DOWN, _LEFT, _UP = range(4)


@dataclass(frozen=True)
class _Edges:
    """Directed edges of all outlines; `start` and `end` are numbers of corners, `run` the column run beside, or -1."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    direction: NDArray[np.int64]
    run: NDArray[np.int64]


def trace_outlines(masks: ForegroundRuns) -> list[list[Polygon]]:
    """Trace the masks' outlines.

    A polygon is a part of the mask whose pixels hang together by their edges; parts that touch at a corner only are
    polygons of their own. So every result is a valid multipolygon (OGC 06-103r4, 6.1.11), and its area is the mask's.

    Returns:
        Of each mask its polygons; none if it is empty.
    """
    columns = masks.columns()
    corner_rows = masks.sizes[:, 0] + 1
    corners = corner_rows * (masks.sizes[:, 1] + 1)
    first_corner = np.cumsum(corners) - corners
    edges = _edges(columns, corner_rows, first_corner)
    outlines: list[list[Polygon]] = [[] for _ in range(len(masks.sizes))]
    rings: defaultdict[int, list[tuple[Ring, int]]] = defaultdict(list)
    for ring, run in _rings(edges):
        corner = np.array(ring, np.int64)
        mask = int(np.searchsorted(first_corner, corner[0], side="right")) - 1
        x, y = np.divmod(corner - first_corner[mask], corner_rows[mask])
        rings[mask].append((np.stack([x, y], axis=1), run))
    for mask, own in rings.items():
        outlines[mask] = _polygons(own, columns, mask)
    return outlines


def signed_area(ring: Ring) -> int:
    """Return the area inside a ring in pixels; negative for a hole."""
    x, y = ring[:, 0], ring[:, 1]
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) // 2


def multipolygon_wkt(polygons: list[Polygon]) -> str:
    """Write polygons as a WKT MULTIPOLYGON (OGC 06-103r4); "MULTIPOLYGON EMPTY" if there are none."""
    if not polygons:
        return "MULTIPOLYGON EMPTY"
    texts = [f"({', '.join(map(_ring_wkt, polygon))})" for polygon in polygons]
    return f"MULTIPOLYGON ({', '.join(texts)})"


def _ring_wkt(ring: Ring) -> str:
    points = ring.tolist()
    return f"({', '.join(f'{x} {y}' for x, y in [*points, points[0]])})"


def _edges(columns: ColumnRuns, corner_rows: NDArray[np.int64], first_corner: NDArray[np.int64]) -> _Edges:
    mask = np.repeat(np.arange(len(corner_rows)), np.diff(columns.first))
    rows, base = corner_rows[mask], first_corner[mask] + columns.x * corner_rows[mask]
    top, bottom = base + columns.tops, base + columns.bottoms
    above = _joined(top, rows, columns.tops, mask, _RIGHT)
    below = _joined(bottom, rows, columns.bottoms, mask, _LEFT)
    # Along the line to the left of column x: +1 where a run of column x begins, -1 where one of column x - 1 does.
    corner = np.concatenate([top, bottom, top + rows, bottom + rows])
    change = np.repeat(np.array([1, -1, -1, 1]), len(top))
    order = np.argsort(corner, kind="stable")
    corner, side = corner[order], np.cumsum(change[order])
    is_last = np.concatenate([corner[1:] != corner[:-1], np.ones(min(len(corner), 1), bool)])
    corner, side = corner[is_last], side[is_last]
    before = np.concatenate([[0], side])[:-1] if len(side) else side
    turns = side != before
    corner, side = corner[turns], side[turns]
    is_edge = side[:-1] != 0 if len(side) else np.zeros(0, bool)
    low, high, side = corner[:-1][is_edge], corner[1:][is_edge], side[:-1][is_edge]
    beside = side > 0  # the foreground is to the right of the line: the edge goes up
    upright = _Edges(
        np.where(beside, high, low),
        np.where(beside, low, high),
        np.where(beside, _UP, _DOWN),
        np.full(len(low), -1, np.int64),
    )
    parts = (above, below, upright)
    return _Edges(
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        np.concatenate([part.direction for part in parts]),
        np.concatenate([part.run for part in parts]),
    )


def _joined(
    left: NDArray[np.int64], rows: NDArray[np.int64], y: NDArray[np.int64], mask: NDArray[np.int64], direction: int
) -> _Edges:
    """Join horizontal edges of one pixel that continue each other: there is no other edge at the corner between.

    Args:
        left: [C] the left corner of each; the corner `rows` further is the right one.
        y: [C] the corner's row.
    """
    order = np.lexsort((left, y, mask))
    left, rows, y, mask = left[order], rows[order], y[order], mask[order]
    follows = (mask[1:] == mask[:-1]) & (y[1:] == y[:-1]) & (left[1:] == left[:-1] + rows[:-1])
    is_first = np.concatenate([np.ones(min(len(left), 1), bool), ~follows])
    is_last = np.concatenate([~follows, np.ones(min(len(left), 1), bool)])
    begin, end = left[is_first], left[is_last] + rows[is_last]
    start, stop = (begin, end) if direction == _RIGHT else (end, begin)
    return _Edges(start, stop, np.full(len(begin), direction, np.int64), order[is_first])


def _rings(edges: _Edges) -> list[tuple[list[int], int]]:
    """Return each simple ring's corners, and a column run beside it."""
    order = np.argsort(edges.start, kind="stable")
    starts = edges.start[order]
    place = np.searchsorted(starts, edges.end)
    # At a corner where two pixels meet diagonally two edges start: the outline stays at its own pixel.
    second = np.minimum(place + 1, max(len(starts) - 1, 0))
    is_shared = (starts[second] == edges.end) & (second > place) if len(starts) else np.zeros(0, bool)
    is_right_turn = edges.direction[order[place]] == (edges.direction + 1) % 4
    following = np.where(is_shared & ~is_right_turn, order[second], order[place]).tolist()
    start, run = edges.start.tolist(), edges.run.tolist()
    rings: list[tuple[list[int], int]] = []
    is_seen = bytearray(len(start))
    for begin in range(len(start)):
        if is_seen[begin]:
            continue
        path: list[int] = []
        runs: list[int] = []
        at: dict[int, int] = {}
        edge = begin
        while not is_seen[edge]:
            is_seen[edge] = 1
            corner = start[edge]
            if corner in at:
                # The outline touches itself here: what lies between is a ring of its own.
                cut = at[corner]
                rings.append((path[cut:], max(runs[cut:])))
                for old in path[cut:]:
                    del at[old]
                del path[cut:], runs[cut:]
            at[corner] = len(path)
            path.append(corner)
            runs.append(run[edge])
            edge = following[edge]
        rings.append((path, max(runs)))
    return rings


def _polygons(rings: list[tuple[Ring, int]], columns: ColumnRuns, mask: int) -> list[Polygon]:
    """Put the holes of one mask to the rings around them."""
    outer = [(ring, run) for ring, run in rings if signed_area(ring) > 0]
    holes = [(ring, run) for ring, run in rings if signed_area(ring) < 0]
    polygons = [[ring] for ring, _ in outer]
    if len(outer) == 1:
        polygons[0] += [ring for ring, _ in holes]
    elif holes:
        part = _parts(columns, int(columns.first[mask]), int(columns.first[mask + 1]))
        of_part = {part[run]: polygon for (_, run), polygon in zip(outer, polygons, strict=True)}
        for ring, run in holes:
            of_part[part[run]].append(ring)
    return polygons


def _parts(columns: ColumnRuns, begin: int, end: int) -> dict[int, int]:
    """Return for each column run of a mask a run of the part that it belongs to, the same one for the whole part."""
    parent = {run: run for run in range(begin, end)}

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    x, tops, bottoms = (values[begin:end].tolist() for values in (columns.x, columns.tops, columns.bottoms))
    before = 0
    for run in range(end - begin):
        while before < run and (x[before] < x[run] - 1 or (x[before] == x[run] - 1 and bottoms[before] <= tops[run])):
            before += 1
        other = before
        while other < run and x[other] == x[run] - 1 and tops[other] < bottoms[run]:
            parent[root(begin + run)] = root(begin + other)
            other += 1
    return {run: root(run) for run in range(begin, end)}
