"""Masks cut to the pixels that hold data."""

import numpy as np
import torch

from htc_model.masks.no_data import cut_to, valid_runs
from htc_model.masks.rle import decode_rle, encode_bitmap
from htc_model.structures import Detections

SIZE = (12, 10)


def found_of(masks: list[np.ndarray], boxes: list[list[float]], *, has_masks: bool = True) -> Detections:
    scores = torch.linspace(0.9, 0.5, len(masks))
    encoded = [encode_bitmap(mask) for mask in masks] if has_masks else None
    return Detections(torch.tensor(boxes).reshape(-1, 4), scores, torch.arange(len(masks)), encoded)


def box_mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_masks_are_cut_and_those_with_nothing_left_dropped() -> None:
    valid = box_mask(0, 0, 6, 12)
    masks = [box_mask(1, 1, 5, 5), box_mask(4, 2, 9, 8), box_mask(7, 0, 9, 9), np.zeros(SIZE, bool)]
    boxes = [[0.5, 0.5, 5.5, 5.5], [4.0, 2.0, 9.0, 8.0], [7.0, 0.0, 9.0, 9.0], [1.0, 1.0, 2.0, 2.0]]
    left = cut_to(found_of(masks, boxes), valid_runs(valid))
    assert left.labels.tolist() == [0, 1, 3]
    # One that nothing was cut off keeps its box.
    assert left.boxes_xyxy.tolist() == [boxes[0], [4, 2, 6, 8], boxes[3]]
    assert np.array_equal(decode_rle((left.masks or [])[1]), masks[1] & valid)
    assert (left.masks or [])[0]["counts"] == encode_bitmap(masks[0])["counts"]


def test_boxes_without_any_data_are_dropped() -> None:
    boxes = [[0.0, 0.0, 3.0, 3.0], [7.0, 1.0, 9.5, 4.0], [5.5, 1.0, 9.0, 4.0]]
    found = found_of([box_mask(0, 0, 1, 1)] * 3, boxes, has_masks=False)
    left = cut_to(found, valid_runs(box_mask(0, 0, 6, 12)))
    assert left.labels.tolist() == [0, 2]
    assert left.masks is None


def test_no_instances() -> None:
    assert len(cut_to(found_of([], []), valid_runs(np.ones(SIZE, bool)))) == 0
