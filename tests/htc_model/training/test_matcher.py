"""Assignment against another implementation, and what its corner cases mean."""

import pytest
import torch

from htc_model.training.matcher import BACKGROUND, UNUSED, AssignRule, assign_boxes, pairwise_iou

# The names of the golden's columns, and the rule behind each.
RULES = {
    "rpn": AssignRule(0.7, 0.3, 0.3, True),
    "rpn_min0": AssignRule(0.7, 0.3, 0.0, True),
    "r5_low": AssignRule(0.5, 0.5, 0.5, True),
    "r5_nolow": AssignRule(0.5, 0.5, 0.5, False),
    "r6_low": AssignRule(0.6, 0.6, 0.6, True),
    "r6_nolow": AssignRule(0.6, 0.6, 0.6, False),
    "r7_low": AssignRule(0.7, 0.7, 0.7, True),
    "r7_nolow": AssignRule(0.7, 0.7, 0.7, False),
}


@pytest.mark.parametrize("name", RULES)
def test_assignment_equals_the_reference(unit, name):
    assigned = assign_boxes(unit("assign.gts"), unit("assign.boxes"), RULES[name])
    # The reference counts objects from one: 0 is background, -1 unused.
    assert torch.equal(assigned, unit(f"assign.{name}_gt_inds") - 1)


@pytest.mark.parametrize("name", RULES)
def test_without_objects_all_is_background(unit, name):
    assigned = assign_boxes(torch.zeros(0, 4), unit("assign.boxes"), RULES[name])
    assert torch.equal(assigned, unit(f"assign.{name}_nogt_gt_inds") - 1)
    assert (assigned == BACKGROUND).all()


def test_overlaps_are_bit_equal_to_the_reference(unit):
    assert torch.equal(pairwise_iou(unit("assign.gts"), unit("assign.boxes")), unit("assign.iou"))


def test_no_boxes_give_no_assignment(unit):
    assert assign_boxes(unit("assign.gts"), torch.zeros(0, 4), RULES["rpn"]).shape == (0,)


def test_a_box_between_the_thresholds_is_unused():
    gt = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    half = torch.tensor([[0.0, 0.0, 10.0, 5.0]])
    assert assign_boxes(gt, half, AssignRule(0.7, 0.3, 0.6, True)).tolist() == [UNUSED]


def test_the_later_object_keeps_a_box_both_claim():
    twice = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    box = torch.tensor([[0.0, 0.0, 10.0, 5.0]])
    assert assign_boxes(twice, box, AssignRule(0.7, 0.3, 0.3, True)).tolist() == [1]


def test_all_boxes_tied_for_best_are_kept():
    gt = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    tied = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 5.0, 10.0, 10.0], [0.0, 0.0, 10.0, 1.0]])
    assert assign_boxes(gt, tied, AssignRule(0.7, 0.3, 0.3, True)).tolist() == [0, 0, BACKGROUND]
