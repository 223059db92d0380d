"""RoI pooling on a CPU gives torchvision's numbers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align

from htc_model.network.roi_align import pool_map, pool_pyramid, roi_levels

COORDINATE = st.floats(-30, 250, width=32)


def reference(feature: Tensor, rois: Tensor, stride: int, side: int) -> Tensor:
    return roi_align(feature, rois, side, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), COORDINATE, COORDINATE, COORDINATE, COORDINATE), max_size=6),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([(7, 1), (7, 2), (14, 1)]),
)
def test_any_box_on_any_map(
    boxes: list[tuple[int, float, float, float, float]], size: tuple[int, int], bins: tuple[int, int]
) -> None:
    """Outside the map, without area, or larger than the map; maps down to a single cell."""
    side, averaged = bins
    feature = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    # Not upside down: the cascade's boxes are not, and torchvision's operator crashes on those.
    rois[:, 1:] = torch.cat([rois[:, 1:3].minimum(rois[:, 3:]), rois[:, 1:3].maximum(rois[:, 3:])], dim=1)
    wanted = F.avg_pool2d(reference(feature, rois, 8, side * averaged), averaged)
    with torch.no_grad():
        found = pool_map(feature, rois, 8, side, averaged=averaged)
    assert found.shape == wanted.shape
    # A sample within a rounding of the border that separates "clamped" from "zero" may fall on either side.
    edges = torch.tensor([-1.0, *size])
    positions = (rois[:, 1:] / 8 - 0.5)[:, :, None]
    is_on_edge = ((positions - edges).abs() < 1e-3).flatten(1).any(1)
    torch.testing.assert_close(found[~is_on_edge], wanted[~is_on_edge], atol=2e-3, rtol=1e-3)


def test_typical_boxes_closely() -> None:
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(1, 16, 50, 76, generator=generator)
    corner = torch.rand(200, 2, generator=generator) * 300
    rois = torch.cat([torch.zeros(200, 1), corner, corner + torch.rand(200, 2, generator=generator) * 250 + 1], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(pool_map(feature, rois, 8, 7), reference(feature, rois, 8, 7), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("averaged", [1, 2])
def test_with_gradients_as_without(averaged: int) -> None:
    feature = torch.randn(1, 4, 20, 20, generator=torch.Generator().manual_seed(2), requires_grad=True)
    rois = torch.tensor([[0.0, 10, 10, 90, 70], [0.0, 0, 0, 160, 160]])
    trained = pool_map(feature, rois, 8, 7, averaged=averaged)
    with torch.no_grad():
        torch.testing.assert_close(pool_map(feature, rois, 8, 7, averaged=averaged), trained, atol=1e-4, rtol=1e-4)
    trained.sum().backward()
    assert feature.grad is not None
    assert feature.grad.abs().sum() > 0


def test_levels_by_size_and_no_area_is_the_finest() -> None:
    sides = torch.tensor([0.0, 8, 111, 113, 223, 225, 447, 449, 2000])
    rois = torch.stack([torch.zeros(9), torch.zeros(9), torch.zeros(9), sides, sides], dim=1)
    assert roi_levels(rois).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_each_box_comes_from_its_own_level() -> None:
    pyramid = [torch.full((1, 2, 128 // 2**level, 128 // 2**level), float(level)) for level in range(5)]
    sides = torch.tensor([500.0, 50, 300, 150])
    rois = torch.stack([torch.zeros(4), torch.zeros(4), torch.zeros(4), sides, sides], dim=1)
    with torch.no_grad():
        pooled = pool_pyramid(pyramid, rois, 7)
    assert pooled.mean((1, 2, 3)).round().tolist() == [3, 0, 2, 1]
