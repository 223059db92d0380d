"""Deformable convolutions: which version has what, and overflowing activations do not end the process."""

import pytest
import torch
from torch.nn import functional as F

from htc_model.config import BackboneConfig
from htc_model.network.resnet import DeformConv2d, ModulatedDeformConv2d, ResNet, sample_deformable


@pytest.mark.parametrize(("kind", "factor"), [(DeformConv2d, 1.0), (ModulatedDeformConv2d, 0.5)])
@torch.inference_mode()
def test_an_untrained_one_is_a_convolution_with_weights_of_a_half_in_version_2(kind: type, factor: float) -> None:
    layer, x = kind(6, 2, 2), torch.randn(1, 6, 9, 8)
    plain = F.conv2d(x, layer.weight, stride=2, padding=1, groups=2)
    torch.testing.assert_close(layer(x), factor * plain)


@torch.inference_mode()
def test_a_tap_weight_of_zero_drops_the_tap() -> None:
    layer, x = ModulatedDeformConv2d(4, 1, 1), torch.randn(1, 4, 6, 6)
    assert layer.conv_offset.bias is not None
    layer.conv_offset.bias[18:] = -100.0
    layer.conv_offset.bias[18 + 4] = 100.0  # the tap in the middle
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight[:, :, 1:2, 1:2]))


@torch.inference_mode()
def test_an_offset_that_is_not_a_number_gives_none_and_harms_no_other_pixel() -> None:
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 3, 3)
    offsets = torch.zeros(1, 18, 6, 6)
    offsets[0, 5, 2, 3] = torch.nan
    offsets[0, 5, 4, 4] = torch.inf
    found = sample_deformable(x, offsets, weight, stride=1)
    assert found.isnan().any(dim=1)[0].nonzero().tolist() == [[2, 3]]
    wanted = F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(found[0, :, :2], wanted[0, :, :2])


@pytest.mark.parametrize(("first", "stages"), [(3, {"layer2", "layer3", "layer4"}), (5, {"layer4"})])
def test_the_first_deformable_stage(first: int, stages: set[str]) -> None:
    with torch.device("meta"):
        backbone = ResNet(BackboneConfig(has_deformable_stages=True, is_modulated=True, first_deformable=first))
    assert {key.partition(".")[0] for key in backbone.state_dict() if "conv_offset" in key} == stages
