"""Weights files: read without running them, strictly fitted, written back."""

import hashlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from htc_model.config import config_from_dict, load_preset
from htc_model.network.detector import build_model
from htc_model.weights.load import (
    LoadedWeights,
    convert_weights,
    guess_preset,
    load_into,
    load_weights,
    save_weights,
    state_sha256,
)
from htc_model.weights.openmmlab import WeightsError
from htc_model.weights.untrained import untrained_state
from tests.support.paths import DATA

LITE = "htc_lite0_fpn"
# Written by mmengine 0.10's own classes: message_hub with HistoryBuffers (numpy arrays), optimizer, meta.
MMENGINE_FILE = DATA / "weights" / "mmengine_3x.pth"


def tiny_state() -> dict[str, Tensor]:
    return {"neck.a.weight": torch.arange(6.0).reshape(2, 3), "neck.a.bias": torch.tensor([1.0, -2.0])}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_tiny(loaded: LoadedWeights) -> None:
    assert list(loaded.state) == list(tiny_state())
    for key, tensor in tiny_state().items():
        assert torch.equal(loaded.state[key], tensor)


def empty_shell(preset: str) -> nn.Module:
    with torch.device("meta"):
        return build_model(preset)


def preset_state(preset: str) -> dict[str, Tensor]:
    """Zeros of the right shapes, without memory behind them."""
    return {key: torch.zeros(()).expand(t.shape) for key, t in empty_shell(preset).state_dict().items()}


# --- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip layout", "layout before torch 1.6"])
def test_mmdetection_2x_file(tmp_path: Path, is_zip: bool) -> None:
    meta = {"mmdet_version": "2.0.0", "CLASSES": ("cat", "dog"), "epoch": 12, "hook_msgs": {}, "config": "x = 1"}
    content = {"meta": meta, "state_dict": OrderedDict(tiny_state())}
    path = saved(tmp_path / "w.pth", content, _use_new_zipfile_serialization=is_zip)
    loaded = load_weights(path)
    assert_tiny(loaded)
    assert loaded.metadata["classes"] == ["cat", "dog"]
    assert loaded.metadata["epoch"] == 12
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_mmdetection_3x_file_with_its_training_log() -> None:
    loaded = load_weights(MMENGINE_FILE)
    # The preprocessor's buffer is gone, and the deformable offset has its present name.
    assert list(loaded.state) == ["w.conv2.conv_offset.weight"]
    assert loaded.metadata["classes"] == ["a", "b"]
    assert "message_hub" not in loaded.metadata


def test_bare_state_dict_with_the_prefix_of_parallel_training(tmp_path: Path) -> None:
    content = {f"module.{key}": tensor for key, tensor in tiny_state().items()}
    assert_tiny(load_weights(saved(tmp_path / "w.pth", content)))


def test_averaged_weights_beside_the_last_are_refused(tmp_path: Path) -> None:
    content = {"state_dict": {**tiny_state(), "ema_neck_a_weight": torch.zeros(2, 3)}}
    with pytest.raises(WeightsError, match=r"running average.*ema_neck_a_weight"):
        load_weights(saved(tmp_path / "w.pth", content))


class _Attack:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


class _Eval:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"open({str(self.trace)!r}, 'w')",)


@pytest.mark.parametrize("attack", [_Attack, _Eval])
@pytest.mark.parametrize("is_plain_pickle", [False, True])
def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, attack: type[_Attack | _Eval], is_plain_pickle: bool
) -> None:
    trace, path = tmp_path / "was-here", tmp_path / "w.pth"
    content = {"state_dict": tiny_state(), "meta": attack(trace)}
    if is_plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=str(path)):
        load_weights(path)
    assert not trace.exists()


def test_the_stand_in_for_getattr_reaches_nothing(tmp_path: Path) -> None:
    """`getattr` is bound to a stand-in for mmengine's files; it must not hand out attributes."""

    class Reach:
        def __reduce__(self) -> tuple[Any, tuple[Any, str]]:
            return getattr, (OrderedDict(), "__class__")

    loaded = load_weights(saved(tmp_path / "w.pth", {"state_dict": tiny_state(), "optimizer": Reach()}))
    assert_tiny(loaded)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 broken zip", b"\x80\x02"])
