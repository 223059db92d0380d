"""Models without a network whose behaviour a test sets, for tests of everything around the network.

The deeds say what happens to images of a (height, width). Every other image gets one detection, the whole image, of a
category that depends on its size; and on request a semantic map, a person on the left and sky on the right.
"""

import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image

from htc_model.config import ModelConfig, load_preset
from htc_model.finite import NonFiniteError
from htc_model.structures import ImageBatch, RawDetections, SemanticMap
from pipeline.job_spec.model import ModelSection
from tests.support.fakes.in_process_pool import Death

Raising = Literal["raise", "oom", "device_lost", "die"]
Ending = Literal["exit", "kill", "segfault", "hang", "hang_mute", "die_once", "kill_once", "hang_once"]
Spoiling = Literal["nan_scores", "nan_boxes", "infinite_masks", "overflow", "nan_map"]
Deed = Raising | Ending | Spoiling | Literal["miscount"]
Size = tuple[int, int]
# Channels of the published networks: person and sky-other, of the ids 1 and 157.
PERSON, SKY = 0, 156


@dataclass
class FakeModel:
    """A segmentation model without a network.

    deeds: what to do on an image of this size.
    max_batch: more images than this are out of memory.
    delay_s: seconds per batch. slow_while: a file; once there is none of this name, no batch is delayed any more.
    marks: a folder for the mark with which "kill_once" records that it has killed.
    batch_sizes: of all batches so far. busiest: the most calls of `infer` at once.
    """

    config: ModelConfig
    deeds: Mapping[Size, Deed] = field(default_factory=dict)
    max_batch: int = 1000
    delay_s: float = 0.0
    slow_while: str = ""
    marks: str = ""
    batch_sizes: list[int] = field(default_factory=list)
    busy: int = 0
    busiest: int = 0

    def infer(self, batch: ImageBatch) -> list[RawDetections]:
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            self.batch_sizes.append(len(batch))
            if len(batch) > self.max_batch:
                raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
            if not self.slow_while or Path(self.slow_while).exists():
                time.sleep(self.delay_s)
            found = [self._detect(size) for size in batch.original_sizes]
            if batch.wants_semantic:
                found = [replace(raw, semantic=(self._see(raw.original_size),)) for raw in found]
            return found * 2 if "miscount" in map(self.deeds.get, batch.original_sizes) else found
        finally:
            self.busy -= 1

    def _detect(self, size: Size) -> RawDetections:
        deed = self.deeds.get(size)
        self._do(deed)
        height, width = size
        return RawDetections(
            boxes_xyxy=torch.tensor([[0.0, 0.0, float(width), math.nan if deed == "nan_boxes" else float(height)]]),
            scores=torch.tensor([math.nan if deed == "nan_scores" else 0.9]),
            labels=torch.tensor([(height + width) % len(self.config.classes)]),
            mask_probs=torch.full((1, 28, 28), math.inf if deed == "infinite_masks" else 1.0),
            original_size=size,
        )

    def _see(self, size: Size) -> SemanticMap:
        logits = torch.zeros(self.config.semantic_classes, 1, 2)
        logits[PERSON, 0, 0] = math.nan if self.deeds.get(size) == "nan_map" else 1.0
        logits[SKY, 0, 1] = 1.0
        # The two cells are about the first pixel and the last of a resized image of nine.
        return SemanticMap(logits, (1, 9), 8)

    def _do(self, deed: Deed | None) -> None:
        if deed in ("kill_once", "die_once", "hang_once"):
            mark = Path(self.marks) / "killed"
            if mark.exists():
                return
            mark.touch()
        errors: dict[str, BaseException] = {
            "raise": ZeroDivisionError("on purpose"),
            "oom": torch.OutOfMemoryError("CUDA out of memory (pretended)"),
            "device_lost": torch.AcceleratorError("CUDA error: unspecified launch failure (pretended)"),
            "overflow": NonFiniteError("mask logits are not finite numbers (NaN or infinity)"),
            "die": Death(),
            "die_once": Death(),
        }
        if deed in errors:
            raise errors[deed]
        end_process(deed)


def end_process(deed: Deed | None) -> None:
    """End or block this process in a way that no `except` catches."""
    if deed == "exit":
        os._exit(7)
    if deed == "segfault":
        ctypes.string_at(0)
    if deed in ("hang", "hang_once"):
        threading.Event().wait()
    if deed == "hang_mute":
        # PyDLL keeps the interpreter's lock, so that no other thread can answer.
        ctypes.PyDLL(None).sleep(3600)
    if deed in ("kill", "kill_once"):
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()


@dataclass(frozen=True)
class LoadFake:
    """A `load_model` that survives pickling."""

    deeds: Mapping[Size, Deed] = field(default_factory=dict)
    delay_s: float = 0.0
    slow_while: str = ""
    marks: str = ""
    start_deed: Literal["", "value_error", "runtime_error", "exit", "hang_once"] = ""
    # With whatever deeds, it is one model.
    identity: ClassVar[str] = "fake"

    def __call__(self, section: ModelSection) -> FakeModel:
        if self.start_deed == "value_error":
            raise ValueError("These weights are of another network.")
        if self.start_deed == "runtime_error":
            raise torch.AcceleratorError("the card is taken")
        if self.start_deed == "exit":
            os._exit(7)
        if self.start_deed == "hang_once" and not (mark := Path(self.marks) / "hung").exists():
            mark.touch()
            threading.Event().wait()
        return FakeModel(
            load_preset(section.preset),
            self.deeds,
            delay_s=self.delay_s,
            slow_while=self.slow_while,
            marks=self.marks,
        )


def write_image(path: Path, size: Size) -> Path:
    """Write a PNG of (height, width), its colours a function of its name."""
    height, width = size
    seed = sum(path.name.encode())
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def write_images(folder: Path, count: int, size: Size = (32, 48)) -> list[Path]:
    """Write `count` small PNGs of one size."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write_image(folder / f"image-{number:03d}.png", size) for number in range(count)]
