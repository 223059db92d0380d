"""Many COCO masks at once, as runs of foreground: areas, boxes, intersections, unions, outlines, with numpy only.

Nothing here draws a mask; the work grows with the number of runs, and not with the number of pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from htc_model.masks.rle import FIRST_CHAR, GROUP_BITS, GROUP_MASK, MAX_GROUPS, MORE_BIT, SIGN_BIT, encode_runs_of_sizes


@dataclass(frozen=True)
class RunLengths:
    """The run lengths of N masks, mask after mask, background first within a mask.

    Args:
        lengths: [K] int64, in pixels; negative or too many where a code is wrong, see `is_valid`.
        first: [N + 1] int64, where each mask's lengths begin; the last entry is K.
        sizes: [N, 2] int64 (height, width) in pixels.
        is_valid: [N] whether the code can be read, its lengths are not negative and sum to height * width.
    """

    lengths: NDArray[np.int64]
    first: NDArray[np.int64]
    sizes: NDArray[np.int64]
    is_valid: NDArray[np.bool_]

    def areas(self) -> NDArray[np.int64]:
        """Count the foreground pixels of each mask, [N] int64."""
        # Background, foreground, background, ...: a mask's foreground lengths are every other one from its second.
        return _sums_of_every_other(self.lengths, self.first[:-1] + 1, self.first[1:])

    def runs(self) -> "ForegroundRuns":
        """Return the runs of foreground."""
        counts = np.diff(self.first)
        ends_of_lengths = np.cumsum(self.lengths)
        before = np.concatenate([[0], ends_of_lengths])[self.first[:-1]]
        parity = (np.arange(len(self.lengths)) ^ np.repeat(self.first[:-1] & 1, counts)) & 1
        end_places = np.flatnonzero(parity)
        run_counts = counts // 2
        shift = np.repeat(before, run_counts)
        begins, ends = ends_of_lengths[end_places - 1] - shift, ends_of_lengths[end_places] - shift
        return ForegroundRuns.of(begins, ends, run_counts, self.sizes)


@dataclass(frozen=True)
class ForegroundRuns:
    """The foreground of N masks as runs, mask after mask, ascending, neither empty nor touching within a mask.

    Args:
        begins, ends: [R] int64, first and one past the last position; position = x * height + y.
        first: [N + 1] int64, where each mask's runs begin; the last entry is R.
        sizes: [N, 2] int64 (height, width) in pixels.
    """

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    first: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        begins: NDArray[np.int64],
        ends: NDArray[np.int64],
        run_counts: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> "ForegroundRuns":
        """Build from ascending runs, some of which may be empty or touch the one before."""
        mask = np.repeat(np.arange(len(run_counts)), run_counts)
        is_empty = begins == ends
        if is_empty.any():
            begins, ends, mask = begins[~is_empty], ends[~is_empty], mask[~is_empty]
        touches = (begins[1:] == ends[:-1]) & (mask[1:] == mask[:-1])
        if touches.any():
            begins = begins[np.concatenate([[True], ~touches])]
            ends = ends[np.concatenate([~touches, [True]])]
            mask = mask[np.concatenate([[True], ~touches])]
        first = np.concatenate([[0], np.cumsum(np.bincount(mask, minlength=len(run_counts)))]).astype(np.int64)
        return cls(begins, ends, first, sizes)

    @property
    def mask_of_run(self) -> NDArray[np.int64]:
        """Return which mask each run belongs to, [R] int64 in [0, N)."""
        masks: NDArray[np.int64] = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        return masks

    def take(self, places: NDArray[np.int64]) -> "ForegroundRuns":
        """Return the masks at places [M] int64, in their order; a mask may be taken several times."""
        counts = np.diff(self.first)[places]
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        run = np.arange(first[-1]) + np.repeat(self.first[:-1][places] - first[:-1], counts)
        return ForegroundRuns(self.begins[run], self.ends[run], first, self.sizes[places])

    @classmethod
    def concatenate(cls, pieces: Sequence["ForegroundRuns"]) -> "ForegroundRuns":
        """Return the masks of all pieces, one piece after another."""
        counts = [np.diff(piece.first) for piece in pieces]
        return cls(
            np.concatenate([np.zeros(0, np.int64), *(piece.begins for piece in pieces)]),
            np.concatenate([np.zeros(0, np.int64), *(piece.ends for piece in pieces)]),
            np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]))]).astype(np.int64),
            np.concatenate([np.zeros((0, 2), np.int64), *(piece.sizes for piece in pieces)]),
        )

    def areas(self) -> NDArray[np.int64]:
        """Count the foreground pixels of each mask, [N] int64."""
        return _sums(self.ends - self.begins, self.first)

    def encode(self) -> list[str]:
        """Return the masks' `counts`: the text that `pycocotools.mask.encode` gives for the bitmaps."""
        rles = encode_runs_of_sizes(self.begins, self.ends, np.diff(self.first), self.sizes)
        return [rle["counts"].decode() for rle in rles]

    def boxes_xywh(self) -> NDArray[np.float64]:
        """Return the box around each mask, [N, 4] (x, y, width, height) in pixels; zeros for an empty mask."""
        height = self.sizes[:, 0][self.mask_of_run]
        last = self.ends - 1
        left, right = self.begins // height, last // height
        # A run that goes on in the next column covers the end of one and the begin of another.
        is_long = right > left
        top = np.where(is_long, 0, self.begins - left * height)
        bottom = np.where(is_long, height - 1, last - right * height)
        boxes = np.zeros((len(self.first) - 1, 4), np.float64)
        has_runs = self.first[1:] > self.first[:-1]
        starts = self.first[:-1][has_runs]
        if len(starts):
            x, y = left[starts], np.minimum.reduceat(top, starts)
            right_edge = right[self.first[1:][has_runs] - 1] + 1
            boxes[has_runs] = np.stack([x, y, right_edge - x, np.maximum.reduceat(bottom, starts) + 1 - y], axis=1)
        return boxes

    def centroids(self) -> NDArray[np.float64]:
        """Return the mean of each mask's pixel centres, [N, 2] (x, y); (0.5, 0.5) is the first one's, NaN if empty."""
        columns = self.columns()
        lengths = columns.bottoms - columns.tops
        sum_x = _sums(lengths * columns.x, columns.first) + 0.0
        # Of top, ..., bottom - 1 the sum is length * (top + bottom - 1) / 2.
        sum_y = _sums(lengths * (columns.tops + columns.bottoms - 1), columns.first) / 2
        areas = self.areas()
        with np.errstate(invalid="ignore"):
            return np.stack([sum_x / areas, sum_y / areas], axis=1) + 0.5

    def perimeters(self) -> NDArray[np.int64]:
        """Return the length of each mask's outline along the edges of its pixels, holes' too, [N] int64 in pixels."""
        columns = self.columns()
        # Each run of a column has an edge of one pixel above it and one below it.
        horizontal = 2 * np.diff(columns.first)
        # Pixels with foreground to the left: those that the mask shares with itself moved by one column.
        height = self.sizes[:, 0][self.mask_of_run]
        moved = ForegroundRuns(self.begins + height, self.ends + height, self.first, self.sizes + np.array([0, 1]))
        perimeters: NDArray[np.int64] = horizontal + 2 * (self.areas() - intersection_areas(self, moved))
        return perimeters

    def columns(self) -> "ColumnRuns":
        """Split the runs where a column ends."""
        height = self.sizes[:, 0][self.mask_of_run]
        left = self.begins // height
        pieces = (self.ends - 1) // height - left + 1
        run = np.repeat(np.arange(len(pieces)), pieces)
        first_piece = np.concatenate([[0], np.cumsum(pieces)])
        piece = np.arange(len(run)) - first_piece[:-1][run]
        x = left[run] + piece
        column_begin = x * height[run]
        tops = np.maximum(self.begins[run] - column_begin, 0)
        bottoms = np.minimum(self.ends[run] - column_begin, height[run])
        return ColumnRuns(x, tops, bottoms, first_piece[self.first], self.sizes)

    def crop(self, boxes_xywh: NDArray[np.float64]) -> "ForegroundRuns":
        """Cut each mask to a box, grown to whole pixels and clipped to the image.

        Args:
            boxes_xywh: [N, 4] in pixels of the masks.

        Returns:
            N masks of the boxes' sizes.

        Raises:
            ValueError: a box has no pixel inside its image, or is not finite.
        """
        if not np.isfinite(boxes_xywh).all():
            raise ValueError("a box to crop to has a side that is not finite")
        height, width = self.sizes[:, 0], self.sizes[:, 1]
        x0 = np.clip(np.floor(boxes_xywh[:, 0]), 0, width).astype(np.int64)
        y0 = np.clip(np.floor(boxes_xywh[:, 1]), 0, height).astype(np.int64)
        x1 = np.clip(np.ceil(boxes_xywh[:, 0] + boxes_xywh[:, 2]), 0, width).astype(np.int64)
        y1 = np.clip(np.ceil(boxes_xywh[:, 1] + boxes_xywh[:, 3]), 0, height).astype(np.int64)
        sizes = np.stack([y1 - y0, x1 - x0], axis=1)
        if (sizes <= 0).any():
            raise ValueError("a box to crop to has no pixel inside its image")
        columns = self.columns()
        mask = np.repeat(np.arange(len(height)), np.diff(columns.first))
        tops = np.maximum(columns.tops, y0[mask]) - y0[mask]
        bottoms = np.minimum(columns.bottoms, y1[mask]) - y0[mask]
        stays = (columns.x >= x0[mask]) & (columns.x < x1[mask]) & (bottoms > tops)
        mask, x = mask[stays], (columns.x - x0[mask])[stays]
        begin = x * sizes[mask, 0]
        counts = np.bincount(mask, minlength=len(height))
        return ForegroundRuns.of(begin + tops[stays], begin + bottoms[stays], counts, sizes)


