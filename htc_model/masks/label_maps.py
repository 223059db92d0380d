"""Masks of one image as a map of numbers, drawn in bands of rows, so that a large image takes the memory of one."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from htc_model.masks.many_runs import ForegroundRuns

# 16 MB of numbers, and while they are drawn five times as much.
BAND_PIXELS = 1 << 22


def label_bands(
    masks: ForegroundRuns, size: tuple[int, int], *, band_pixels: int = BAND_PIXELS
) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Draw the masks of an image, from its top to its bottom.

    Args:
        masks: N masks of the image's size; where some overlap, the first of them is seen.
        size: (height, width) in pixels.
        band_pixels: how many pixels are drawn at once; at least a row.

    Yields:
        The row at which a band begins, and its labels [rows, width] int32: 1 + the mask's place; 0 for none.
    """
    height, width = size
    columns = masks.columns()
    # From the last mask to the first: what is drawn later covers what was drawn before.
    label = np.repeat(np.arange(len(columns.first) - 1, dtype=np.int32) + 1, np.diff(columns.first))[::-1]
    x, tops, bottoms = columns.x[::-1], columns.tops[::-1], columns.bottoms[::-1]
    rows = max(1, min(height, band_pixels // max(width, 1)))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        is_in = (tops < bottom) & (bottoms > top)
        begins = np.maximum(tops[is_in], top) - top
        lengths = np.minimum(bottoms[is_in], bottom) - top - begins
        # Positions count by columns, as in the masks.
        begins = begins + x[is_in] * (bottom - top)
        ends = np.cumsum(lengths)
        position = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - lengths), lengths)
        drawn = np.zeros(width * (bottom - top), np.int32)
        drawn[position] = np.repeat(label[is_in], lengths)
        yield top, drawn.reshape(width, bottom - top).T
