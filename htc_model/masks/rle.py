"""COCO's compressed run-length masks, with numpy only: reading masks does not need torch.

A mask is the list of its run lengths in column-major order, background first; each length, from the fourth on, is
stored as the difference to the length two positions before, in groups of five bits, least significant first, with bit 5
set if more groups follow, plus 48 to make it printable (cocoapi, maskApi.c).
"""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # structures.py imports torch
    from htc_model.structures import Rle

GROUP_BITS = 5
GROUP_MASK = 0x1F
SIGN_BIT = 0x10
MORE_BIT = 0x20
FIRST_CHAR = 48
# 7 groups hold 35 signed bits: an image of 17 gigapixels. pycocotools stores lengths in 32 bits and could not read
# longer ones.
MAX_GROUPS = 7
# The first lengths of a mask, which are not stored as differences.
_PLAIN_LENGTHS = 3


def encode_runs(
    begins: NDArray[np.int64], ends: NDArray[np.int64], run_counts: NDArray[np.int64], size: tuple[int, int]
) -> "list[Rle]":
    """Encode several masks of one size, given as runs of foreground; see `encode_runs_of_sizes`."""
    return encode_runs_of_sizes(begins, ends, run_counts, np.tile(np.array(size, np.int64), (len(run_counts), 1)))


def encode_runs_of_sizes(
    begins: NDArray[np.int64], ends: NDArray[np.int64], run_counts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> "list[Rle]":
    """Encode several masks, given as runs of foreground.

    Args:
        begins, ends: [R] first and one past the last position of each run, position = x * height + y;
            mask after mask, ascending within a mask, runs of one mask neither overlapping nor touching.
        run_counts: [N] how many of the runs belong to each mask; their sum is R.
        sizes: [N, 2] (height, width) of each mask in pixels.

    Returns:
        N masks, the same bytes as `pycocotools.mask.encode` gives for the bitmaps.
    """
    pixels = sizes[:, 0] * sizes[:, 1]
    masks = len(run_counts)
    first_run = np.concatenate([[0], np.cumsum(run_counts)])
    has_runs = run_counts > 0
    # A mask's last length is the background after its last run; it is left out if there is none.
    has_tail = np.ones(masks, bool)
    has_tail[has_runs] = ends[first_run[1:][has_runs] - 1] < pixels[has_runs]
    # One edge list per mask: 0, begin, end, begin, end, ... and `pixels` if there is a tail.
    edge_counts = 1 + 2 * run_counts + has_tail
    first_edge = np.concatenate([[0], np.cumsum(edge_counts)])
    edges = np.zeros(int(first_edge[-1]), np.int64)
    run_slot = np.arange(len(begins)) * 2 + 1 + np.repeat(first_edge[:-1] - 2 * first_run[:-1], run_counts)
    edges[run_slot] = begins
    edges[run_slot + 1] = ends
    edges[first_edge[1:][has_tail] - 1] = pixels[has_tail]
    # Differences of edges within a mask are its lengths; those between masks are dropped.
    is_length = np.ones(len(edges), bool)
    is_length[first_edge[:-1]] = False
    lengths = np.diff(edges, prepend=0)[is_length]
    codes = _encode_lengths(lengths, edge_counts - 1)
    return [{"size": size, "counts": counts} for size, counts in zip(sizes.tolist(), codes, strict=True)]


def _encode_lengths(lengths: NDArray[np.int64], lengths_per_mask: NDArray[np.int64]) -> list[bytes]:
    """Encode run lengths [K] of consecutive masks as COCO strings, all digits of all masks at once."""
    first = np.concatenate([[0], np.cumsum(lengths_per_mask)])
    place = np.arange(len(lengths)) - np.repeat(first[:-1], lengths_per_mask)
    values = lengths.copy()
    is_difference = place >= _PLAIN_LENGTHS
    values[is_difference] -= lengths[np.flatnonzero(is_difference) - 2]
    groups = np.ones(len(values), np.int64)
    for count in range(1, MAX_GROUPS):
        limit = 1 << (GROUP_BITS * count - 1)  # `count` groups hold [-limit, limit)
        groups += (values < -limit) | (values >= limit)
    first_char = np.concatenate([[0], np.cumsum(groups)])
    digit = np.arange(int(first_char[-1])) - np.repeat(first_char[:-1], groups)
    chars = (np.repeat(values, groups) >> (GROUP_BITS * digit)) & GROUP_MASK
    chars += np.where(digit < np.repeat(groups, groups) - 1, MORE_BIT, 0) + FIRST_CHAR
    text = chars.astype(np.uint8).tobytes()
    bounds = first_char[first]
    return [text[begin:end] for begin, end in itertools.pairwise(bounds)]


def encode_bitmap(mask: NDArray[Any]) -> "Rle":
    """Encode one full-size mask.

    Args:
        mask: [H, W], every value but zero is foreground; H and W at least 1.

    Returns:
        The same bytes as `pycocotools.mask.encode(np.asfortranarray(mask))`.

    Raises:
        ValueError: the mask is not two-dimensional or has no pixels.
    """
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"a mask is [H, W] with at least one pixel, got the shape {mask.shape}")
    column_major = np.asarray(mask, dtype=bool).ravel(order="F")
    padded = np.concatenate([[False], column_major, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).astype(np.int64)
    height, width = mask.shape
    return encode_runs(edges[0::2], edges[1::2], np.array([len(edges) // 2], np.int64), (height, width))[0]


def decode_lengths(rle: "Rle | Mapping[str, Any]") -> NDArray[np.int64]:
    """Decode a mask's run lengths [K] in pixels, background first; they sum to height * width.

    Raises:
        ValueError: the counts are not a COCO run-length code, or do not sum to the size.
    """
    counts = rle["counts"]
    raw = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8)
    chars = raw.astype(np.int64) - FIRST_CHAR
    is_last = (chars & MORE_BIT) == 0
    if not len(chars) or not is_last[-1] or chars.min() < 0 or chars.max() >= 2 * MORE_BIT:
        raise ValueError("the mask's counts are not a COCO run-length code")
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    groups = np.diff(starts, append=len(chars))
    if groups.max() > MAX_GROUPS:
        raise ValueError("the mask's counts hold a number longer than any image")
    digit = np.arange(len(chars)) - np.repeat(starts, groups)
    values = np.add.reduceat((chars & GROUP_MASK) << (GROUP_BITS * digit), starts)
    is_negative = (chars[is_last] & SIGN_BIT) != 0
    values -= np.where(is_negative, np.int64(1) << (GROUP_BITS * groups), 0)
    # Undo the differences: positions 1, 3, 5, ... and 2, 4, 6, ... are two running sums.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    height, width = rle["size"]
    if values.min() < 0 or values.sum() != height * width:
        raise ValueError(f"the mask's runs do not fill its size of {height} x {width}")
    return values


def decode_rle(rle: "Rle | Mapping[str, Any]") -> NDArray[np.bool_]:
    """Decode a mask to [H, W] bool.

    Raises:
        ValueError: the counts are not a COCO run-length code, or do not sum to the size.
    """
    lengths = decode_lengths(rle)
    height, width = rle["size"]
    is_foreground = np.arange(len(lengths)) % 2 == 1
    return np.repeat(is_foreground, lengths).reshape((height, width), order="F")


def rle_area(rle: "Rle | Mapping[str, Any]") -> int:
    """Count a mask's foreground pixels without decoding it to a bitmap.

    Raises:
        ValueError: the counts are not a COCO run-length code, or do not sum to the size.
    """
    return int(decode_lengths(rle)[1::2].sum())
