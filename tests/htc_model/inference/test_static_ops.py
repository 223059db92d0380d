"""Operations at fixed shapes give exactly what the dynamic path's operations give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import nms

from htc_model.inference import static_ops
from htc_model.network.box_ops import boxes_to_rois, clip_boxes, grouped_nms
from htc_model.network.postprocess import to_original
from htc_model.network.roi_align import pool_map, pool_pyramid
from htc_model.network.semantic_head import SEMANTIC_STRIDE

INFINITY = float("inf")


def random_boxes(lists: int, count: int, seed: int, side: float = 200.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(lists, count, 2, generator=generator) * side
    return torch.cat([corner, corner + torch.rand(lists, count, 2, generator=generator) * side / 2 + 1], dim=2)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31), st.sampled_from([0, 1, 7, 1000]))
def test_top_k_is_the_beginning_of_a_stable_sort(count: int, seed: int, kinds: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, count, generator=generator) - 0.25
    if kinds:
        scores = (scores * kinds).floor() / kinds + 0.0
    scores[0, ::3] = -INFINITY
    k = int(torch.randint(1, count + 1, (), generator=generator))
    values, indices = static_ops.top_k(scores, k)
    expected = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(indices, expected.indices[:, :k])


def test_top_k_of_nan_is_some_order() -> None:
    _, indices = static_ops.top_k(torch.tensor([0.5, float("nan"), 0.25]), 3)
    assert sorted(indices.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_compact_finds_the_first_real_slots_in_order(share: float) -> None:
    is_real = torch.rand(4, 50, generator=torch.Generator().manual_seed(0)) < share
    places, found = static_ops.compact(is_real, 20)
    for real, place, has in zip(is_real, places, found, strict=True):
        first = real.nonzero()[:20, 0]
        assert torch.equal(place[has], first)
        assert has.tolist() == [True] * len(first) + [False] * (20 - len(first))
        assert not real[place[~has]].any() or share == 1.0


@pytest.mark.parametrize("count", [1, 40, 700])
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.6, 0.7])
def test_suppression_keeps_what_torchvision_keeps(count: int, iou: float) -> None:
    boxes = random_boxes(3, count, seed=count)
    is_real = torch.rand(3, count, generator=torch.Generator().manual_seed(1)) < 0.8
    kept, is_decided = static_ops.suppress(boxes, is_real, static_ops.round_threshold(iou), 32)
    assert is_decided.all()
    falling = torch.arange(count, 0, -1).float()
    for one, real, found in zip(boxes, is_real, kept, strict=True):
        members = real.nonzero()[:, 0]
        assert torch.equal(found.nonzero()[:, 0], members[nms(one[members], falling[members], iou)])


def test_groups_that_lie_apart_are_suppressed_as_in_one_call() -> None:
    boxes, groups = random_boxes(2, 300, seed=3), torch.randint(7, (2, 300), generator=torch.Generator().manual_seed(3))
    is_real = torch.ones(2, 300, dtype=torch.bool)
    is_real[1, 100:] = False
    apart = static_ops.move_apart(boxes, groups, is_real)
    kept, _ = static_ops.suppress(apart, is_real, static_ops.round_threshold(0.5), 32)
    falling = torch.arange(300, 0, -1).float()
    for image, real in enumerate((300, 100)):
        expected = grouped_nms(boxes[image, :real], falling[:real], groups[image, :real], 0.5, 300)
        assert torch.equal(kept[image].nonzero()[:, 0], expected)


def test_a_chain_longer_than_the_steps_stays_undecided() -> None:
    """Each box overlaps the next only: every second one stays, and each decides about the next."""
    x = torch.arange(40.0) * 4
    chain = torch.stack([x, torch.zeros(40), x + 10, torch.full((40,), 10.0)], dim=1)[None]
    is_real = torch.ones(1, 40, dtype=torch.bool)
    threshold = static_ops.round_threshold(0.4)
    _, is_decided = static_ops.suppress(chain, is_real, threshold, 20)
    assert is_decided.tolist() == [False]
    kept, is_decided = static_ops.suppress(chain, is_real, threshold, 40)
    assert is_decided.tolist() == [True]
    assert kept[0].tolist() == [True, False] * 20


@pytest.mark.parametrize("iou", [0.5, 0.6, 0.7, 0.1, 1 / 3])
def test_an_overlap_at_the_threshold_is_decided_as_in_double_precision(iou: float) -> None:
    threshold = static_ops.round_threshold(iou)
    values = torch.tensor([iou]).view(torch.int32) + torch.arange(-2, 3)
    around = values.int().view(torch.float32)
    assert (around > threshold).tolist() == [float(value) > iou for value in around]


@pytest.mark.parametrize(("side", "averaged"), [(7, 2), (14, 1)])
@torch.no_grad()
def test_pooling_of_all_levels_is_the_dynamic_paths(side: int, averaged: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pyramid = [torch.randn(2, 8, 96 // 2**level, 128 // 2**level, generator=generator) for level in range(5)]
    semantic = torch.randn(2, 8, 48, 64, generator=generator)
    rois = boxes_to_rois([*random_boxes(2, 60, seed=1, side=350.0)])
    rois[7, 1:] = 0
    sizes = torch.tensor([384, 512])
    rois[:, 1:] = clip_boxes(rois[:, 1:], sizes)
    pooled = static_ops.pool_levels(pyramid, semantic, rois, side, semantic_averaged=averaged)
    expected = pool_pyramid(pyramid, rois, side)
    expected = expected + pool_map(semantic, rois, SEMANTIC_STRIDE, side, averaged=averaged)
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)
    assert not pooled[7].any()
    without = static_ops.pool_levels(pyramid, None, rois, side, semantic_averaged=averaged)
    torch.testing.assert_close(without, pool_pyramid(pyramid, rois, side), atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 1333), st.integers(1, 1333)), st.tuples(st.integers(1, 9999), st.integers(1, 9999)))
def test_boxes_in_original_pixels_have_the_same_bits(image_size: tuple[int, int], original: tuple[int, int]) -> None:
    boxes = random_boxes(1, 20, seed=0, side=float(max(image_size)))
    found = static_ops.to_original(boxes, torch.tensor([image_size]), torch.tensor([original]))
    found = clip_boxes(found, torch.tensor(original))
    assert torch.equal(found[0], to_original(boxes[0], image_size, original))
