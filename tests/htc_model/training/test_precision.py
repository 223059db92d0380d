"""Which precision a training uses, and that the loss scale changes nothing but overflowing steps."""

import pytest
import torch

from htc_model.config import ModelConfigError
from htc_model.training.precision import autocast, build_scaler, settle_precision
from htc_model.training.spec import TrainingSpec
from tests.support.builders.training_data import small_spec

CPU = torch.device("cpu")


def test_auto_is_fp32_on_a_cpu_and_half_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle_precision("auto", CPU) == "fp32"
    for has_bf16, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has_bf16: has)
        assert settle_precision("auto", torch.device("cuda")) == expected


def test_what_the_device_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelConfigError, match="fp16 needs a GPU"):
        settle_precision("fp16", CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with pytest.raises(ModelConfigError, match="does not compute with bf16"):
        settle_precision("bf16", torch.device("cuda"))


def test_older_names_are_understood() -> None:
    assert small_spec("out", precision="float32").precision == "fp32"
    assert small_spec("out", precision="bfloat16").precision == "bf16"
    with pytest.raises(ValueError, match="precision"):
        TrainingSpec.model_validate(small_spec("out").model_dump() | {"precision": "int8"})


def test_bf16_computes_in_bf16_and_fp32_does_not() -> None:
    layer, pixels = torch.nn.Linear(4, 4), torch.ones(1, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(precision, CPU):
            assert layer(pixels).dtype == dtype


def test_only_fp16_scales_its_loss() -> None:
    assert build_scaler("fp16", CPU).is_enabled()
    assert not build_scaler("bf16", CPU).is_enabled()
    assert not build_scaler("fp32", CPU).is_enabled()
