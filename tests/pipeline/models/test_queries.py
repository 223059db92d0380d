"""From the logits of queries to instances: padding, scores of masks, boxes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from htc_model.masks.frames import encode_maps
from htc_model.masks.rle import decode_rle
from htc_model.structures import ImageBatch
from pipeline.models.queries import (
    QueryRule,
    choose_classes_by_softmax,
    choose_pairs_by_sigmoid,
    choose_pairs_by_softmax,
    cut_padding,
    score_masks,
    to_pixels,
)


def disc(height: int, width: int, centre: tuple[float, float], radius: float, cell: float) -> torch.Tensor:
    """Return a map [1, h, w] of signed distances to a disc, in an input whose pixels are `cell` to a map's pixel."""
    y, x = ((torch.arange(side) + 0.5) * cell for side in (height, width))
    return (radius - ((y[:, None] - centre[0]) ** 2 + (x[None] - centre[1]) ** 2).sqrt())[None]


@pytest.mark.parametrize("image", [(427, 640), (640, 427), (640, 640), (600, 640), (401, 333)])
def test_masks_lie_where_they_are_though_the_image_ends_within_a_maps_pixel(image: tuple[int, int]) -> None:
    centre = image[0] * 0.7, image[1] * 0.8
    maps = cut_padding(disc(160, 160, centre, 60, 4), image, (640, 640))
    assert maps.shape[1:] == (-(-image[0] // 4), -(-image[1] // 4))
    size = image[0] * 2, image[1] * 2
    drawn = decode_rle(encode_maps(maps, size, threshold=0.0)[0][0])
    y, x = ((np.arange(side) + 0.5) / 2 for side in size)
    wanted = (y[:, None] - centre[0]) ** 2 + (x[None] - centre[1]) ** 2 < 60**2
    assert (drawn & wanted).sum() / (drawn | wanted).sum() > 0.997


def test_whole_pixels_of_padding_are_cut_off_and_no_more() -> None:
    maps = torch.randn(2, 8, 12)
    assert torch.equal(cut_padding(maps, (16, 48), (32, 48)), maps[:, :4])
    assert torch.equal(cut_padding(maps, (32, 48), (32, 48)), maps)
    assert cut_padding(maps, (1, 1), (32, 48)).shape == (2, 1, 1)


def test_a_mask_is_scored_by_its_foreground() -> None:
    maps = torch.full((3, 4, 4), -2.0)
    maps[0, :2] = 1.0
    maps[1] = 3.0
    sure, surer = torch.sigmoid(torch.tensor([1.0, 3.0])).tolist()
    assert score_masks(maps, (4, 4)).tolist() == pytest.approx([sure, surer, 0], abs=1e-5)
    # Stretched, the borders of the first one are less sure.
    stretched = score_masks(maps, (64, 64)).tolist()
    assert stretched[0] < sure
    assert stretched[1:] == pytest.approx([surer, 0], abs=1e-5)


def test_boxes_are_clipped_to_the_image() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.0, 1.0, 0.5, 0.5]])
    assert to_pixels(boxes, (100, 200)).tolist() == [[50, 37.5, 150, 62.5], [0, 75, 50, 100]]


def test_which_queries_and_classes_are_chosen() -> None:
    # Two classes and "no object" last.
    logits = torch.tensor([[[4.0, 3.0, 0.0], [0.0, 2.0, 5.0]]])
    chances = logits.softmax(-1)[0]
    scores, queries, labels = choose_pairs_by_softmax(logits)
    assert (queries.tolist(), labels.tolist()) == ([[0, 0]], [[0, 1]])
    torch.testing.assert_close(scores[0], chances[0, :2])
    scores, queries, labels = choose_classes_by_softmax(logits)
    assert (queries.tolist(), labels.tolist()) == ([[0, 1]], [[0, 1]])
    torch.testing.assert_close(scores[0], torch.stack([chances[0, 0], chances[1, 1]]))
    scores, queries, labels = choose_pairs_by_sigmoid(logits)
    assert (queries.tolist(), labels.tolist()) == ([[1, 0]], [[2, 0]])
    torch.testing.assert_close(scores[0], logits[0, [1, 0], [2, 0]].sigmoid())


def test_a_query_without_foreground_is_left_out_and_nan_is_not() -> None:
    rule = QueryRule("logits", "masks", "", choose_classes_by_softmax, None)
    masks = torch.full((1, 3, 4, 4), -1.0)
    masks[0, 1, 2, 2] = 1.0
    masks[0, 2, 0, 0] = float("nan")
    outputs = SimpleNamespace(logits=torch.zeros(1, 3, 3), masks=masks)
    batch = ImageBatch(torch.zeros(1, 3, 16, 16), [(16, 16)], [(160, 160)])
    found = rule.read(outputs, batch)[0]
    assert len(found.scores) == 2
    assert found.boxes_xyxy is None
    assert found.masks.isnan().any()
