"""The losses of small networks: every switch, and images without objects."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from htc_model.config import CASCADE_STDS, BackboneConfig
from htc_model.network.detector import HTC, build_model
from htc_model.training.coco_reader import read_annotations
from htc_model.training.detector_losses import StepTrace, compute_losses
from htc_model.training.freezing import set_training_mode
from htc_model.training.pretrained import initialise_heads
from htc_model.training.samples import TrainingImage, build_training_batch, load_training_image
from htc_model.training.targets import Truth
from htc_model.training.train_config import train_config_for
from tests.support.builders.training_data import draw_image, sample_all, small_config, small_document


def small_model(**changes) -> HTC:
    torch.manual_seed(0)
    model = build_model(small_config(**changes))
    initialise_heads(model)
    set_training_mode(model, has_frozen_batch_norm=True)
    return model


def small_batch(model: HTC, count: int = 2):
    annotations = read_annotations(small_document(count))
    images = [load_training_image(image, draw_image) for image in annotations.images]
    return build_training_batch(images, model.config)


def step(model: HTC, **changes) -> StepTrace:
    batch, truths = small_batch(model)
    return compute_losses(model, batch, truths, sample_all(train_config_for(model.config), 50), **changes)


def gradient(loss: Tensor, parameter: Tensor) -> float:
    (found,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
    return 0.0 if found is None else found.abs().max().item()


@pytest.mark.parametrize(("interleaved", "flow", "semantic"), list(itertools.product([False, True], repeat=3)))
def test_each_switch_trains_alone_and_with_the_others(interleaved, flow, semantic):
    model = small_model(interleaved=interleaved, mask_info_flow=flow, semantic=semantic)
    trace = step(model)
    trace.total.backward()
    assert torch.isfinite(trace.total)
    assert ("loss_semantic_seg" in trace.losses) == semantic
    assert {f"s{stage}.loss_mask" for stage in range(3)} < set(trace.losses)
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []


def test_interleaved_masks_are_trained_on_the_refined_boxes():
    trace = step(small_model())
    for stage in trace.stages:
        objects = torch.cat([sample.rois_xyxy[sample.is_gt] for sample in stage.masks.samples])
        seen = torch.cat([sample.rois_xyxy for sample in stage.masks.samples])
        allowed = torch.cat([objects, *stage.refined])
        assert all((allowed == roi).all(dim=1).any() for roi in seen)


def test_masks_without_interleaving_are_trained_on_the_box_heads_positives():
    trace = step(small_model(interleaved=False))
    for stage in trace.stages:
        assert stage.masks.samples is stage.boxes.samples
    assert trace.stages[-1].refined is None


def test_a_later_mask_loss_reaches_the_earlier_head_only_where_information_flows():
    for flow in (True, False):
        model = small_model(mask_info_flow=flow)
        loss = step(model).losses["s1.loss_mask"]
        reached = gradient(loss, model.roi_head.mask_head[0].convs[0].conv.weight)
        assert (reached > 0) == flow


def test_the_semantic_feature_is_trained_by_boxes_and_masks_too():
    model = small_model()
    trace = step(model)
    embedding = model.roi_head.semantic_head.conv_embedding.conv.weight
    assert gradient(trace.losses["s0.loss_cls"], embedding) > 0
    assert gradient(trace.losses["s0.loss_mask"], embedding) > 0


def test_nothing_flows_back_through_proposals_or_refined_boxes():
    model = small_model()
    trace = step(model)
    later = trace.losses["s1.loss_cls"] + trace.losses["s1.loss_bbox"] + trace.losses["s2.loss_mask"]
    assert gradient(later, model.rpn_head.rpn_reg.weight) == 0
    assert gradient(later, model.roi_head.bbox_head[0].fc_reg.weight) == 0


def test_an_untrained_mask_head_starts_at_a_loss_of_log_two():
    trace = step(small_model())
    for stage in trace.stages:
        assert stage.masks.loss.item() == pytest.approx(0.693, abs=0.05)


def test_stages_weigh_one_half_and_a_quarter():
    trace = step(small_model())
    for stage, weight in enumerate((1, 0.5, 0.25)):
        boxes = trace.stages[stage].boxes
        assert trace.losses[f"s{stage}.loss_cls"].item() == pytest.approx(weight * boxes.loss_class.item())


def test_a_box_only_cascade_needs_no_masks():
    model = small_model(interleaved=False, mask_info_flow=False, semantic=False, has_masks=False)
    trace = step(model)
    assert not any("mask" in name for name in trace.losses)
    assert trace.total.isfinite()


def test_mask_rcnn_learns_deltas_per_class_under_plain_names():
    model = small_model(
        interleaved=False,
        mask_info_flow=False,
        semantic=False,
        box_stds=CASCADE_STDS[:1],
        has_class_specific_boxes=True,
    )
    trace = step(model)
    assert list(trace.losses) == ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "acc", "loss_bbox", "loss_mask"]
    gradients = torch.autograd.grad(trace.losses["loss_bbox"], model.roi_head.bbox_head.fc_reg.weight)[0]
    assert (gradients[:4] != 0).any()
    assert (gradients[4:] != 0).any()


def nothing(model: HTC, size: tuple[int, int]) -> Truth:
    semantic_map = torch.full(size, model.config.num_classes, dtype=torch.uint8) if model.config.semantic else None
    return Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, *size).byte(), semantic_map)


@pytest.mark.parametrize("has_proposals", [True, False])
def test_a_batch_without_objects_trains_and_touches_every_parameter(has_proposals):
    model = small_model()
    batch, _ = small_batch(model)
    truths = [nothing(model, size) for size in batch.image_sizes]
    proposals = None if has_proposals else [torch.zeros(0, 4), torch.zeros(0, 4)]
    trace = compute_losses(model, batch, truths, train_config_for(model.config), proposals=proposals)
    trace.total.backward()
    assert trace.total.isfinite()
    assert trace.losses["s2.loss_mask"].item() == trace.losses["s0.loss_bbox"].item() == 0
    assert model.roi_head.mask_head[2].conv_logits.weight.grad is not None


def test_images_of_different_sizes_share_a_batch():
    model = small_model()
    annotations = read_annotations(small_document(2))
    first, second = (load_training_image(image, draw_image) for image in annotations.images)
    small = TrainingImage(
        "small", first.pixels[:70, :80], first.labels[:0], first.masks[:0, :70, :80], first.crowd_mask[:70, :80]
    )
    batch, truths = build_training_batch([second, small], model.config)
    trace = compute_losses(model, batch, truths, train_config_for(model.config))
    assert trace.total.isfinite()
    assert (trace.proposals[1][:, 2] <= 80).all()
    assert (trace.proposals[1][:, 3] <= 70).all()


def test_missing_masks_and_maps_are_refused():
    model = small_model()
    batch, truths = small_batch(model)
    bare = [Truth(t.boxes_xyxy, t.labels, None, t.semantic_map) for t in truths]
    with pytest.raises(ValueError, match="needs the objects' masks"):
        compute_losses(model, batch, bare, train_config_for(model.config))
    bare = [Truth(t.boxes_xyxy, t.labels, t.masks, None) for t in truths]
    with pytest.raises(ValueError, match="needs a semantic map for every image"):
        compute_losses(model, batch, bare, train_config_for(model.config))


def test_the_seed_decides_what_the_step_samples():
    model = small_model()
    batch, truths = small_batch(model)
    totals = [
        compute_losses(
            model, batch, truths, train_config_for(model.config), generator=torch.Generator().manual_seed(seed)
        ).total.item()
        for seed in (1, 1, 2)
    ]
    assert totals[0] == totals[1]
    assert totals[0] != totals[2]


def test_bfloat16_autocast_gives_nearly_the_same_losses():
    model = small_model()
    exact = step(model).total
    with torch.autocast("cpu", torch.bfloat16):
        trace = step(model)
    assert all(value.dtype == torch.float32 for value in trace.losses.values())
    assert trace.total.item() == pytest.approx(exact.item(), rel=0.05)


def test_panet_trains_with_every_layer():
    model = small_model(
        neck="pafpn",
        roi_head="panet",
        interleaved=False,
        mask_info_flow=False,
        semantic=False,
        box_stds=CASCADE_STDS[:1],
        has_class_specific_boxes=True,
    )
    trace = step(model)
    trace.total.backward()
    assert torch.isfinite(trace.total)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # Neither of the mask's two branches begins with logits that have to be unlearned.
    assert trace.losses["loss_mask"].item() == pytest.approx(math.log(2), rel=0.1)


def test_detectors_trains_through_both_passes():
    model = small_model(backbone=BackboneConfig(kind="detectors_resnet"), neck="recursive", semantic=False)
    trace = step(model)
    assert torch.isfinite(trace.total)
    second = model.neck.rfp_modules[0]
    parts = [
        model.backbone.layer2[0].conv2.switch.weight,
        second.layer4[0].rfp_conv.weight,
        model.neck.rfp_weight.weight,
    ]
    assert all(gradient(trace.total, parameter) > 0 for parameter in parts)
