"""Masks cut to the pixels of an image that hold data."""

import numpy as np
import torch
from numpy.typing import NDArray

from htc_model.masks.many_runs import ForegroundRuns, decode_counts, intersect, join_texts
from htc_model.masks.rle import encode_bitmap, encode_runs_of_sizes
from htc_model.structures import Detections, Rle


def valid_runs(valid: NDArray[np.bool_]) -> ForegroundRuns:
    """Return which pixels hold data, [H, W], as the runs of one mask."""
    return _runs([encode_bitmap(valid)["counts"]], (valid.shape[0], valid.shape[1]))


def cut_to(found: Detections, valid: ForegroundRuns) -> Detections:
    """Cut detections to the pixels that hold data.

    Args:
        found: of the image that `valid` is one mask of.

    Returns:
        The detections without masks' pixels that hold no data, their boxes clipped to what is left where something was
        cut off; those of which nothing is left are dropped. Without masks, boxes with no such pixel are dropped.

    Raises:
        ValueError: a mask is not of the size of `valid`.
    """
    size = int(valid.sizes[0, 0]), int(valid.sizes[0, 1])
    if not len(found):
        return found
    if found.masks is None:
        held = _crop_areas(valid, found.boxes_xyxy.numpy().astype(np.float64), size) > 0
        return _kept(found, held, found.boxes_xyxy, None)
    if any(tuple(mask["size"]) != size for mask in found.masks):
        raise ValueError(f"a mask is not of the image's size, {size[0]} x {size[1]}")
    masks = _runs([mask["counts"] for mask in found.masks], size)
    left = intersect(masks, valid.take(np.zeros(len(found), np.int64)))
    areas = left.areas()
    is_cut = areas < masks.areas()
    xywh = left.boxes_xywh()
    bounds = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = found.boxes_xyxy.numpy().astype(np.float64)
    clipped = np.concatenate([np.maximum(boxes[:, :2], bounds[:, :2]), np.minimum(boxes[:, 2:], bounds[:, 2:])], axis=1)
    boxes = np.where(is_cut[:, None], clipped, boxes)
    rles = encode_runs_of_sizes(left.begins, left.ends, np.diff(left.first), left.sizes)
    held = (areas > 0) | ~is_cut
    return _kept(found, held, torch.from_numpy(boxes).float(), rles)


def _kept(found: Detections, held: NDArray[np.bool_], boxes: torch.Tensor, masks: "list[Rle] | None") -> Detections:
    at = torch.from_numpy(np.flatnonzero(held))
    kept = None if masks is None else [masks[place] for place in at.tolist()]
    return Detections(boxes[at], found.scores[at], found.labels[at], kept)


def _runs(texts: "list[bytes]", size: tuple[int, int]) -> ForegroundRuns:
    return decode_counts(*join_texts(texts), np.tile(np.array(size, np.int64), (len(texts), 1))).runs()


def _crop_areas(valid: ForegroundRuns, boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Count the pixels that hold data in each box, grown to whole pixels."""
    x0, y0 = np.clip(np.floor(boxes[:, 0]), 0, size[1] - 1), np.clip(np.floor(boxes[:, 1]), 0, size[0] - 1)
    x1, y1 = np.clip(np.ceil(boxes[:, 2]), x0 + 1, size[1]), np.clip(np.ceil(boxes[:, 3]), y0 + 1, size[0])
    xywh = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)
    return valid.take(np.zeros(len(boxes), np.int64)).crop(xywh).areas()
