"""Pairs the instances of two runs: one to one inside an image, by mask IoU, for many images at once.

Instances of one category are paired first, then those that are left over, whatever their category. In both steps the
pair with the highest IoU is taken, then the highest of those that are left, and so on (greedy); of equal ones that with
the lower numbers of instances. So the pairs are the same on every machine and in every batch of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from htc_model.masks.many_runs import ForegroundRuns, intersection_areas
from jobs.results.diff.rules import DiffRules
from pipeline.output.mask_functions import PIECE_ROWS, decode_masks

Numbers = NDArray[np.int64]
# So many pairs of masks at once: their arrays stay in the processor's cache.
PIECE_PAIRS = 1024
# So many possible pairs are looked at at once; a million of them takes some 60 MB.
MAX_PAIRS = 1_000_000


class DamagedMaskError(ValueError):
    """A mask cannot be read, or is not of its image's size; `side` is "a" or "b", `place` the instance's."""

    def __init__(self, side: str, place: int) -> None:
        super().__init__(f"the mask of instance {place} of side {side} is damaged")
        self.side = side
        self.place = place


@dataclass(frozen=True)
class Instances:
    """N instances of a batch of images, those of an image together, the images ascending.

    Args:
        image: [N] int64, number of the image in the batch.
        category: [N] int64, the same number for the same name on both sides.
        score: [N] float64.
        boxes_xywh: [N, 4] float64 in pixels.
        areas: [N] float64, pixels of each mask; 0 where there is none.
        masks: [N] structs as in the tables; null where the network has none.
        sizes: [images, 2] int64 (height, width) in pixels of the images.
    """

    image: Numbers
    category: Numbers
    score: NDArray[np.float64]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    masks: pa.StructArray
    sizes: Numbers

    def __len__(self) -> int:
        return len(self.image)

    @cached_property
    def low(self) -> NDArray[np.float64]:
        """The first pixel that a mask may have, [N, 2] (x, y)."""
        return np.floor(self.boxes_xywh[:, :2])

    @cached_property
    def high(self) -> NDArray[np.float64]:
        """One past the last pixel that a mask may have, [N, 2] (x, y)."""
        return np.ceil(self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:])


@dataclass(frozen=True)
class Pairs:
    """P pairs: places in a and in b, [P] int64, and their IoU, [P] float64."""

    a: Numbers
    b: Numbers
    iou: NDArray[np.float64]

    @classmethod
    def concatenate(cls, pieces: "Sequence[Pairs]") -> "Pairs":
        """Return all pairs, one piece after another; at least one piece."""
        return cls(
            np.concatenate([piece.a for piece in pieces]),
            np.concatenate([piece.b for piece in pieces]),
            np.concatenate([piece.iou for piece in pieces]),
        )

    def __getitem__(self, chosen: NDArray[np.bool_] | Numbers) -> "Pairs":
        return Pairs(self.a[chosen], self.b[chosen], self.iou[chosen])


def match_instances(a: Instances, b: Instances, rules: DiffRules) -> Pairs:
    """Pair the instances of two runs over the same images.

    An instance below `rules.min_score` is a partner only of one that scores at least that. IoU is that of the masks;
    of the boxes where one of the two has no mask.

    Returns:
        Pairs with an IoU of at least `rules.match_iou`, ascending in `a`.

    Raises:
        DamagedMaskError: a mask that has to be compared is damaged.
    """
    same = _identical(a, b, rules)
    is_free_a, is_free_b = np.ones(len(a), bool), np.ones(len(b), bool)
    is_free_a[same.a] = is_free_b[same.b] = False
    found = [same]
    for possible in _possible_pairs(a, b, is_free_a, is_free_b, rules.least_score):
        close = _close_pairs(a, b, possible, rules.match_iou)
        is_same_category = a.category[close.a] == b.category[close.b]
        first = take_best(close[is_same_category])
        is_free_a[first.a] = is_free_b[first.b] = False
        rest = close[~is_same_category]
        found += [first, take_best(rest[is_free_a[rest.a] & is_free_b[rest.b]])]
    pairs = Pairs.concatenate(found)
    return pairs[np.argsort(pairs.a, kind="stable")]


def take_best(edges: Pairs) -> Pairs:
    """Choose one to one among possible pairs, the highest IoU first, of equal ones the lower places.

    A pair that is the best of both its instances is one that this order takes; so all of these are taken at once, and
    what they leave is looked at again.
    """
    left = edges[np.lexsort((edges.b, edges.a, -edges.iou))]
    chosen = [left[np.zeros(0, np.int64)]]
    while len(left.a):
        is_best = np.zeros(len(left.a), bool)
        is_best[np.unique(left.a, return_index=True)[1]] = True
        best_of_b = np.unique(left.b, return_index=True)[1]
        best = left[best_of_b[is_best[best_of_b]]]
        chosen.append(best)
        left = left[~(_is_among(left.a, best.a) | _is_among(left.b, best.b))]
    return Pairs.concatenate(chosen)


def _is_among(values: Numbers, chosen: Numbers) -> NDArray[np.bool_]:
    marked = np.zeros(int(values.max(initial=-1)) + 1, bool)
    marked[chosen] = True
    return marked[values]


def _identical(a: Instances, b: Instances, rules: DiffRules) -> Pairs:
    """Pair instances of one image and category whose masks are written the same: no higher IoU exists than theirs."""
    has_mask = np.concatenate([_has_mask(a), _has_mask(b)])
    texts = pa.chunked_array([_texts(a), _texts(b)]).dictionary_encode().combine_chunks()
    code = np.asarray(texts.indices.fill_null(-1), np.int64)
    image, category = np.concatenate([a.image, b.image]), np.concatenate([a.category, b.category])
    side = np.repeat([0, 1], [len(a), len(b)])
    order = np.lexsort((side, code, category, image))
    order = order[has_mask[order]]
    keys = np.stack([image, category, code])[:, order]
    is_new = np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(axis=0)])[: len(order)]
    sides = side[order]
    group = np.cumsum(is_new) - 1
    # The nth of one side goes with the nth of the other.
    starts = np.flatnonzero(is_new | np.concatenate([[True], sides[1:] != sides[:-1]])[: len(order)])
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    in_turn = np.lexsort((sides, rank, group))
    one, other = in_turn[:-1], in_turn[1:]
    is_pair = (group[one] == group[other]) & (rank[one] == rank[other])
    places_a, places_b = order[one[is_pair]], order[other[is_pair]] - len(a)
    counts = np.maximum(a.score[places_a], b.score[places_b]) >= rules.least_score
    places_a, places_b = places_a[counts], places_b[counts]
    return Pairs(places_a, places_b, np.ones(len(places_a)))


def _has_mask(instances: Instances) -> NDArray[np.bool_]:
    return np.asarray(instances.masks.is_valid())


def _texts(instances: Instances) -> pa.Array:
    """Return the masks' counts; of one image, two of the same text are the same pixels."""
    return instances.masks.field("counts").cast(pa.large_string())


