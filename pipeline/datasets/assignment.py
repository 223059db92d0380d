"""Assigns groups of images to splits: by a hash, corrected until every split has its share of every class.

The hash alone decides for most groups, so that adding images moves few others; then groups are moved, the best move
first, as long as a move brings the splits' counts of images with each class closer to their shares. That is the aim of
iterative stratification (Sechidis et al., ECML PKDD 2011), reached from a start that does not depend on the order.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_HASH_BYTES = 8
# A move must gain more than rounding.
_LEAST_GAIN = 1e-9


@dataclass(frozen=True)
class Group:
    """Images that stay together.

    key: a name that does not change when images are added. classes: how many of its images have each class.
    images: how many it has. split: where it must stay; None where it is free.
    """

    key: str
    images: int
    classes: Mapping[str, int]
    split: str | None = None


def assign_groups(groups: Sequence[Group], shares: Mapping[str, float], *, seed: int = 0) -> list[str]:
    """Assign each group to a split.

    Args:
        shares: of each split, in order, summing to 1; the first gets what the others do not need.
        seed: another one gives another assignment.

    Returns:
        The name of each group's split.
    """
    splits = list(shares)
    share = np.array(list(shares.values()))
    spots = np.array([_spot(group.key, seed) for group in groups])
    # The others take the beginning of [0, 1), so that a split's images stay its own when its share grows.
    bounds = np.cumsum([*share[1:]])
    start = (np.searchsorted(bounds, spots, side="right") + 1) % len(splits)
    fixed = np.array([group.split is not None for group in groups], bool)
    own = np.array([splits.index(group.split) if group.split is not None else 0 for group in groups], np.int64)
    start = np.where(fixed, own, start)
    counts = _count(groups)
    places = _correct(start, counts, _targets(counts, share), fixed, spots)
    return [splits[place] for place in places]


def _spot(key: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the key and the seed alone."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest, "big") / (1 << (8 * _HASH_BYTES))


def _count(groups: Sequence[Group]) -> NDArray[np.float64]:
    """Return [G, C + 1]: images with each class, and last all images."""
    names = sorted({name for group in groups for name in group.classes})
    counts = np.zeros((len(groups), len(names) + 1))
    columns = {name: column for column, name in enumerate(names)}
    for row, group in zip(counts, groups, strict=True):
        for name, number in group.classes.items():
            row[columns[name]] = number
        row[-1] = group.images
    return counts


def _targets(counts: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [S, C + 1]: how many images with each class each split should have.

    A class that is in enough groups has at least one image in each split: its scores could not be known otherwise.
    """
    totals, group_counts = counts.sum(axis=0), (counts > 0).sum(axis=0)
    targets: NDArray[np.float64] = share[:, None] * totals
    is_shared = group_counts >= len(share)
    targets[1:] = np.where((share[1:, None] > 0) & is_shared, np.maximum(targets[1:], 1.0), targets[1:])
    targets[0] = np.maximum(totals - targets[1:].sum(axis=0), 0.0)
    return targets


def _correct(
    start: NDArray[np.int64],
    counts: NDArray[np.float64],
    targets: NDArray[np.float64],
    fixed: NDArray[np.bool_],
    spots: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Move groups while that lowers the sum, over splits and classes, of (count - target)^2 / count of the class."""
    places = start.copy()
    weights = 1 / np.maximum(counts.sum(axis=0), 1.0)
    weighted: NDArray[np.float64] = counts * weights
    own_squares = (weighted * counts).sum(axis=1)
    excess = -targets
    np.add.at(excess, places, counts)
    rows = np.arange(len(places))
    while len(places):
        pull = weighted @ excess.T
        change = 2 * (pull - pull[rows, places][:, None]) + 2 * own_squares[:, None]
        change[rows, places] = np.inf
        change[fixed] = np.inf
        best = float(change.min())
        if best >= -_LEAST_GAIN:
            break
        # Of equally good moves the one with the lowest hash, whatever the order of the groups.
        candidates = np.argwhere(change <= best + _LEAST_GAIN)
        group, split = min(candidates.tolist(), key=lambda move: (spots[move[0]], move[1]))
        excess[places[group]] -= counts[group]
        excess[split] += counts[group]
        places[group] = split
    return places
