"""RoI features by matrix products against torchvision's RoIAlign."""

import pytest
import torch
import torch.nn.functional as F

from htc_model.roi_pooling import pool_map, pool_pyramid
from htc_model.training.pooling import separable_pool_map, separable_pool_pyramid


def random_rois(count: int, *, images: int = 2, width: float = 176.0, height: float = 128.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width + 60, height + 60]) - 30
    low, high = corners.amin(1), corners.amax(1)
    index = torch.randint(images, (count, 1), generator=generator).float()
    odd = torch.tensor(
        [
            [0, 0, 0, width, height],
            [1, 5, 5, 5, 5],
            [0, -50, -40, -20, -10],
            [1, 30.5, 20.25, 31, 21],
            [0, width - 1, height - 1, width + 99, height + 99],
            [1, 40, 40, 30, 30],
        ]
    )
    return torch.cat([torch.cat([index, low, high], dim=1), odd])


@pytest.mark.parametrize("side", [7, 14])
def test_features_and_gradients_equal_roi_align(side):
    feature = torch.randn(2, 5, 32, 44, generator=torch.Generator().manual_seed(1), requires_grad=True)
    rois = random_rois(60)
    found, expected = separable_pool_map(feature, rois, 4, side), pool_map(feature, rois, 4, side)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((found * weights).sum(), feature)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), feature)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_averaged_bins_equal_pooling_twice():
    feature = torch.randn(2, 5, 32, 44, generator=torch.Generator().manual_seed(1))
    rois = random_rois(60)
    twice = F.adaptive_avg_pool2d(pool_map(feature, rois, 4, 14), 7)
    torch.testing.assert_close(separable_pool_map(feature, rois, 4, 7, averaged=2), twice, rtol=1e-4, atol=2e-5)


def test_each_roi_is_pooled_from_its_own_level_in_order():
    generator = torch.Generator().manual_seed(1)
    pyramid = [torch.randn(2, 3, 128 // 2**level, 160 // 2**level, generator=generator) for level in range(5)]
    rois = random_rois(40, width=640, height=512)
    found, expected = separable_pool_pyramid(pyramid, rois, 7), pool_pyramid(pyramid, rois, 7)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)


def test_no_rois_give_no_features():
    pyramid = [torch.randn(1, 3, 64 // 2**level, 64 // 2**level) for level in range(5)]
    assert separable_pool_pyramid(pyramid, torch.zeros(0, 5), 7).shape == (0, 3, 7, 7)


def test_another_implementation_agrees(unit):
    features = [unit(f"roi.feat{level}").requires_grad_() for level in range(4)]
    pooled = separable_pool_pyramid(features, unit("roi.rois"), 3)
    torch.testing.assert_close(pooled, unit("roi.out"), rtol=1e-5, atol=2e-6)
    (pooled * unit("roi.gw")).sum().backward()
    for level, feature in enumerate(features):
        found = torch.zeros_like(feature) if feature.grad is None else feature.grad
        torch.testing.assert_close(found, unit(f"roi.grad{level}"), rtol=1e-5, atol=2e-6)