def _possible_pairs(
    a: Instances, b: Instances, is_free_a: NDArray[np.bool_], is_free_b: NDArray[np.bool_], min_score: float
) -> list[Pairs]:
    """Return the pairs of free instances of one image of which one scores enough, without their IoU, in pieces.

    A piece holds whole images, and about MAX_PAIRS pairs or the pairs of one image.
    """
    images = len(a.sizes)
    counts_a, counts_b = a.score >= min_score, b.score >= min_score
    high_a, low_a = np.flatnonzero(is_free_a & counts_a), np.flatnonzero(is_free_a & ~counts_a)
    free_b, high_b = np.flatnonzero(is_free_b), np.flatnonzero(is_free_b & counts_b)
    sums = [np.bincount(side.image[places], minlength=images) for side, places in ((a, high_a), (b, free_b))]
    more = [np.bincount(side.image[places], minlength=images) for side, places in ((a, low_a), (b, high_b))]
    pairs_before = np.cumsum(sums[0] * sums[1] + more[0] * more[1])
    piece_of = np.maximum(pairs_before - 1, 0) // MAX_PAIRS
    pieces = []
    for piece in np.unique(piece_of).tolist():
        first, last = np.searchsorted(piece_of, piece), np.searchsorted(piece_of, piece, side="right")
        found = [
            _products(_within(a, one, first, last), _within(b, other, first, last), a.image, b.image, images)
            for one, other in ((high_a, free_b), (low_a, high_b))
        ]
        places_a, places_b = (np.concatenate([each[side] for each in found]) for side in (0, 1))
        if len(places_a):
            pieces.append(Pairs(places_a, places_b, np.zeros(len(places_a))))
    return pieces