@dataclass(frozen=True)
class ColumnRuns:
    """Runs that end with their column: column `x`, rows `tops` to `bottoms` (one past the last), [C] int64 each.

    `first` [N + 1] is where each mask's runs begin; two runs of one mask may touch from column to column.
    """

    x: NDArray[np.int64]
    tops: NDArray[np.int64]
    bottoms: NDArray[np.int64]
    first: NDArray[np.int64]
    sizes: NDArray[np.int64]


def decode_counts(chars: NDArray[np.uint8], first_char: NDArray[np.int64], sizes: NDArray[np.int64]) -> RunLengths:
    """Decode N masks' `counts` at once.

    Args:
        chars: [C] the texts, one after another.
        first_char: [N + 1] where each text begins; the last entry is C.
        sizes: [N, 2] (height, width) in pixels.

    Returns:
        The lengths; masks whose code cannot be read have none, and `is_valid` is unset.
    """
    is_readable = _readable(chars, first_char) & (sizes > 0).all(axis=1)
    texts = np.diff(first_char)
    if not is_readable.all():
        chars = chars[np.repeat(is_readable, texts)]
        texts = np.where(is_readable, texts, 0)
    codes = chars - np.uint8(FIRST_CHAR)
    last_places = np.flatnonzero((codes & MORE_BIT) == 0)
    groups = np.diff(last_places, prepend=-1)
    starts = last_places - groups + 1
    values = (codes[starts] & GROUP_MASK).astype(np.int64)
    for group in range(1, int(groups.max(initial=1))):
        longer = np.flatnonzero(groups > group)
        values[longer] |= (codes[starts[longer] + group] & GROUP_MASK).astype(np.int64) << (GROUP_BITS * group)
    is_negative = np.flatnonzero(codes[last_places] & SIGN_BIT)
    values[is_negative] -= np.int64(1) << (GROUP_BITS * groups[is_negative])
    first = np.searchsorted(last_places, np.concatenate([[0], np.cumsum(texts)])).astype(np.int64)
    lengths = _undo_differences(values, first)
    return RunLengths(lengths, first, sizes, is_readable & _fill_their_size(lengths, first, sizes))


