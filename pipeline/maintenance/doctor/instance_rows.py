"""Checks of the values in rows of `instances`: masks that decode, fit their image and have the stated area."""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.output.mask_functions import decode_masks

COLUMNS = ("image_id", "uri", "instance", "score", "bbox", "area", "mask")
"""The columns that `find_problem` reads."""

ImageSizes = Mapping[int, tuple[int, int]]
"""(height, width) in pixels by image_id."""


def find_problem(rows: pa.RecordBatch, sizes: ImageSizes) -> str:
    """Return what is wrong with the first row that cannot be right, a clause; empty when there is none.

    Args:
        rows: with `COLUMNS`.
        sizes: of the images in `images`; the masks of other images are not compared with a size.
    """
    numbers = rows.column("score").to_numpy(zero_copy_only=False)
    for is_wrong, describe in (
        (~((numbers >= 0) & (numbers <= 1)), lambda row: f"has the score {numbers[row]}, which is not from 0 to 1"),
        (~_has_finite_box(rows.column("bbox")), lambda _: "has a box that is not of finite numbers"),
    ):
        if is_wrong.any():
            return _clause(rows, int(np.argmax(is_wrong)), describe)
    return _find_wrong_mask(rows, sizes)


def _has_finite_box(boxes: pa.StructArray) -> NDArray[np.bool_]:
    sides = [np.asarray(side.to_numpy(zero_copy_only=False), np.float64) for side in boxes.flatten()]
    return np.asarray(np.isfinite(np.stack(sides, axis=1)).all(axis=1))


def _find_wrong_mask(rows: pa.RecordBatch, sizes: ImageSizes) -> str:
    places = np.flatnonzero(rows.column("mask").is_valid().to_numpy(zero_copy_only=False))
    if not len(places):
        return ""
    masks = decode_masks(rows.column("mask").take(pa.array(places)))
    ids = rows.column("image_id").to_numpy(zero_copy_only=False)[places]
    expected = np.array([sizes.get(number, (-1, -1)) for number in ids.tolist()], np.int64)
    stated = rows.column("area").take(pa.array(places)).fill_null(-1).to_numpy(zero_copy_only=False)
    areas = masks.areas()
    for is_wrong, describe in (
        (~masks.is_valid, lambda _: "has a mask that cannot be decoded"),
        (
            (expected >= 0).all(axis=1) & (masks.sizes != expected).any(axis=1),
            lambda row: f"has a mask of {_size(masks.sizes[row])} pixels, and its image has {_size(expected[row])}",
        ),
        (
            (stated >= 0) & (stated != areas),
            lambda row: f"has the area {stated[row]}, and its mask has {areas[row]} pixels",
        ),
    ):
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            return _clause(rows, int(places[row]), lambda _, describe=describe, row=row: describe(row))  # type: ignore[misc]
    return ""


def _size(height_width: NDArray[np.int64]) -> str:
    return f"{height_width[1]} x {height_width[0]}"


def _clause(rows: pa.RecordBatch, row: int, describe: Callable[[int], str]) -> str:
    instance, uri = rows.column("instance")[row].as_py(), rows.column("uri")[row].as_py()
    return f"instance {instance} of {uri} {describe(row)}"
