"""Presets, their names, and configs as JSON."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from htc_model.config import (
    PRESETS,
    BackboneConfig,
    ModelConfig,
    ModelConfigError,
    config_from_dict,
    config_sha256,
    config_to_dict,
    load_preset,
)

ISSUE_TABLE = {
    *(f"mask_rcnn_{backbone}_fpn" for backbone in ("r50", "r101", "x101_64x4d")),
    *(f"cascade_mask_rcnn_{backbone}_fpn" for backbone in ("r50", "r101", "x101_64x4d")),
    "cascade_rcnn_r50_fpn",
    "htc_without_semantic_r50_fpn",
    *(f"htc_{backbone}_fpn" for backbone in ("r50", "r101", "x101_32x4d", "x101_64x4d")),
    "htc_x101_64x4d_fpn_dcn",
    "htc_lite0_fpn",
}
# PANet's neck, deformable convolutions of version 2, group norm, and the successors of the family.
LATER_TABLE = {
    "mask_rcnn_r50_pafpn",
    "panet_r50_fpn",
    "mask_rcnn_r50_fpn_dcnv2",
    "htc_r50_fpn_dcnv2",
    "mask_rcnn_r50_fpn_gn",
    "htc_r50_fpn_ga",
    "htc_seresnext101_32x4d_fpn",
    "htc_challenge",
    *(f"scnet_{backbone}_fpn" for backbone in ("r50", "r101", "x101_64x4d")),
    *(f"detectors_htc_{backbone}_fpn" for backbone in ("r50", "r101")),
}


def test_presets_are_the_published_systems_and_one_for_tests() -> None:
    assert set(PRESETS) == ISSUE_TABLE | {"htc_r50_fpn_dcn"} | LATER_TABLE


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_json(name: str) -> None:
    config = load_preset(name)
    assert config.name == name
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_every_preset_has_its_own_fingerprint() -> None:
    assert len({config_sha256(config) for config in PRESETS.values()}) == len(PRESETS)


def test_fingerprint_follows_every_number_that_changes_detections() -> None:
    config = load_preset("htc_r50_fpn")
    changed = [
        replace(config, score_threshold=0.5),
        replace(config, resize=replace(config.resize, short_side=600)),
        replace(config, classes=("thing", *config.classes[1:])),
    ]
    assert config_sha256(config) not in {config_sha256(other) for other in changed}


def test_fields_that_came_later_leave_older_fingerprints_as_they_were() -> None:
    """Runs and weights from before name their network by this hash."""
    assert config_sha256(load_preset("htc_r50_fpn")).startswith("36eeed43f2f0059f")


def test_misspelt_preset_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(ModelConfigError, match="did you mean 'htc_r101_fpn'") as caught:
        load_preset("htc_r110_fpn")
    assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize("name", ["", "zzz", "HTC_R50_FPN"])
def test_any_wrong_name_is_a_config_error(name: str) -> None:
    with pytest.raises(ModelConfigError, match="There is no preset"):
        load_preset(name)


def test_unknown_keys_are_named() -> None:
    plain = config_to_dict(load_preset("htc_r50_fpn"))
    with pytest.raises(ModelConfigError, match="nms_io'"):
        config_from_dict(plain | {"nms_io": 0.5})
    with pytest.raises(ModelConfigError, match="'deepth'"):
        config_from_dict(plain | {"backbone": plain["backbone"] | {"deepth": 50}})


def test_config_without_a_name_is_refused() -> None:
    with pytest.raises(ModelConfigError, match="name"):
        config_from_dict({})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"category_ids": (1, 2)}, "80 classes but 2 category ids"),
        ({"box_stds": ()}, "at least one class and one stage"),
        ({"has_class_specific_boxes": True}, "only a single stage"),
        ({"max_detections": 0}, "at least one"),
        ({"suppression": "soft"}, "unknown suppression 'soft'"),
        ({"neck": "recursive"}, "both or neither"),
        ({"roi_head": "scnet", "semantic": False}, "scnet needs masks"),
        ({"roi_head": "panet"}, "panet needs one stage"),
        ({"backbone": BackboneConfig(kind="senet154", norm="group_published")}, "only ResNets"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelConfigError, match=reason):
        replace(load_preset("htc_r50_fpn"), **changes)  # type: ignore[arg-type]


def test_coco_classes_carry_cocos_numbers() -> None:
    config = ModelConfig(name="any")
    numbers = dict(zip(config.classes, config.category_ids, strict=True))
    assert config.num_classes == 80
    # Either side of each kind of gap in COCO's numbering.
    assert (numbers["person"], numbers["stop sign"], numbers["backpack"]) == (1, 13, 27)
    assert (numbers["dining table"], numbers["toilet"], numbers["toothbrush"]) == (67, 70, 90)


def test_reading_presets_does_not_import_torch() -> None:
    code = "import sys, htc_model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
