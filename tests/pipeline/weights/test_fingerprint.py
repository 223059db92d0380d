"""The preset and configuration come from the weights file, and the spec only has to name the file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from htc_model.config import ModelConfig, load_preset
from htc_model.weights.load import save_weights
from pipeline.errors import SpecError
from pipeline.job_spec.model import ModelSection
from pipeline.weights.fingerprint import compute_fingerprint, resolve_config, resolve_preset


@pytest.fixture
def trained() -> ModelConfig:
    """A trained network: the preset's name, but its own classes, sizes and one switch."""
    base = load_preset("htc_lite0_fpn")
    resize = replace(base.resize, short_side=96, long_side=128)
    return replace(base, classes=("box",), category_ids=(5,), semantic=False, resize=resize, score_threshold=0.9)


@pytest.fixture
def weights(tmp_path: Path, trained: ModelConfig) -> Path:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"one": torch.zeros(1)}, trained)
    return path


def section_of(path: Path | str, **model: Any) -> ModelSection:
    return ModelSection(weights=str(path), **model)


def test_soft_nms_is_part_of_the_fingerprint_and_hard_nms_leaves_it_as_it_was() -> None:
    hard, soft = ModelSection(weights="untrained"), ModelSection(weights="untrained", suppression="soft_gaussian")
    assert resolve_config(soft).suppression == "soft_gaussian"
    assert compute_fingerprint(hard).config_sha256 != compute_fingerprint(soft).config_sha256


def test_the_file_decides_all_but_threshold_and_number(weights: Path, trained: ModelConfig) -> None:
    section = resolve_preset(section_of(weights, score_threshold=0.25, max_detections=7))
    assert section.preset == "htc_lite0_fpn"
    assert resolve_config(section, weights) == replace(trained, score_threshold=0.25, max_detections=7)


def test_naming_the_files_own_preset_changes_nothing(weights: Path) -> None:
    found = resolve_preset(section_of(weights))
    named = resolve_preset(section_of(weights, preset="htc_lite0_fpn"))
    assert compute_fingerprint(found) == compute_fingerprint(named)


def test_naming_another_preset_is_refused(weights: Path) -> None:
    with pytest.raises(SpecError, match=r"holds weights of htc_lite0_fpn, not of htc_r50_fpn; leave model\.preset"):
        resolve_preset(section_of(weights, preset="htc_r50_fpn"))


@pytest.mark.parametrize(
    "payload",
    [b"", b"no safetensors", b"\xff" * 40, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{}"],
)
def test_a_file_without_a_configuration_leaves_the_preset_alone(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(payload)
    assert resolve_preset(section_of(path)).preset == "htc_r50_fpn"


def test_words_need_no_file() -> None:
    section = section_of("untrained", preset="htc_lite0_fpn")
    assert resolve_preset(section) == section