def _within(side: Instances, places: Numbers, first: np.int64, last: np.int64) -> Numbers:
    """Return the places whose image is in [first, last)."""
    images = side.image[places]
    return places[np.searchsorted(images, first) : np.searchsorted(images, last)]


def _products(one: Numbers, other: Numbers, image_a: Numbers, image_b: Numbers, images: int) -> tuple[Numbers, Numbers]:
    """Return every pair of places whose images are the same."""
    counts_b = np.bincount(image_b[other], minlength=images)
    first_b = np.cumsum(counts_b) - counts_b
    repeats = counts_b[image_a[one]]
    a = np.repeat(one, repeats)
    within = np.arange(len(a)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    return a, other[np.repeat(first_b[image_a[one]], repeats) + within] if len(a) else a


def _close_pairs(a: Instances, b: Instances, possible: Pairs, match_iou: float) -> Pairs:
    """Return the pairs with an IoU of at least `match_iou`."""
    by_mask = _has_mask(a)[possible.a] & _has_mask(b)[possible.b]
    masks, boxes = possible[by_mask], possible[~by_mask]
    iou = _box_ious(a.boxes_xywh[boxes.a], b.boxes_xywh[boxes.b])
    boxes = Pairs(boxes.a, boxes.b, iou)[iou >= match_iou]
    return Pairs.concatenate([_mask_pairs(a, b, masks, match_iou), boxes])


def _mask_pairs(a: Instances, b: Instances, possible: Pairs, match_iou: float) -> Pairs:
    near = possible[_may_overlap(a, b, possible, match_iou)]
    places_a, index_a = np.unique(near.a, return_inverse=True)
    places_b, index_b = np.unique(near.b, return_inverse=True)
    runs_a, runs_b = _decode(a, places_a, "a"), _decode(b, places_b, "b")
    pieces = range(0, len(near.a), PIECE_PAIRS)
    common = [
        intersection_areas(runs_a.take(index_a[at : at + PIECE_PAIRS]), runs_b.take(index_b[at : at + PIECE_PAIRS]))
        for at in pieces
    ]
    intersections = np.concatenate([np.zeros(0, np.int64), *common])
    union = runs_a.areas()[index_a] + runs_b.areas()[index_b] - intersections
    iou = intersections / np.maximum(union, 1)
    return Pairs(near.a, near.b, iou)[iou >= match_iou]


def _may_overlap(a: Instances, b: Instances, pairs: Pairs, match_iou: float) -> NDArray[np.bool_]:
    """Return which pairs of masks may have the IoU, by their areas and boxes.

    A mask lies in its box, grown to whole pixels. So two masks share at most the smaller area, and at most what their
    boxes share; and together they have at least the larger area.
    """
    low = np.maximum(a.low[pairs.a], b.low[pairs.b])
    high = np.minimum(a.high[pairs.a], b.high[pairs.b])
    sides = np.maximum(high - low, 0)
    areas_a, areas_b = a.areas[pairs.a], b.areas[pairs.b]
    most = np.minimum(np.minimum(areas_a, areas_b), sides[:, 0] * sides[:, 1])
    return np.asarray((most >= match_iou * np.maximum(areas_a, areas_b)) & (most > 0))


def _decode(side: Instances, places: Numbers, name: str) -> ForegroundRuns:
    """Decode the masks at places.

    Raises:
        DamagedMaskError: one cannot be read, or is not of its image's size.
    """
    pieces = []
    for at in range(0, len(places), PIECE_ROWS):
        piece = places[at : at + PIECE_ROWS]
        decoded = decode_masks(side.masks.take(pa.array(piece)))
        is_sound = decoded.is_valid & (decoded.sizes == side.sizes[side.image[piece]]).all(axis=1)
        if not is_sound.all():
            raise DamagedMaskError(name, int(piece[np.flatnonzero(~is_sound)[0]]))
        pieces.append(decoded.runs())
    return ForegroundRuns.concatenate(pieces)


def _shared_box_areas(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area that two boxes (x, y, width, height) share, [N]."""
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    sides = np.maximum(high - low, 0)
    areas: NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return areas


def _box_ious(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    shared = _shared_box_areas(a, b)
    union = a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - shared
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(union > 0, shared / union, 0.0)