def _readable(chars: NDArray[np.uint8], first_char: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which texts consist of whole numbers in COCO's code, [N] bool."""
    readable = first_char[1:] > first_char[:-1]
    codes = chars - np.uint8(FIRST_CHAR)
    wrong = np.flatnonzero(codes >= 2 * MORE_BIT)
    readable[np.searchsorted(first_char, wrong, side="right") - 1] = False
    has_text = np.flatnonzero(first_char[1:] > first_char[:-1])
    readable[has_text] &= (codes[first_char[1:][has_text] - 1] & MORE_BIT) == 0
    last_places = np.flatnonzero((codes & MORE_BIT) == 0)
    too_long = np.flatnonzero(np.diff(last_places, prepend=-1) > MAX_GROUPS)
    text = np.searchsorted(first_char, last_places[too_long], side="right") - 1
    # What a cut text before it left open, which is unset above, is no part of a text's first number.
    is_own = last_places[too_long] - first_char[text] + 1 > MAX_GROUPS
    readable[text[is_own]] = False
    return readable


def _undo_differences(values: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lengths: from a mask's fourth value on, each is the difference to the length two places before."""
    lengths = np.empty_like(values)
    starts, counts = first[:-1], np.diff(first)
    for parity in (0, 1):
        half = values[parity::2]
        sums = np.concatenate([[0], np.cumsum(half)])
        # Of a mask that begins at this parity the first value stands alone and the sum begins with the third; of
        # another mask it begins with the second.
        is_own = (starts & 1) == parity
        begin = (starts + 1 - parity) // 2
        in_half = np.where(is_own, (counts + 1) // 2, counts // 2)
        base = sums[np.minimum(begin + is_own, len(half))]
        lengths[parity::2] = sums[1:] - np.repeat(base, in_half)
    alone = starts[counts > 0]
    lengths[alone] = values[alone]
    return lengths


def _fill_their_size(
    lengths: NDArray[np.int64], first: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    fills: NDArray[np.bool_] = _sums(lengths, first) == sizes[:, 0] * sizes[:, 1]
    negative = np.flatnonzero(lengths < 0)
    fills[np.searchsorted(first, negative, side="right") - 1] = False
    return fills


def intersection_areas(a: ForegroundRuns, b: ForegroundRuns) -> NDArray[np.int64]:
    """Count the pixels that the masks of each pair share.

    Args:
        a, b: N masks each, the two of a pair of the same height.

    Returns:
        [N] int64.
    """
    offset = _offsets(a, b)
    b_begins, b_ends = b.begins + offset[b.mask_of_run], b.ends + offset[b.mask_of_run]
    in_b_before = np.concatenate([[0], np.cumsum(b_ends - b_begins)])
    shift = offset[a.mask_of_run]

    def covered_before(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        begun = np.searchsorted(b_begins, positions)
        # Whole runs before, without what the last of them has beyond the position.
        beyond = np.zeros(len(positions), np.int64)
        has_run = begun > 0
        beyond[has_run] = np.maximum(b_ends[begun[has_run] - 1] - positions[has_run], 0)
        covered: NDArray[np.int64] = in_b_before[begun] - beyond
        return covered

    return _sums(covered_before(a.ends + shift) - covered_before(a.begins + shift), a.first)


def intersect(a: ForegroundRuns, b: ForegroundRuns) -> ForegroundRuns:
    """Return the masks of the pixels that are in both masks of each pair; the two of a pair have one size."""
    return _combine(a, b, needed=2)


def subtract(a: ForegroundRuns, b: ForegroundRuns) -> ForegroundRuns:
    """Return the masks of the pixels that are in the first mask of each pair only; the two of a pair have one size."""
    return _combine(a, b, needed=1, weight_of_b=-1)


def unite(a: ForegroundRuns, b: ForegroundRuns) -> ForegroundRuns:
    """Return the masks of the pixels that are in either mask of each pair; the two of a pair have one size."""
    return _combine(a, b, needed=1)


def _combine(a: ForegroundRuns, b: ForegroundRuns, *, needed: int, weight_of_b: int = 1) -> ForegroundRuns:
    """Return the masks of the pixels whose cover is `needed` or more: 1 by the first mask, a weight by the second."""
    offset = _offsets(a, b)
    edges, changes = [], []
    for masks, weight in ((a, 1), (b, weight_of_b)):
        shift = offset[masks.mask_of_run]
        edges += [masks.begins + shift, masks.ends + shift]
        changes += [np.full(len(masks.begins), weight, np.int64), np.full(len(masks.ends), -weight, np.int64)]
    edge, change = np.concatenate(edges), np.concatenate(changes)
    order = np.argsort(edge, kind="stable")
    edge, cover = edge[order], np.cumsum(change[order])
    # Of the edges at one position the last one has what is covered from there on.
    is_last = np.concatenate([edge[1:] != edge[:-1], np.ones(min(len(edge), 1), bool)])
    edge, is_in = edge[is_last], cover[is_last] >= needed
    was_in = np.concatenate([[False], is_in])[:-1] if len(is_in) else is_in
    begins, ends = edge[is_in & ~was_in], edge[was_in & ~is_in]
    # Runs of different pairs do not touch: `_offsets` leaves a position between them.
    mask = np.searchsorted(offset, begins, side="right") - 1
    counts = np.bincount(mask, minlength=len(offset))
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ForegroundRuns(begins - offset[mask], ends - offset[mask], first, a.sizes)


def _offsets(a: ForegroundRuns, b: ForegroundRuns) -> NDArray[np.int64]:
    """Return for each pair a number [N] to add to its positions, so that those of all pairs ascend."""
    pixels = np.maximum(a.sizes.prod(axis=1), b.sizes.prod(axis=1)) + 1
    offsets: NDArray[np.int64] = np.cumsum(pixels) - pixels
    return offsets


def _sums(values: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum the values of each mask, [N] int64."""
    sums: NDArray[np.int64] = np.concatenate([[0], np.cumsum(values)])[first]
    return np.diff(sums)


def _sums_of_every_other(
    values: NDArray[np.int64], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Sum values[begin:end:2] for each begin and end, [N] int64."""
    total = np.zeros(len(begins), np.int64)
    for parity in (0, 1):
        sums = np.concatenate([[0], np.cumsum(values[parity::2])])
        own = np.flatnonzero(((begins & 1) == parity) & (begins < ends))
        low = (begins[own] - parity) // 2
        total[own] = sums[low + (ends[own] - begins[own] + 1) // 2] - sums[low]
    return total


def join_texts(texts: Sequence[str | bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return texts as `decode_counts` takes them: all characters, and where each text begins."""
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    first = np.concatenate([[0], np.cumsum([len(text) for text in raw])]).astype(np.int64)
    return np.frombuffer(b"".join(raw), np.uint8), first
