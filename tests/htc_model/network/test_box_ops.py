"""Box operations: decoding, clipping, NMS."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from htc_model.network.box_ops import (
    MAX_LOG_RATIO,
    boxes_to_rois,
    clip_boxes,
    decode_deltas,
    grouped_nms,
    has_area,
    soft_nms,
)

STDS = (0.1, 0.1, 0.2, 0.2)


def random_boxes(count: int, seed: int, side: float = 200.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * side / 2 + 1], dim=1)


def encode(boxes: Tensor, targets: Tensor, stds: tuple[float, ...]) -> Tensor:
    """The inverse of decode_deltas, written from R-CNN's formulas."""
    size, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = ((targets[:, :2] + targets[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])) / 2 / size
    return torch.cat([shift, (wanted / size).log()], dim=1) / torch.tensor(stds)


def test_decoding_inverts_encoding() -> None:
    boxes, targets = random_boxes(50, 0), random_boxes(50, 1)
    torch.testing.assert_close(decode_deltas(boxes, encode(boxes, targets, STDS), STDS), targets, atol=1e-3, rtol=1e-5)


def test_zero_deltas_keep_the_box() -> None:
    boxes = random_boxes(10, 2)
    torch.testing.assert_close(decode_deltas(boxes, torch.zeros(10, 4), STDS), boxes)


def test_growth_is_bounded() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    grown = decode_deltas(box, torch.tensor([[0.0, 0.0, 1e9, -1e9]]), (1, 1, 1, 1))
    assert (grown[0, 2] - grown[0, 0]).item() == pytest.approx(10 * 1000 / 16, rel=1e-5)
    assert (grown[0, 3] - grown[0, 1]).item() == pytest.approx(10 * math.exp(-MAX_LOG_RATIO), rel=1e-3)


def test_clipping_uses_each_images_own_size() -> None:
    boxes = torch.tensor([[[-5.0, -5.0, 999.0, 999.0]], [[10.0, 20.0, 30.0, 40.0]]])
    sizes = torch.tensor([[100, 200], [25, 15]])  # height, width
    clipped = clip_boxes(boxes, sizes[:, None])
    assert clipped[:, 0].tolist() == [[0, 0, 200, 100], [10, 20, 15, 25]]


def test_area_needs_both_sides() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0], [2, 2, 1, 1]])
    assert has_area(boxes).tolist() == [True, False, False, False]


def test_rois_carry_the_image_index_and_images_may_be_empty() -> None:
    rois = boxes_to_rois([torch.ones(1, 4), torch.zeros(0, 4), torch.full((2, 4), 3.0)])
    assert rois.tolist() == [[0, 1, 1, 1, 1], [2, 3, 3, 3, 3], [2, 3, 3, 3, 3]]


def greedy(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> list[int]:
    """The definition of NMS, one box at a time."""
    overlaps = box_iou(boxes, boxes)
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if all(groups[index] != groups[other] or overlaps[index, other] <= iou for other in kept):
            kept.append(index)
    return kept


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 80), st.integers(1, 5), st.integers(0, 2**31), st.booleans())
def test_grouped_nms_is_greedy_suppression_within_each_group(
    count: int, group_count: int, seed: int, is_single_call: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, seed)
    scores = torch.rand(count, generator=generator)
    groups = torch.randint(group_count, (count,), generator=generator)
    kept = grouped_nms(boxes, scores, groups, 0.5, count, single_call_candidates=count if is_single_call else 0)
    assert kept.tolist() == greedy(boxes, scores, groups, 0.5)


def test_many_candidates_are_suppressed_as_in_one_call() -> None:
    count = 12_000  # the published pipeline changes its method at 10,000
    boxes, groups = random_boxes(count, 5, side=800.0), torch.arange(count) % 80
    scores = torch.rand(count, generator=torch.Generator().manual_seed(5))
    class_by_class = grouped_nms(boxes, scores, groups, 0.5, limit=count)
    single_call = grouped_nms(boxes, scores, groups, 0.5, limit=count, single_call_candidates=count)
    assert torch.equal(class_by_class, single_call)


def test_limit_keeps_the_best_and_nothing_is_fine() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [10, 10, 11, 11], [20, 20, 21, 21]])
    scores, groups = torch.tensor([0.1, 0.9, 0.5]), torch.zeros(3, dtype=torch.int64)
    assert grouped_nms(boxes, scores, groups, 0.5, limit=2).tolist() == [1, 2]
    assert grouped_nms(boxes[:0], scores[:0], groups[:0], 0.5, limit=2).tolist() == []


def lowered_one_by_one(
    boxes: Tensor, scores: Tensor, groups: Tensor, limit: int, factor: Callable[[float], float]
) -> list[tuple[int, float]]:
    """The definition of soft-NMS on lists of numbers, each group on its own, then the best of all."""
    overlaps = box_iou(boxes, boxes).double().tolist()
    found: list[tuple[int, float]] = []
    for group in set(groups.tolist()):
        left = {i: float(scores[i]) for i in range(len(boxes)) if groups[i] == group}
        while left:
            best = max(left, key=lambda i: left[i])
            found.append((best, left.pop(best)))
            left = {i: score * factor(overlaps[best][i]) for i, score in left.items()}
    return sorted((pair for pair in found if pair[1] >= 0.001), key=lambda pair: -pair[1])[:limit]


@pytest.mark.parametrize("linear_iou", [0.3, None])
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**31))
def test_soft_nms_lowers_scores_within_each_group(
    linear_iou: float | None, count: int, group_count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes, scores = random_boxes(count, seed), torch.rand(count, generator=generator)
    groups = torch.randint(group_count, (count,), generator=generator)

    def factor(iou: float) -> float:
        if linear_iou is None:
            return math.exp(-(iou**2) / 0.5)
        return 1 - iou if iou >= linear_iou else 1.0

    kept, lowered = soft_nms(boxes, scores, groups, 20, linear_iou=linear_iou, sigma=0.5, min_score=0.001)
    expected = lowered_one_by_one(boxes, scores, groups, 20, factor)
    assert lowered.tolist() == pytest.approx([score for _, score in expected], rel=1e-4, abs=1e-6)
    if len({round(score, 5) for _, score in expected}) == len(expected):
        assert kept.tolist() == [index for index, _ in expected]


def test_soft_nms_of_nothing_and_of_boxes_without_area() -> None:
    boxes, groups = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    options = {"linear_iou": 0.5, "sigma": 0.5, "min_score": 0.001}
    assert soft_nms(boxes[:0], torch.zeros(0), groups[:0], 5, **options)[0].tolist() == []
    kept, scores = soft_nms(boxes, torch.tensor([0.5, 0.75]), groups, 5, **options)
    assert (kept.tolist(), scores.tolist()) == ([1, 0], [0.75, 0.5])
