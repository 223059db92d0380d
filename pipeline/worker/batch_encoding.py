"""Encodes the results of a batch apart from the model's thread: one pass over all of its masks, one copy to the host.

A thread of its own waits for the batch on the device, finds the runs of all masks (`htc_model.masks.batch_runs`) and
copies them back; their text is made here or, with `processes`, in another process, off this one's interpreter lock.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from htc_model.finite import NonFiniteError, check_finite
from htc_model.masks.batch_runs import MaskRuns, find_runs
from htc_model.masks.semantic_runs import encode_semantic
from htc_model.structures import Detections, RawDetections, Rle
from pipeline.worker.error_boundaries import DeviceLostError
from pipeline.worker.mask_text import TextProcesses

# Batches whose masks are worked on at once; the device does most of it.
THREADS = 2


@dataclass(frozen=True)
class PendingDetections:
    """One image's detections, with those of its batch on their way to the host.

    batch: of all of its images. place: the image's.
    raw: the same detections on the device, for a batch whose masks do not fit the memory.
    """

    batch: "Future[list[Detections | NonFiniteError]]"
    place: int
    raw: RawDetections

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the decoded image."""
        return self.raw.original_size

    def result(self) -> Detections:
        """Wait for the batch.

        Raises:
            NonFiniteError: the image's boxes, scores or masks are not all finite.
            torch.OutOfMemoryError: the batch's masks do not fit the memory.
            DeviceLostError: the device is unusable.
        """
        found = self.batch.result()[self.place]
        if isinstance(found, NonFiniteError):
            raise found
        return found


class BatchEncoder:
    """Encodes batches on threads of its own; on any device."""

    def __init__(self, device: torch.device, *, processes: int = 0) -> None:
        """`processes`: that make the masks' text; 0 makes it here."""
        self._device = device
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="masks")
        self._local = threading.local()
        self._texts = TextProcesses(processes) if processes else None

    def submit(self, raws: Sequence[RawDetections]) -> list[PendingDetections]:
        """Begin to encode a batch; called on the model's thread, on whose stream the detections are computed."""
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        batch = self._threads.submit(self._encode, raws, event)
        return [PendingDetections(batch, place, raw) for place, raw in enumerate(raws)]

    def close(self) -> None:
        """End the threads and processes."""
        self._threads.shutdown()
        if self._texts is not None:
            self._texts.close()

    @torch.inference_mode()
    def _encode(
        self, raws: Sequence[RawDetections], event: "torch.cuda.Event | None"
    ) -> list[Detections | NonFiniteError]:
        try:
            with self._stream(raws, event):
                return self._encode_here(raws)
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error

    def _stream(
        self, raws: Sequence[RawDetections], event: "torch.cuda.Event | None"
    ) -> AbstractContextManager[object]:
        """Enter this thread's stream, which waits for the batch."""
        if event is None:
            return nullcontext()
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream = self._local.stream
        stream.wait_event(event)
        # The model's stream may reuse their memory only after this one has read it.
        for raw in raws:
            maps = [seen.logits for seen in raw.semantic or ()]
            for tensor in (raw.boxes_xyxy, raw.scores, raw.labels, raw.mask_probs, raw.mask_boxes_xyxy, *maps):
                if tensor is not None:
                    tensor.record_stream(stream)
        return torch.cuda.stream(stream)

    def _encode_here(self, raws: Sequence[RawDetections]) -> list[Detections | NonFiniteError]:
        counts = [len(raw.scores) for raw in raws]
        boxes = torch.cat([raw.boxes_xyxy.float() for raw in raws])
        probs = [raw.mask_probs for raw in raws if raw.mask_probs is not None]
        masks: list[Rle] | None = None
        are_finite = torch.ones(len(boxes), dtype=torch.bool)
        if len(probs) == len(raws):
            maps = torch.cat(probs).float()
            sizes = [raw.original_size for raw in raws for _ in range(len(raw.scores))]
            mask_boxes = torch.cat([raw.mask_boxes.float() for raw in raws])
            pending = find_runs(maps, mask_boxes, sizes) if sizes else None
            are_finite = maps.flatten(1).isfinite().all(dim=1).cpu()
            masks = [] if pending is None else self._text(pending.wait())
        host_boxes = boxes.cpu()
        scores = torch.cat([raw.scores.float() for raw in raws]).cpu()
        labels = torch.cat([raw.labels for raw in raws]).cpu()
        parts_of = (each.split_with_sizes(counts) for each in (host_boxes, scores, labels, are_finite))
        found: list[Detections | NonFiniteError] = []
        start = 0
        for raw, count, *parts in zip(raws, counts, *parts_of, strict=True):
            own = None if masks is None else masks[start : start + count]
            start += count
            found.append(_checked(*parts, masks=own, raw=raw))
        return found

    def _text(self, runs: MaskRuns) -> list[Rle]:
        return runs.encode() if self._texts is None else self._texts.encode(runs)


def _checked(
    boxes: Tensor, scores: Tensor, labels: Tensor, are_finite: Tensor, *, masks: list[Rle] | None, raw: RawDetections
) -> Detections | NonFiniteError:
    try:
        check_finite("scores", [scores])
        check_finite("boxes", [boxes])
        if not bool(are_finite.all()):
            raise NonFiniteError("masks are not finite numbers (NaN or infinity)")
        semantic = None if raw.semantic is None else encode_semantic(raw.semantic, raw.original_size)
    except NonFiniteError as error:
        return error
    return Detections(boxes, scores, labels, masks, semantic)
