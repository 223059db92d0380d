"""Shards without files for the model's queue: images of any shape, and a segmenter that only records its batches."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from htc_model.structures import RawDetections
from pipeline.messages import ImageFailure
from pipeline.worker.batching import BatchSize
from pipeline.worker.commit_claim import AbandonedError
from pipeline.worker.segmenter import DecodedImage, ImagePart

Shape = tuple[int, int]


class FakeSegmenter:
    """Records the batches as lists of (shard, position); the padded shape of an image is its own.

    on_batch: called with each batch's number, from 0, before it ends; may raise.
    """

    def __init__(self, batch_size: int, on_batch: Callable[[int], None] | None = None) -> None:
        self.batch_size = BatchSize(batch_size)
        self.batches: list[list[tuple[int, int]]] = []
        self.staged: list[object] = []
        self._on_batch = on_batch

    def padded_shape(self, image: DecodedImage) -> Shape:
        height, width = image.pixels.shape[:2]
        return height, width

    def segment(
        self,
        images: Sequence[DecodedImage],
        *,
        watch: Callable[[Sequence[DecodedImage]], AbstractContextManager[None]],
        staged: object = None,
    ) -> Iterator[tuple[DecodedImage, RawDetections | ImageFailure]]:
        with watch(images):
            self.staged.append(staged)
            self.batches.append([(image.shard, image.position) for image in images])
            if self._on_batch is not None:
                self._on_batch(len(self.batches) - 1)
        for image in images:
            yield image, detections_of(image)


def detections_of(image: DecodedImage) -> RawDetections:
    """Return a detection that names the image: its score is the first pixel's value."""
    score = float(image.pixels[0, 0, 0])
    height, width = image.pixels.shape[:2]
    return RawDetections(torch.zeros(1, 4), torch.tensor([score]), torch.zeros(1), None, (height, width))


@dataclass
class FakeShard:
    """A shard of images of the given shapes, as owner and as source of its images.

    gates: by position, what must be set before the image is there; as if it were still being read.
    fails_at: its loading raises OSError in place of this image.
    is_abandoned: whether the attempt is not needed any more.
    results: the outcomes so far, by position. given_back: positions whose pixels are dropped.
    asked: set when the queue has asked for an image that was not there.
    position: the next image. needs: what it still needs.
    """

    index: int
    shapes: Sequence[Shape]
    gates: dict[int, threading.Event] = field(default_factory=dict)
    fails_at: int | None = None
    is_abandoned: bool = False
    results: dict[int, RawDetections | ImageFailure] = field(default_factory=dict)
    given_back: list[int] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    seconds: float = 0.0
    position: int = 0
    needs: Literal["read", "decode"] = "read"

    def check(self) -> None:
        if self.is_abandoned:
            raise AbandonedError

    def take_result(self, part: ImagePart, outcome: RawDetections | ImageFailure) -> None:
        assert part.position not in self.results
        self.results[part.position] = outcome

    def take_seconds(self, seconds: float) -> None:
        self.seconds += seconds

    def give_back(self, parts: Sequence[ImagePart]) -> None:
        self.given_back.extend(part.position for part in parts)

    @property
    def awaits(self) -> Literal["read", "decode"]:
        return self.needs

    def wait_ready(self, timeout_s: float | None) -> bool:
        gate = self.gates.get(self.position)
        if gate is None:
            return True
        if not gate.is_set():
            self.asked.set()
        return gate.wait(timeout_s)

    def next(self) -> DecodedImage | None:
        assert self.wait_ready(60)
        if self.position == self.fails_at:
            raise OSError(f"shard {self.index} cannot be read")
        if self.position == len(self.shapes):
            return None
        position, self.position = self.position, self.position + 1
        pixels = np.full((*self.shapes[position], 3), self.mark(position), np.uint8)
        return DecodedImage(position, f"{self.index}/{position}", pixels, self.index)

    def mark(self, position: int) -> int:
        return (31 * self.index + position) % 256
