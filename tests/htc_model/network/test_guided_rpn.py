"""The guided-anchoring proposal network: its anchors, and images and levels where there are none."""

from dataclasses import replace

import pytest
import torch

from htc_model.inference.fast_model import FastModel
from htc_model.network.guided_rpn import BOX_STDS, SHAPE_STDS, GuidedRPNHead, build_squares, decode_guided
from tests.support.builders.networks import assert_wellformed, image_batch, lite_config, untrained_model

CPU = torch.device("cpu")
STDS = torch.tensor(SHAPE_STDS), torch.tensor(BOX_STDS)


def test_squares_have_eight_strides_and_stand_on_the_cells() -> None:
    squares = build_squares(2, 3, 16, CPU)
    assert squares.shape == (6, 4)
    assert squares[0].tolist() == [-64, -64, 64, 64]
    assert squares[5].tolist() == [32 - 64, 16 - 64, 32 + 64, 16 + 64]


def test_the_shape_is_applied_before_the_box() -> None:
    square = torch.tensor([-64.0, -64, 64, 64])
    assert decode_guided(square, torch.zeros(6), *STDS).tolist() == square.tolist()
    # Twice as wide, then moved to the right by half of that width.
    wide = torch.tensor([0.5 / 0.07, 0, 0, 0, torch.tensor(2.0).log() / 0.14, 0])
    torch.testing.assert_close(decode_guided(square, wide, *STDS), torch.tensor([0.0, -64, 256, 64]))
    assert torch.isfinite(decode_guided(square, torch.full((6,), 1e9), *STDS)).all()


def head_and_maps() -> tuple[GuidedRPNHead, list[torch.Tensor]]:
    torch.manual_seed(0)
    head = GuidedRPNHead(lite_config(rpn="guided", rpn_proposals=50)).eval()
    maps = [torch.randn(2, 64, 64 // stride, 96 // stride) for stride in (1, 2, 4, 8, 16)]
    return head, maps


@torch.inference_mode()
def test_only_cells_above_the_threshold_have_an_anchor_in_each_image_its_own() -> None:
    head, maps = head_and_maps()
    logits, deltas = head(maps)
    for level in logits:
        level[:, 1] = -10.0
    logits[2][1, 1, 3, 4] = 3.0
    (nothing, _), (boxes, scores) = head.select_proposals(logits, deltas, [(256, 384), (256, 384)])
    assert len(nothing) == 0
    assert boxes.shape == (1, 4)
    torch.testing.assert_close(scores, logits[2][1, 0, 3, 4].sigmoid()[None])


@torch.inference_mode()
def test_proposals_are_the_best_of_all_levels() -> None:
    head, maps = head_and_maps()
    for boxes, scores in head.select_proposals(*head(maps), [(256, 384), (200, 300)]):
        assert boxes.shape == (50, 4)
        assert (scores[:-1] >= scores[1:]).all()


@pytest.mark.parametrize("is_static", [False, True])
@torch.inference_mode()
def test_an_image_without_any_anchor_has_no_detections(is_static: bool) -> None:
    config = replace(lite_config(rpn="guided"), max_detections=20)
    model = untrained_model(config)
    bias = model.rpn_head.conv_loc.bias.clone()
    model.rpn_head.conv_loc.bias.fill_(-50.0)
    try:
        (raw,) = FastModel(model, "cpu", is_static=is_static).infer(image_batch(config))
    finally:
        model.rpn_head.conv_loc.bias.copy_(bias)
    assert len(raw.scores) == 0
    assert_wellformed(raw, config)
