"""Losses and their gradients against another implementation."""

import pytest
import torch
from torch import Tensor

from htc_model.training.losses import (
    accuracy_percent,
    class_loss,
    delta_loss,
    deltas_of_labels,
    mask_loss,
    objectness_loss,
    semantic_loss,
    smooth_l1,
)


def assert_like(found: Tensor, golden: Tensor) -> None:
    torch.testing.assert_close(found.detach(), golden.reshape(found.shape), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize(("name", "beta"), [("b9", 1 / 9), ("b1", 1.0), ("l1", 0.0)])
def test_smooth_l1_and_gradient_equal_the_reference(unit, name, beta):
    pred = unit("smooth_l1.pred").requires_grad_()
    elements = smooth_l1(pred, unit("smooth_l1.target"), beta=beta)
    assert_like(elements, unit(f"smooth_l1.{name}_elem"))
    weighted = (elements * unit("smooth_l1.weight")).sum() / unit("smooth_l1.avg_factor").item()
    assert_like(weighted, unit(f"smooth_l1.{name}_loss"))
    weighted.backward()
    assert_like(pred.grad, unit(f"smooth_l1.{name}_grad"))


def test_mask_loss_and_gradient_equal_the_reference(unit):
    logits = unit("mask_bce.pred").requires_grad_()
    own = logits[torch.arange(len(logits)), unit("mask_bce.labels")]
    loss = mask_loss(own, unit("mask_bce.target"))
    assert_like(loss, unit("mask_bce.loss"))
    loss.backward()
    assert_like(logits.grad, unit("mask_bce.grad"))


def test_objectness_loss_and_gradient_equal_the_reference(unit):
    logits = unit("rpn_bce.pred").requires_grad_()
    is_sampled = unit("rpn_bce.weight") > 0
    # In the reference label 0 is "object".
    is_object = unit("rpn_bce.labels")[is_sampled] == 0
    loss = objectness_loss(logits[is_sampled, 0], is_object, average_factor=unit("rpn_bce.avg_factor").item())
    assert_like(loss, unit("rpn_bce.loss"))
    loss.backward()
    assert_like(logits.grad, unit("rpn_bce.grad"))


def test_class_loss_equals_the_reference(unit):
    # The reference weighs RoIs (0, 1 or 2) and divides by those that count; ours counts each RoI as often
    # as it weighs.
    score, labels, weight = unit("box_ce.score"), unit("box_ce.labels"), unit("box_ce.weight").long()
    repeated = torch.repeat_interleave(torch.arange(len(labels)), weight)
    logits = score.clone().requires_grad_()
    counted = unit("box_ce.avg_factor").item()
    loss = class_loss(logits[repeated], labels[repeated]) * (len(repeated) / counted)
    assert_like(loss, unit("box_ce.loss"))
    loss.backward()
    assert_like(logits.grad, unit("box_ce.grad"))
    assert_like(accuracy_percent(score, labels), unit("box_ce.acc"))


def test_semantic_loss_and_gradient_equal_the_reference(unit):
    logits = unit("sem_ce.pred").requires_grad_()
    loss = 0.2 * semantic_loss(logits, unit("sem_ce.labels"))
    assert_like(loss, unit("sem_ce.loss"))
    loss.backward()
    assert_like(logits.grad, unit("sem_ce.grad"))


@pytest.mark.parametrize(("stage", "beta"), [("stage", 1.0), ("stage_cls", 0.0)])
def test_a_stage_equals_the_reference(unit, stage, beta):
    logits, deltas = unit("stage.cls").requires_grad_(), unit(f"{stage}.reg").requires_grad_()
    labels, count = unit("stage.labels"), len(unit("stage.pos_inds"))
    loss_class = class_loss(logits, labels)
    positives = deltas_of_labels(deltas[:count], labels[:count])
    loss_box = delta_loss(positives, unit("stage.targets")[:count], beta=beta, average_factor=len(labels))
    assert_like(loss_class, unit(f"{stage}.loss_cls"))
    assert_like(loss_box, unit(f"{stage}.loss_bbox"))
    assert_like(accuracy_percent(logits, labels), unit("stage.acc"))
    (loss_class + loss_box).backward()
    assert_like(logits.grad, unit("stage.grad_cls"))
    assert_like(deltas.grad, unit(f"{stage}.grad_reg"))


def test_no_positive_gives_zero_with_a_gradient(unit):
    deltas = unit("stage_nopos.reg").requires_grad_()
    none = torch.zeros(0, dtype=torch.int64)
    loss = delta_loss(deltas_of_labels(deltas[:0], none), torch.zeros(0, 4), beta=1.0, average_factor=3)
    assert loss.item() == unit("stage_nopos.loss_bbox").item() == 0
    loss.backward()
    assert torch.equal(deltas.grad, unit("stage_nopos.grad_reg"))
    background = torch.full((3,), 10)
    assert_like(class_loss(unit("stage_nopos.cls"), background), unit("stage_nopos.loss_cls"))


def test_no_roi_at_all_gives_zeros_with_gradients():
    logits = torch.zeros(0, 11, requires_grad=True)
    masks = torch.zeros(0, 28, 28, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    total = class_loss(logits, none) + mask_loss(masks, torch.zeros(0, 28, 28))
    total.backward()
    assert total.item() == 0
    assert logits.grad is not None
    assert masks.grad is not None
    assert accuracy_percent(logits, none).item() == 0


def test_half_precision_predictions_give_float32_losses():
    logits = torch.tensor([[60000.0, 0.0], [0.0, 60000.0]], dtype=torch.float16)
    loss = class_loss(logits, torch.tensor([1, 0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(60000.0)
