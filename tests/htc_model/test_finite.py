"""Weights and activations that are not finite numbers are refused by name, wherever they come in or arise."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from htc_model.config import ModelConfigError, load_preset
from htc_model.finite import NonFiniteError, check_finite, non_finite_keys, unusable_keys
from htc_model.network.detector import HTC, build_model
from htc_model.preprocess import build_batch
from htc_model.structures import ImageBatch
from htc_model.training.pretrained import load_initial
from htc_model.weights.load import LoadedWeights, convert_weights, load_into, load_weights, save_weights
from htc_model.weights.openmmlab import WeightsError
from htc_model.weights.untrained import untrained_state

NAN, INFINITY = math.nan, math.inf
PLAIN = {"neck.a.weight": torch.ones(2, 3), "neck.a.bias": torch.zeros(2), "bn.running_var": torch.tensor([1.0, 0.0])}
PLAIN |= {"bn.num_batches_tracked": torch.tensor(3)}


def spoilt(key: str, value: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in PLAIN.items()}
    state[key] = state[key].to(dtype)
    state[key].view(-1)[-1] = value
    return state


def save_safetensors(path: Path, state: dict[str, Tensor]) -> Path:
    save_weights(path.with_suffix(".safetensors"), state, None)
    return path.with_suffix(".safetensors")


def save_bare(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def save_wrapped(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def save_training_checkpoint(path: Path, state: dict[str, Tensor]) -> Path:
    content = {"average": {"state": state}, "config": {"classes": ["a"]}, "step": 3}
    torch.save(content, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


SAVERS = [save_safetensors, save_bare, save_wrapped, save_training_checkpoint]


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize(
    ("key", "value", "dtype"),
    [
        ("neck.a.weight", NAN, torch.float32),
        ("neck.a.weight", INFINITY, torch.float16),
        ("neck.a.weight", -INFINITY, torch.bfloat16),
        ("neck.a.bias", 1e300, torch.float64),
        ("bn.running_var", NAN, torch.float32),
        ("bn.running_var", -1e-3, torch.float32),
    ],
)
def test_every_kind_of_file_with_such_a_value_is_refused_by_key(
    tmp_path: Path, save: Callable[[Path, dict[str, Tensor]], Path], key: str, value: float, dtype: torch.dtype
) -> None:
    path = save(tmp_path / "w", spoilt(key, value, dtype))
    with pytest.raises(WeightsError, match="finite") as caught:
        load_weights(path)
    assert key in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.unusable == (key,)
    with pytest.raises(WeightsError, match="finite"):
        convert_weights(path, tmp_path / "converted.safetensors")
    assert not (tmp_path / "converted.safetensors").exists()


@pytest.mark.parametrize("save", SAVERS)
def test_finite_weights_are_taken_whatever_their_type(
    tmp_path: Path, save: Callable[[Path, dict[str, Tensor]], Path]
) -> None:
    path = save(tmp_path / "w", spoilt("neck.a.weight", 65_504.0, torch.float16))
    assert load_weights(path).state["neck.a.weight"][-1, -1] == 65_504.0


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.tensor([0.0, NAN]).to_sparse()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"sparse.*a\.weight"):
        load_weights(tmp_path / "w.pth")


def test_a_hundred_such_keys_are_counted_and_the_first_named() -> None:
    model = build_model("htc_lite0_fpn")
    state = {key: torch.full_like(tensor, NAN) for key, tensor in model.state_dict().items() if tensor.ndim}
    counters = {key: tensor for key, tensor in model.state_dict().items() if not tensor.ndim}
    with pytest.raises(WeightsError, match=rf"holds {len(state)} tensors.*backbone\.conv_stem.* more") as caught:
        load_into(model, LoadedWeights("w", state | counters, {}, "0" * 64))
    assert set(caught.value.unusable) == set(state)


def test_weights_to_start_a_training_from_are_refused_too() -> None:
    model = build_model("htc_lite0_fpn")
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["neck.lateral_convs.0.conv.bias"][0] = NAN
    with pytest.raises(ModelConfigError, match=r"finite.*neck\.lateral_convs\.0\.conv\.bias"):
        load_initial(model, state)


def test_what_counts_as_finite() -> None:
    assert non_finite_keys({"a": torch.tensor([1.0]), "b": torch.tensor(2), "c": None, "d": torch.tensor([])}) == ()
    assert non_finite_keys({"a": torch.tensor([1.0, NAN]), "b": torch.tensor([-INFINITY])}) == ("a", "b")
    assert unusable_keys({"bn.running_var": torch.tensor([-1.0]), "bn.running_mean": torch.tensor([-1.0])}) == (
        "bn.running_var",
    )
    check_finite("scores", [])
    check_finite("scores", [torch.zeros(0, 4), torch.ones(3)])
    with pytest.raises(NonFiniteError, match="scores"):
        check_finite("scores", [torch.ones(3), torch.tensor(INFINITY)])


# --- activations -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch() -> ImageBatch:
    pixels = torch.randint(0, 255, (64, 96, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    config = load_preset("htc_lite0_fpn")
    return build_batch([pixels.numpy()], replace(config, resize=replace(config.resize, short_side=64, long_side=96)))


def lite() -> HTC:
    model = build_model(replace(load_preset("htc_lite0_fpn"), score_threshold=0.0)).eval()
    model.load_state_dict(untrained_state(model.state_dict()))
    return model


def test_the_network_is_not_disturbed_when_all_is_well(batch: ImageBatch) -> None:
    assert len(lite().infer(batch)[0].scores) > 0


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("neck.lateral_convs.0.conv", "proposal network"),
        ("rpn_head.rpn_cls", "proposal network"),
        ("rpn_head.rpn_reg", "proposal network"),
        ("roi_head.bbox_head.0.fc_cls", "stage 1"),
        ("roi_head.bbox_head.1.fc_cls", "stage 2"),
        ("roi_head.bbox_head.2.fc_reg", "stage 3"),
        ("roi_head.mask_head.2.conv_logits", "mask logits"),
    ],
)
@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_activations_that_overflow_raise_where_they_arise(
    batch: ImageBatch, module: str, words: str, value: float
) -> None:
    """Before: NaN is above no threshold, so that the image came out with no detections, and `ok`."""
    model = lite()

    def spoil(_module: torch.nn.Module, _inputs: object, output: Tensor) -> Tensor:
        spoilt = output.clone()
        spoilt[(0,) * spoilt.ndim] = value
        return spoilt

    target = model.get_submodule(module)
    if module.endswith("conv_logits"):
        # `predict_class` reads the layer's parameters, and does not call it.
        with torch.no_grad():
            assert isinstance(target.bias, Tensor)
            target.bias.fill_(value)
    else:
        target.register_forward_hook(spoil)
    with pytest.raises(NonFiniteError, match=words):
        model.infer(batch)


@pytest.mark.parametrize(
    "parameters",
    [
        ["roi_head.bbox_head.0.fc_cls.bias", "roi_head.bbox_head.1.fc_cls.bias", "roi_head.bbox_head.2.fc_cls.bias"],
        ["rpn_head.rpn_reg.bias"],
        ["roi_head.bbox_head.1.fc_reg.bias"],
    ],
    ids=["sum of logits", "proposals", "boxes"],
)
def test_finite_weights_whose_results_overflow_raise_too(batch: ImageBatch, parameters: list[str]) -> None:
    model = lite()
    with torch.no_grad():
        for name in parameters:
            model.get_parameter(name).view(-1)[0] = 3e38
    with pytest.raises(NonFiniteError):
        model.infer(batch)


def test_bfloat16_that_overflows_raises_too(batch: ImageBatch) -> None:
    model = lite()
    with torch.no_grad():
        model.roi_head.box_heads[0].fc_cls.weight.fill_(3e38)
    with pytest.raises(NonFiniteError), torch.autocast("cpu", torch.bfloat16):
        model.infer(batch)
