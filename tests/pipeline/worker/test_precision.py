"""What a spec's `precision` becomes in a worker, and that the worker reports it."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from htc_model.config import load_preset
from htc_model.inference.precision import PrecisionChoice
from htc_model.structures import ImageBatch, RawDetections
from pipeline.driver.run_job import worker_settings
from pipeline.job_spec.model import ModelSection
from pipeline.messages import WorkerReady
from pipeline.worker.segmenter import DecodedImage, Segmenter, settle_precision
from pipeline.worker.worker import Worker
from tests.support.fakes.models import FakeModel, LoadFake
from tests.support.fakes.shard_bench import spec_for

CUDA = torch.device("cuda")


class Watching(FakeModel):
    """Records the dtype of autocast during each inference, None without one."""

    dtypes: list[torch.dtype | None]

    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        self.dtypes = [*getattr(self, "dtypes", []), dtype]
        return super().infer(batch)


@pytest.mark.parametrize(("choice", "dtype"), [(None, None), ("fp32", None), ("bf16", torch.bfloat16)])
def test_a_network_runs_in_the_precision_that_was_settled(choice: str | None, dtype: torch.dtype | None) -> None:
    model = Watching(load_preset("htc_lite0_fpn"))
    settled = None if choice is None else PrecisionChoice(choice, "")  # type: ignore[arg-type]
    segmenter = Segmenter(model, torch.device("cpu"), precision=settled)
    list(segmenter.segment([DecodedImage(0, "a.jpg", np.zeros((30, 40, 3), np.uint8))]))
    assert model.dtypes == [dtype]


def test_auto_on_a_cpu_is_fp32_and_float32_is_float32_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    torch.backends.cudnn.allow_tf32 = True
    with caplog.at_level(logging.INFO):
        choice = settle_precision(ModelSection(), torch.device("cpu"))
    assert choice.precision == "fp32"
    assert not torch.backends.cudnn.allow_tf32
    assert "fp32, TF32 off; auto: cpu has no bfloat16" in caplog.text


def test_auto_on_a_card_looks_for_the_record_of_the_specs_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    asked: list[tuple[str, str, str]] = []

    def find(records: object, preset: str, weights_sha256: str, device: str) -> None:
        asked.append((preset, weights_sha256, device))

    monkeypatch.setattr("htc_model.inference.precision.find_record", find)
    demo = ModelSection(weights="demo")
    assert settle_precision(demo, CUDA).precision == "fp32"
    assert settle_precision(demo, CUDA, is_callers_model=True).precision == "fp32"
    (preset, weights, device), (_, of_caller, _) = asked
    assert (preset, len(weights), device, of_caller) == ("htc_lite0_fpn", 64, "cuda sm_90", "")


def test_a_worker_reports_it(tmp_path: Path) -> None:
    ready = Worker(worker_settings(spec_for(tmp_path), "r", LoadFake())).start()
    assert isinstance(ready, WorkerReady)
    assert ready.precision == "fp32, TF32 off; auto: cpu has no bfloat16 tensor cores"
