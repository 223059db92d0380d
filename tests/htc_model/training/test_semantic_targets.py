"""The semantic branch's targets."""

import pytest
import torch

from htc_model.training.semantic_targets import build_semantic_targets, rasterise_semantic


def test_every_eighth_pixel_equals_the_reference(unit):
    full = unit("sem_down.full")[0]
    targets = build_semantic_targets(list(full.to(torch.uint8)), tuple(full.shape[1:]))
    assert torch.equal(targets.long(), unit("sem_down.small"))


def test_padding_is_ignored():
    targets = build_semantic_targets(
        [torch.zeros(9, 16, dtype=torch.uint8), torch.ones(16, 8, dtype=torch.uint8)], (16, 24)
    )
    assert targets.tolist() == [[[0, 0, 255], [0, 0, 255]], [[1, 255, 255], [1, 255, 255]]]


def test_small_instances_lie_on_large_ones_and_crowds_are_ignored():
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    masks[0, 1, 1] = 1
    masks[1, :2, :2] = 1
    crowd = torch.zeros(4, 4, dtype=torch.uint8)
    crowd[1:3, 1:3] = 1
    semantic_map = rasterise_semantic(masks, torch.tensor([7, 3]), crowd, other_label=80)
    expected = [[3, 3, 80, 80], [3, 7, 255, 80], [80, 255, 255, 80], [80, 80, 80, 80]]
    assert semantic_map.tolist() == expected


def test_without_instances_all_is_other():
    semantic_map = rasterise_semantic(
        torch.zeros(0, 2, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), None, other_label=5
    )
    assert semantic_map.tolist() == [[5, 5, 5], [5, 5, 5]]


def test_too_many_classes_for_the_map_are_refused():
    with pytest.raises(ValueError, match="at most 254 thing classes, not 255"):
        rasterise_semantic(
            torch.zeros(0, 2, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), None, other_label=255
        )
