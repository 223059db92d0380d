"""How busy a worker's GPU is: through NVML where it is there, and never a reason to fail."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.worker.device_use import DeviceUse


class NVMLError(Exception):
    """As NVML's Python package raises it."""


class FakeNvml:
    """NVML with one GPU."""

    NVMLError = NVMLError

    def __init__(self, *, refuses: str = "") -> None:
        self.refuses = refuses
        self.asked: list[str] = []

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        if self.refuses == "init":
            raise NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 - NVML's name
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802 - NVML's name
        if self.refuses == "use":
            raise NVMLError("not supported")
        return SimpleNamespace(gpu=83, memory=20)


def use(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> DeviceUse:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab-34"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * 2**30)
    return DeviceUse(torch.device("cuda"))


def test_the_share_is_of_the_workers_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    assert use(monkeypatch, nvml).read() == (0.83, 5 * 2**30)
    assert nvml.asked == ["GPU-12ab-34"]


@pytest.mark.parametrize("nvml", [None, FakeNvml(refuses="init"), FakeNvml(refuses="use")])
def test_without_nvml_only_the_memory_is_known(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None) -> None:
    found = use(monkeypatch, nvml)
    assert found.read() == (None, 5 * 2**30)
    # It is not asked again.
    assert found.read() == (None, 5 * 2**30)


def test_a_cpu_has_nothing_to_report() -> None:
    assert DeviceUse(torch.device("cpu")).read() == (None, 0)
