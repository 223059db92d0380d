"""Takes batches to an accelerator such that the next one is uploaded while this one computes.

    shard's thread:   pixels into a slot's pinned memory, copy to the device begins     (copy stream)
    model's thread:   waits for the copy on the device, resizes, computes               (compute stream)
    masks' threads:   wait for the results, find the masks' runs, copy them back        (a stream of each thread)

A ring of three slots: one fills, one computes, one is being emptied or waits. Streams are ordered by events on the
device; the host waits only for a free slot. On a CPU there is no lane (`model_queue.DirectRunner`): nothing is copied.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.worker.error_boundaries import DeviceLostError
from pipeline.worker.model_queue import Batch
from pipeline.worker.uploads import Upload

SLOTS = 3
# Of one slot: as many as wait for their batch at most (half of shard_pipeline.AHEAD_BYTES).
MOST_PINNED_BYTES = 192 * 2**20


class LaneDevice(Protocol):
    """What the lane needs of an accelerator; tests give it one whose copies end when they say so."""

    def upload(self, slot: int, images: Sequence[NDArray[np.uint8]]) -> Upload | None:
        """Begin to copy images to the device, through the memory of a slot that is free; returns before the end.

        None for images that are too large for a slot: the segmenter uploads them.

        Raises:
            torch.OutOfMemoryError: they do not fit.
            torch.AcceleratorError: the device is unusable.
        """

    def computing(self) -> AbstractContextManager[object]:
        """Entered around the computation of a batch, on the model's thread."""


class UploadLane:
    """A `model_queue.Runner` with a thread of its own for the model."""

    def __init__(self, device: LaneDevice, *, slots: int = SLOTS) -> None:
        """`slots`: batches that are uploaded and not yet computed, at most."""
        self._device = device
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._change = threading.Condition()
        self._free = list(reversed(range(slots)))
        self._slots = slots

    @property
    def is_idle(self) -> bool:
        """Whether no batch is on its way."""
        with self._change:
            return len(self._free) == self._slots

    def submit(self, batch: Batch, run: Callable[[Batch, Upload | None], None]) -> None:
        """Begin to upload a batch when a slot is free; `run` is called after the batches before it.

        What `run` raises has reached the batch's shards already and goes no further.

        Raises:
            DeviceLostError: the device is unusable.
        """
        with self._change:
            self._change.wait_for(lambda: bool(self._free))
            slot = self._free.pop()
        try:
            upload = self._upload(slot, batch)
            self._model.submit(self._run, slot, upload, batch, run)
        except BaseException:
            self._give_back(slot)
            raise

    def _upload(self, slot: int, batch: Batch) -> Upload | None:
        try:
            return self._device.upload(slot, [item.image.pixels for item in batch])
        except torch.OutOfMemoryError:
            # The segmenter builds it, and halves it if need be.
            return None
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error

    def _run(self, slot: int, upload: Upload | None, batch: Batch, run: Callable[[Batch, Upload | None], None]) -> None:
        try:
            with self._device.computing():
                run(batch, upload)
        finally:
            del upload
            self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        with self._change:
            self._free.append(slot)
            self._change.notify_all()


class CudaLane:
    """A `LaneDevice` on CUDA: pinned memory for each slot, a stream for copies and one for the model."""

    def __init__(self, device: torch.device, *, slots: int = SLOTS) -> None:
        # The model's weights were prepared on another stream.
        torch.cuda.synchronize(device)
        self._device = device
        self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._computing = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pinned = [torch.empty(0, dtype=torch.uint8) for _ in range(slots)]
        self._copied: list[torch.cuda.Event | None] = [None] * slots

    def upload(self, slot: int, images: Sequence[NDArray[np.uint8]]) -> "CudaUpload | None":
        """Copy the images one after the other into pinned memory, and from there to the device in one piece."""
        sizes = [image.size for image in images]
        if sum(sizes) > MOST_PINNED_BYTES:
            return None
        pinned = self._room(slot, sum(sizes))
        for part, image in zip(pinned[: sum(sizes)].split_with_sizes(sizes), images, strict=True):
            np.copyto(part.numpy().reshape(image.shape), image)
        with torch.cuda.stream(self._copying):
            uploaded = pinned[: sum(sizes)].to(self._device, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._copied[slot] = event
        shapes = [image.shape for image in images]
        return CudaUpload(uploaded, shapes, event)

    def computing(self) -> AbstractContextManager[object]:
        """Make the model's stream current."""
        return torch.cuda.stream(self._computing)

    def _room(self, slot: int, size: int) -> Tensor:
        """Return the slot's pinned memory, enlarged if need be, when the copy before is out of it."""
        event = self._copied[slot]
        if event is not None:
            event.synchronize()
        if len(self._pinned[slot]) < size:
            self._pinned[slot] = torch.empty(min(2 * size, MOST_PINNED_BYTES), dtype=torch.uint8, pin_memory=True)
        return self._pinned[slot]


class CudaUpload:
    """Images of one batch in one piece of the device's memory."""

    def __init__(self, uploaded: Tensor, shapes: Sequence[tuple[int, ...]], event: "torch.cuda.Event") -> None:
        self._uploaded = uploaded
        self._shapes = shapes
        self._event = event

    def receive(self) -> list[Tensor]:
        """Have the current stream wait for the copy, and cut it into the images."""
        stream = torch.cuda.current_stream(self._uploaded.device)
        stream.wait_event(self._event)
        # It was allocated on the copy stream, which may reuse it only after this stream has read it.
        self._uploaded.record_stream(stream)
        sizes = [int(np.prod(shape)) for shape in self._shapes]
        parts = self._uploaded.split_with_sizes(sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