def test_rubbish_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=str(path)):
        load_weights(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"state_dict": tiny_state()})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_weights(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds a list"),
        ({"state_dict": {}}, "holds no weights"),
        ({"state_dict": {"a": "text"}}, "a is a str, not a tensor"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: object, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        load_weights(saved(tmp_path / "w.pth", content))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights file"):
        load_weights(tmp_path / "nothing.pth")


# --- fitting -----------------------------------------------------------------------------------------------


def lite_weights(**changes: Tensor) -> LoadedWeights:
    state = untrained_state(empty_shell(LITE).state_dict())
    return LoadedWeights("w.pth", {**state, **changes}, {}, "0" * 64)


def test_fitting_weights_are_copied_and_counters_may_be_absent() -> None:
    loaded = lite_weights()
    for key in [key for key in loaded.state if key.endswith("num_batches_tracked")]:
        del loaded.state[key]
    model = build_model(LITE)
    load_into(model, loaded)
    for key, tensor in loaded.state.items():
        assert torch.equal(model.state_dict()[key], tensor)


def test_every_kind_of_misfit_is_named_and_nothing_is_copied() -> None:
    loaded = lite_weights(**{"neck.extra.weight": torch.zeros(1), "neck.extra.bias": torch.zeros(1)})
    del loaded.state["rpn_head.rpn_cls.weight"]
    loaded.state["rpn_head.rpn_reg.bias"] = torch.zeros(7)
    model = build_model(LITE)
    before = state_sha256(model.state_dict())
    with pytest.raises(WeightsError) as caught:
        load_into(model, loaded)
    message = str(caught.value)
    assert "does not fit htc_lite0_fpn: 1 keys are missing, 2 unexpected, 1 of another shape" in message
    assert "rpn_head.rpn_cls.weight" in message
    assert "neck.extra.{weight,bias}" in message
    assert "rpn_head.rpn_reg.bias is [7] in the file and [12] in the model" in message
    assert caught.value.missing == ("rpn_head.rpn_cls.weight",)
    assert caught.value.unexpected == ("neck.extra.weight", "neck.extra.bias")
    assert caught.value.misshaped == ("rpn_head.rpn_reg.bias",)
    assert state_sha256(model.state_dict()) == before


def test_weights_of_another_preset_are_recognised() -> None:
    loaded = LoadedWeights("w.pth", preset_state("htc_r101_fpn"), {}, "0" * 64)
    with pytest.raises(WeightsError, match=r"These are weights of htc_r101_fpn\."):
        load_into(empty_shell("htc_r50_fpn"), loaded)


@pytest.mark.parametrize("preset", ["htc_x101_32x4d_fpn", "htc_x101_64x4d_fpn_dcn", "mask_rcnn_r50_fpn", LITE])
def test_the_preset_is_guessed_from_shapes(preset: str) -> None:
    state = preset_state(preset)
    assert guess_preset(state) == preset
    state["another.weight"] = torch.zeros(1)
    assert guess_preset(state) is None


def test_weights_for_other_classes_are_refused() -> None:
    names = list(load_preset(LITE).classes)
    renamed = LoadedWeights("w.pth", lite_weights().state, {"classes": ["Sea_Lion", *names[1:]]}, "0" * 64)
    with pytest.raises(WeightsError, match=r"label 0 is 'Sea_Lion' there and 'person' here"):
        load_into(build_model(LITE), renamed)
    spelt = [name.upper().replace(" ", "_") for name in names]
    load_into(build_model(LITE), LoadedWeights("w.pth", renamed.state, {"classes": spelt}, "0" * 64))


# --- writing -----------------------------------------------------------------------------------------------


def test_safetensors_keep_weights_config_and_metadata(tmp_path: Path) -> None:
    config, path = load_preset(LITE), tmp_path / "w.safetensors"
    save_weights(path, tiny_state(), config, {"epoch": 3})
    loaded = load_weights(path)
    assert state_sha256(loaded.state) == state_sha256(tiny_state())
    assert config_from_dict(loaded.metadata["config"]) == config
    assert tuple(loaded.metadata["classes"]) == config.classes
    assert loaded.metadata["epoch"] == 3
    assert os.listdir(tmp_path) == [path.name]  # noqa: PTH208


def test_tied_and_strided_tensors_are_written(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    save_weights(tmp_path / "w.safetensors", {"a": weight, "b": weight, "c": weight.T}, None)
    state = load_weights(tmp_path / "w.safetensors").state
    assert torch.equal(state["b"], weight)
    assert torch.equal(state["c"], weight.T)


def test_converting_recognises_the_preset(tmp_path: Path) -> None:
    state = lite_weights().state
    source = saved(tmp_path / "lite.pth", {"state_dict": state, "meta": {"epoch": 1, "config": "old text"}})
    converted = convert_weights(source, tmp_path / "lite.safetensors")
    assert config_from_dict(converted.metadata["config"]).name == LITE
    assert converted.metadata["converted_from"] == "lite.pth"
    assert converted.metadata["mmdet_config"] == "old text"
    assert converted.metadata["epoch"] == 1
    assert state_sha256(converted.state) == state_sha256(state)


def test_converting_weights_of_no_preset_keeps_their_classes(tmp_path: Path) -> None:
    converted = convert_weights(MMENGINE_FILE, tmp_path / "w.safetensors")
    assert "config" not in converted.metadata
    assert converted.metadata["classes"] == ["a", "b"]


def test_converting_to_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"must end in \.safetensors"):
        convert_weights(MMENGINE_FILE, tmp_path / "w.pth")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be written"):
        save_weights(tmp_path / "absent" / "w.safetensors", tiny_state(), None)


def test_the_state_hash_is_of_names_and_values_not_of_order() -> None:
    state = tiny_state()
    assert state_sha256(dict(reversed(state.items()))) == state_sha256(state)
    assert state_sha256({**state, "neck.a.bias": torch.tensor([1.0, -2.5])}) != state_sha256(state)
    assert state_sha256({"x" + key: tensor for key, tensor in state.items()}) != state_sha256(state)
    assert state_sha256({key: tensor.double() for key, tensor in state.items()}) != state_sha256(state)
    assert len(state_sha256({"counter": torch.tensor(3)})) == 64


def test_a_training_checkpoint_gives_its_averaged_weights(tmp_path: Path) -> None:
    config = {"classes": ["person"]}
    average = {"updates": 3, "state": {"a.weight": torch.ones(2)}}
    content = {"step": 3, "spec": {}, "config": config, "model": {"a.weight": torch.zeros(2)}, "average": average}
    torch.save(content, tmp_path / "checkpoint.pt")
    loaded = load_weights(tmp_path / "checkpoint.pt")
    assert torch.equal(loaded.state["a.weight"], torch.ones(2))
    assert (loaded.metadata["classes"], loaded.metadata["steps"]) == (["person"], 3)
