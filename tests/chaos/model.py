"""A fast model whose detections are a function of the pixels, so that a wrong byte becomes a wrong mask."""

import ctypes
import resource
import time
import zlib
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from htc_model.config import ModelConfig, ResizeConfig, load_preset
from htc_model.structures import ImageBatch, RawDetections
from pipeline.job_spec.model import ModelSection
from tests.chaos.plan import POISON_SIZE, Plan
from tests.chaos.sabotage import sabotage

MAX_INSTANCES = 3
# Small, so that a round spends no time on resizing.
RESIZE = ResizeConfig(long_side=96, short_side=64)


@dataclass
class ContentModel:
    """A segmentation model without a network."""

    config: ModelConfig
    plan: Plan

    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        time.sleep(self.plan.delay_s)
        if POISON_SIZE in batch.original_sizes:
            self._fail()
        return [
            self._detect(zlib.crc32(pixels[:, :height, :width].contiguous().numpy().tobytes()), size)
            for pixels, (height, width), size in zip(batch.pixels, batch.image_sizes, batch.original_sizes, strict=True)
        ]

    def _detect(self, seed: int, size: tuple[int, int]) -> RawDetections:
        random = torch.Generator().manual_seed(seed)
        count = 1 + seed % MAX_INSTANCES
        height, width = size
        corners = torch.rand(count, 2, 2, generator=random).sort(dim=1).values
        coarse = torch.rand(count, 1, 4, 4, generator=random)
        return RawDetections(
            boxes_xyxy=(corners * torch.tensor([width, height])).reshape(count, 4),
            scores=torch.rand(count, generator=random).sort(descending=True).values,
            labels=torch.randint(len(self.config.classes), (count,), generator=random),
            mask_probs=torch.nn.functional.interpolate(coarse, (28, 28), mode="bilinear").squeeze(1),
            original_size=size,
        )

    def _fail(self) -> None:
        if self.plan.poison == "segfault":
            ctypes.string_at(0)
        if self.plan.poison == "hang":
            time.sleep(3600)


@dataclass(frozen=True)
class LoadContentModel:
    """A `load_model` that survives pickling, and applies the plan's sabotage in the worker."""

    plan: Plan
    driver_pid: int
    # Whatever the sabotage, it is one model.
    identity: ClassVar[str] = "by content"

    def __call__(self, section: ModelSection) -> ContentModel:
        sabotage(self.plan, self.driver_pid)
        if self.plan.largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.plan.largest_file, resource.RLIM_INFINITY))
        return ContentModel(replace(load_preset(section.preset), resize=RESIZE), self.plan)
