"""DeviceUse: how busy a worker's GPU is, and how much of its memory the worker holds."""

import importlib
import logging
from typing import Any

import torch

log = logging.getLogger(__name__)


class DeviceUse:
    """Reads the use of one device; without a GPU there is nothing to read.

    The share comes from NVML, through the optional package nvidia-ml-py (extra `nvml`), and is of the whole GPU, other
    processes included. A part of a GPU (MIG) reports none.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml: Any = None
        self._handle: Any = None
        if device.type == "cuda":
            self._open()

    def read(self) -> tuple[float | None, int]:
        """Return the share of the last second or less in which the GPU computed, None if unknown, and bytes held."""
        if self._device.type != "cuda":
            return None, 0
        return self._share(), torch.cuda.memory_reserved(self._device)

    def _open(self) -> None:
        try:
            self._nvml = importlib.import_module("pynvml")
        except ImportError:
            # An optional package; docs/monitoring.md names it.
            return
        try:
            self._nvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(self._device).uuid}"
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self._nvml.NVMLError as error:
            log.info("NVML does not report how busy the GPU is: %s", error)

    def _share(self) -> float | None:
        if self._handle is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100
        except self._nvml.NVMLError as error:
            log.info("NVML does not report how busy the GPU is: %s", error)
            self._handle = None
            return None
