"""Anchors and proposals."""

import torch

from htc_model.network.rpn import build_anchors
from tests.support.builders.networks import image_batch, lite_config, untrained_model

CPU = torch.device("cpu")


def test_anchors_lie_on_the_cells_corners_row_by_row_ratio_last() -> None:
    anchors = build_anchors(2, 3, 16, CPU).reshape(2, 3, 3, 4)
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    assert centres[1, 2].tolist() == [[32, 16]] * 3
    sides = anchors[..., 2:] - anchors[..., :2]
    torch.testing.assert_close(sides[0, 0, 1], torch.tensor([128.0, 128.0]))
    torch.testing.assert_close(sides[..., 1] / sides[..., 0], torch.tensor([0.5, 1.0, 2.0]).expand(2, 3, 3))
    torch.testing.assert_close(sides.prod(-1), torch.full((2, 3, 3), 128.0**2))


def test_anchors_made_at_inference_serve_training() -> None:
    with torch.inference_mode():
        anchors = build_anchors(3, 5, 8, CPU)
    deltas = torch.ones_like(anchors, requires_grad=True)
    (anchors * deltas).sum().backward()
    assert deltas.grad is not None


def test_proposals_stay_inside_the_image_not_the_padding() -> None:
    config = lite_config()
    model, batch = untrained_model(config), image_batch(config)
    (height, width), padded = batch.image_sizes[0], tuple(batch.pixels.shape[-2:])
    assert (height, width) != padded
    with torch.inference_mode():
        pyramid = model.features(batch.pixels)
        ((boxes, scores),) = model.rpn_head.select_proposals(*model.rpn_head(pyramid), batch.image_sizes)
    assert 0 < len(boxes) <= config.rpn_proposals
    assert (boxes >= 0).all()
    assert boxes[:, 2].max() <= width
    assert boxes[:, 3].max() <= height
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (scores[:-1] >= scores[1:]).all()
