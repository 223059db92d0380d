"""A weights file says which network it is for, and the spec only has to name the file."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from htc_model.config import ModelConfig, load_preset
from htc_model.weights.load import save_weights
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.weights.fingerprint import compute_fingerprint, resolve_config, resolve_preset


@pytest.fixture
def trained() -> ModelConfig:
    """A network as training leaves it: the preset's name, but classes, sizes and a switch of its own."""
    base = load_preset("htc_lite0_fpn")
    resize = replace(base.resize, short_side=96, long_side=128)
    return replace(base, classes=("box",), category_ids=(5,), semantic=False, resize=resize, score_threshold=0.9)


@pytest.fixture
def weights(tmp_path: Path, trained: ModelConfig) -> Path:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"one": torch.zeros(1)}, trained)
    return path


def spec_of(path: Path | str, **model: object) -> JobSpec:
    overrides = {"input.uri": "in", "output.uri": "out", "model.weights": str(path)}
    return load_spec(None, overrides | {f"model.{key}": value for key, value in model.items()})


def test_the_file_decides_all_but_threshold_and_number(weights: Path, trained: ModelConfig) -> None:
    spec = resolve_preset(spec_of(weights, score_threshold=0.25, max_detections=7))
    assert spec.model.preset == "htc_lite0_fpn"
    assert resolve_config(spec.model, weights) == replace(trained, score_threshold=0.25, max_detections=7)


def test_naming_the_files_own_preset_changes_nothing(weights: Path) -> None:
    settled = resolve_preset(spec_of(weights))
    named = resolve_preset(spec_of(weights, preset="htc_lite0_fpn"))
    assert compute_fingerprint(settled.model) == compute_fingerprint(named.model)


def test_naming_another_preset_is_refused(weights: Path) -> None:
    with pytest.raises(SpecError, match=r"holds weights of htc_lite0_fpn, not of htc_r50_fpn; leave model\.preset"):
        resolve_preset(spec_of(weights, preset="htc_r50_fpn"))


@pytest.mark.parametrize(
    "payload",
    [b"", b"no safetensors", b"\xff" * 40, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{}"],
)
def test_a_file_that_does_not_say_leaves_the_spec_alone(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(payload)
    assert resolve_preset(spec_of(path)).model.preset == "htc_r50_fpn"


def test_words_need_no_file() -> None:
    spec = spec_of("untrained", preset="htc_lite0_fpn")
    assert resolve_preset(spec) == spec
