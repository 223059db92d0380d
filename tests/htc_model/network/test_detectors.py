"""DetectoRS' parts at their edges: small maps, and that an untrained one is a ResNet with an FPN."""

import numpy as np
import pytest
import torch

from htc_model.config import BackboneConfig
from htc_model.network.detectors import DetectorsResNet, RecursivePyramid, StandardisedConv2d, SwitchableConv2d, reflect


@pytest.mark.parametrize("size", [(9, 7), (3, 3), (2, 5), (1, 4), (1, 1)])
def test_reflection_as_numpys_also_where_the_map_is_smaller_than_the_margin(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    assert np.array_equal(reflect(x, 2).numpy(), padded)


def test_kernels_are_standardised_then_scaled_and_shifted() -> None:
    layer = StandardisedConv2d(8, 4, 3)
    layer.weight_gamma.fill_(0.5)
    layer.weight_beta.fill_(0.25)
    rows = layer.standardised().detach().flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.full((4,), 0.25))
    torch.testing.assert_close(rows.std(1), torch.full((4,), 0.5), rtol=1e-2, atol=0)
    assert "weight_gamma" in layer.state_dict()
    assert {name for name, _ in layer.named_parameters()} == {"weight"}


@pytest.mark.parametrize("stride", [1, 2])
@torch.inference_mode()
def test_an_untrained_switch_takes_the_small_rate(stride: int) -> None:
    layer, x = SwitchableConv2d(6, stride), torch.randn(1, 6, 11, 8)
    plain = torch.nn.functional.conv2d(x, layer.standardised(), stride=stride, padding=1)
    torch.testing.assert_close(layer(x), plain, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_switch_mixes_two_rates() -> None:
    layer, x = SwitchableConv2d(6, 1), torch.randn(1, 6, 11, 8)
    assert layer.switch.bias is not None
    torch.nn.init.constant_(layer.switch.bias, 0.25)
    kernels = layer.standardised()
    small, large = (torch.nn.functional.conv2d(x, kernels, padding=rate, dilation=rate) for rate in (1, 3))
    torch.testing.assert_close(layer(x), 0.25 * small + 0.75 * large, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (32, 32), (32, 256)])
@torch.inference_mode()
def test_the_second_pass_feeds_back_and_small_images_have_all_levels(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    config = BackboneConfig(kind="detectors_resnet")
    backbone = DetectorsResNet(config).eval()
    neck = RecursivePyramid(backbone.channels, 256, config).eval()
    features = backbone(torch.randn(1, 3, *size))
    pyramid = neck(features)
    assert [tuple(level.shape[-2:]) for level in pyramid[:4]] == [(size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]
    for block in (neck.rfp_modules[0].layer2[0], neck.rfp_modules[0].layer4[0]):
        torch.nn.init.normal_(block.rfp_conv.weight)
    changed = neck(features)
    assert not torch.allclose(changed[3], pyramid[3])
