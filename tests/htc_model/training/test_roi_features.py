"""RoI features and their gradients on a CPU against torchvision's RoIAlign."""

import pytest
import torch

from htc_model.network.cascade_roi_head import CascadeHead
from htc_model.network.roi_align import pool_pyramid
from htc_model.training.roi_features import box_features, mask_features, sum_pyramid_rows
from tests.support.builders.training_data import small_config


def random_rois(count: int, *, width: float = 640.0, height: float = 512.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width + 60, height + 60]) - 30
    low, high = corners.amin(1), corners.amax(1)
    index = torch.randint(2, (count, 1), generator=generator).float()
    odd = torch.tensor(
        [
            [0, 0, 0, width, height],
            [1, 5, 5, 5, 5],
            [0, -50, -40, -20, -10],
            [1, 30.5, 20.25, 31, 21],
            [0, width - 1, height - 1, width + 99, height + 99],
        ]
    )
    return torch.cat([torch.cat([index, low, high], dim=1), odd])


def random_pyramid(channels: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, channels, 128 // 2**level, 160 // 2**level, generator=generator).requires_grad_()
        for level in range(5)
    ]


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_features_and_gradients_equal_the_networks_own(kind):
    head = CascadeHead(small_config(fpn_channels=3))
    pyramid, rois = random_pyramid(3), random_rois(40)
    semantic_feat = torch.randn(2, 3, 64, 80, generator=torch.Generator().manual_seed(2)).requires_grad_()
    ours = {"box": box_features, "mask": mask_features}[kind]
    own = {"box": head.box_features, "mask": head.mask_features}[kind]
    found, expected = ours(head, pyramid, semantic_feat, rois), own(pyramid, semantic_feat, rois)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    inputs = [*pyramid[:4], semantic_feat]
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=2e-4)


def test_each_roi_is_pooled_from_its_own_level_in_order():
    pyramid, rois = random_pyramid(3), random_rois(40)
    found, expected = sum_pyramid_rows(pyramid, rois, 7), pool_pyramid(pyramid, rois, 7)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)


def test_no_rois_give_no_features():
    assert sum_pyramid_rows(random_pyramid(3), torch.zeros(0, 5), 7).shape == (0, 3, 7, 7)


def test_another_implementation_agrees(unit):
    features = [unit(f"roi.feat{level}").requires_grad_() for level in range(4)]
    pooled = sum_pyramid_rows(features, unit("roi.rois"), 3)
    torch.testing.assert_close(pooled, unit("roi.out"), rtol=1e-5, atol=2e-6)
    (pooled * unit("roi.gw")).sum().backward()
    for level, feature in enumerate(features):
        found = torch.zeros_like(feature) if feature.grad is None else feature.grad
        torch.testing.assert_close(found, unit(f"roi.grad{level}"), rtol=1e-5, atol=2e-6)
