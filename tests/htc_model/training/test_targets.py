"""Targets against another implementation, and at their edges."""

import pytest
import torch

from htc_model.training.matcher import BACKGROUND, UNUSED, AssignRule
from htc_model.training.sampler import SampleRule
from htc_model.training.targets import (
    Truth,
    assign_anchors,
    build_anchor_targets,
    build_mask_targets,
    encode_deltas,
    sample_rois,
    usable_anchors,
)

TAKE_ALL = SampleRule(None, 0.25)


@pytest.mark.parametrize("stage", ["rpn", "s0", "s1", "s2"])
def test_deltas_equal_the_reference(unit, stage):
    deltas = encode_deltas(unit("delta.boxes"), unit("delta.gts"), unit(f"delta.{stage}_std").tolist())
    torch.testing.assert_close(deltas, unit(f"delta.{stage}_enc"), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("allowed_border", "golden"),
    [(0, "anchors.inside0"), (None, "anchors.inside_m1"), (None, "anchors.valid")],
)
def test_usable_anchors_equal_the_reference(unit, allowed_border, golden):
    is_usable = usable_anchors(
        unit("anchors.flat"),
        unit("anchors.sizes").tolist(),
        (4, 8, 16, 32, 64),
        image_size=tuple(unit("anchors.img_shape").tolist()),
        padded_size=tuple(unit("anchors.pad_shape").tolist()),
        allowed_border=allowed_border,
    )
    assert torch.equal(is_usable, unit(golden))


def test_unusable_anchors_are_no_objects_best_match():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0], [50.0, 50.0, 60.0, 60.0]])
    is_usable = torch.tensor([False, True, True])
    assigned = assign_anchors(anchors, is_usable, anchors[:1], AssignRule(0.7, 0.3, 0.3, True))
    assert assigned.tolist() == [UNUSED, 0, BACKGROUND]
    targets = build_anchor_targets(anchors, assigned, anchors[:1], TAKE_ALL)
    assert targets.sample.positives.tolist() == [1]
    torch.testing.assert_close(targets.deltas, torch.tensor([[0.0, 0.2 / 0.6, 0.0, 0.510826]]))


@pytest.mark.parametrize(("golden", "canvas_size"), [("raw", (40, 50)), ("padded", (64, 64))])
def test_mask_targets_equal_the_reference(unit, golden, canvas_size):
    targets = build_mask_targets(
        unit("mask_target.masks"),
        unit("mask_target.gt_inds"),
        unit("mask_target.rois"),
        canvas_size=canvas_size,
    )
    assert torch.equal(targets, unit(f"mask_target.{golden}") > 0)


def test_no_roi_gives_no_mask_target():
    none = build_mask_targets(
        torch.zeros(0, 8, 8, dtype=torch.uint8),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 4),
        canvas_size=(8, 8),
    )
    assert none.shape == (0, 28, 28)


def test_a_stage_samples_as_the_reference(unit):
    truth = Truth(unit("stage.gts"), unit("stage.gt_labels"), None, None)
    rois = sample_rois(unit("stage.proposals"), truth, AssignRule(0.5, 0.5, 0.5, True), TAKE_ALL, class_count=10)
    assert torch.equal(rois.sample.positives, unit("stage.pos_inds"))
    assert torch.equal(rois.sample.negatives, unit("stage.neg_inds"))
    assert torch.equal(rois.gt_indices, unit("stage.pos_gt"))
    assert torch.equal(rois.rois_xyxy, unit("stage.rois"))
    assert torch.equal(rois.labels, unit("stage.labels"))
    assert torch.equal(rois.is_gt[: rois.positive_count], unit("stage.pos_is_gt") > 0)
    assert not rois.is_gt[rois.positive_count :].any()
    positives = rois.rois_xyxy[: rois.positive_count]
    deltas = encode_deltas(positives, truth.boxes_xyxy[rois.gt_indices], (0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(deltas, unit("stage.targets")[: rois.positive_count], rtol=2e-6, atol=2e-6)


def test_an_image_without_objects_is_all_background():
    truth = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, None)
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [1.0, 1.0, 9.0, 9.0]])
    rois = sample_rois(boxes, truth, AssignRule(0.5, 0.5, 0.5, True), TAKE_ALL, class_count=10)
    assert rois.positive_count == 0
    assert rois.labels.tolist() == [10, 10]
    assert torch.equal(rois.rois_xyxy, boxes)


def test_an_image_without_proposals_still_trains_on_its_objects():
    truth = Truth(torch.tensor([[1.0, 1.0, 9.0, 9.0]]), torch.tensor([4]), None, None)
    rois = sample_rois(torch.zeros(0, 4), truth, AssignRule(0.5, 0.5, 0.5, True), TAKE_ALL, class_count=10)
    assert rois.labels.tolist() == [4]
    assert rois.is_gt.tolist() == [True]
