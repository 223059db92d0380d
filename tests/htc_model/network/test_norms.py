"""Backbones with group norm instead of batch norm."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from htc_model.config import (
    BackboneConfig,
    ModelConfig,
    ModelConfigError,
    config_from_dict,
    config_to_dict,
    load_preset,
)
from htc_model.network.detector import build_model
from tests.support.builders.networks import assert_wellformed, image_batch, lite_config, untrained_model


def with_group_norm(config: ModelConfig) -> ModelConfig:
    return replace(config, backbone=replace(config.backbone, norm="group"))


@pytest.mark.parametrize("preset", ["htc_lite0_fpn", "htc_r50_fpn"])
def test_every_norm_of_the_backbone_is_replaced_under_its_own_name(preset: str) -> None:
    with torch.device("meta"):
        batch, group = build_model(load_preset(preset)), build_model(with_group_norm(load_preset(preset)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in group.modules())
    counters = ("running_mean", "running_var", "num_batches_tracked")
    assert list(group.state_dict()) == [name for name in batch.state_dict() if not name.endswith(counters)]


def test_it_detects_and_keeps_the_activations_that_the_norms_held() -> None:
    config = with_group_norm(lite_config())
    model = untrained_model(config)
    (raw,) = model.infer(image_batch(config))
    assert_wellformed(raw, config)
    with torch.inference_mode():
        first = model.backbone.bn1(model.backbone.conv_stem(torch.randn(1, 3, 64, 64)))
    assert first.min() == 0
    assert first.max() <= 6  # Lite's activation is ReLU6


def test_the_norm_is_part_of_the_config_and_old_configs_have_batch_norm() -> None:
    plain = config_to_dict(with_group_norm(load_preset("htc_lite0_fpn")))
    assert config_from_dict(json.loads(json.dumps(plain))).backbone.norm == "group"
    del plain["backbone"]["norm"]
    assert config_from_dict(plain) == load_preset("htc_lite0_fpn")


def test_another_norm_is_refused() -> None:
    with pytest.raises(ModelConfigError, match=r"unknown norm 'layer'; known: batch, group"):
        ModelConfig(name="any", backbone=BackboneConfig(norm="layer"))  # type: ignore[arg-type]
