"""CUDA graphs of inference plans: a plan whose shape comes often is recorded once, and then launched as a whole.

A graph saves the launch of hundreds of kernels, a few microseconds of Python each. Recording costs some runs and
memory, so a plan is recorded when its key comes for the third time, and the least recently used of more than
`MAX_PLANS` is dropped. Where recording fails, that plan stays eager, with the same results. torch.compile instead of,
or inside, a graph: not measured, hence not used.

All graphs share one memory pool. A plan's features exist only from its box part to its mask part, so another plan may
use their memory: `boxes` and `masks` of one batch must follow each other, on one thread. What `masks` returns is a
copy.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from htc_model.inference.plan import BoxState, InferencePlan, StaticDetections

__all__ = ["Capturer", "CudaCapturer", "GraphCache", "Recording"]

log = logging.getLogger(__name__)

CAPTURE_AT = 3
MAX_PLANS = 16
# Keys that are counted but not recorded; 27 padded shapes were seen in 256 images of COCO's sizes.
_MAX_COUNTED = 1024
# cuDNN and Triton choose and compile kernels in the first run; the second allocates as the recorded one will.
_WARM_UPS = 2

T = TypeVar("T")


@dataclass(frozen=True)
class Recording(Generic[T]):
    """A recorded call.

    replay: computes it again, from the values its inputs now have, into `outputs`.
    outputs: what the call returned; the same tensors at every replay.
    reset: frees the recording's memory; `outputs` must not be read afterwards.
    """

    replay: Callable[[], None]
    outputs: T
    reset: Callable[[], None]


class Capturer(Protocol):
    """Records calls on a device."""

    def capture(self, call: Callable[[], T]) -> Recording[T]:
        """Record a call that takes and returns tensors at fixed addresses.

        Raises:
            RuntimeError: it cannot be recorded, for instance because it reads from the device or memory is full.
        """


class CudaCapturer:
    """Records CUDA graphs on one device, all in one memory pool.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, call: Callable[[], T]) -> Recording[T]:
        """Run the call on a stream of its own to warm up, then record it."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                call()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the threads that upload and encode may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = call()
        return Recording(graph.replay, outputs, graph.reset)


@dataclass(frozen=True)
class _RecordedPlan:
    """A plan's recordings: the box part, and the mask part for each bucket.

    plan: kept, because the recordings read its anchors. inputs: what the box part reads. state: its outputs.
    """

    plan: InferencePlan
    inputs: tuple[Tensor, ...]
    boxes: Recording[BoxState]
    state: BoxState
    masks: dict[int, Recording[StaticDetections]]

    def reset(self) -> None:
        _reset([*self.masks.values(), self.boxes])


class GraphCache:
    """Runs plans, recorded ones where they are worth it.

    Args:
        capturer: records calls; None never records.
        capture_at: a plan is recorded when its key comes this often.
        max_plans: plans that are recorded at one time.

    Attributes:
        failures: how many plans could not be recorded.
        replays: how many batches were computed by recordings. recorded: how many plans were recorded.
    """

    def __init__(self, capturer: Capturer | None, *, capture_at: int = CAPTURE_AT, max_plans: int = MAX_PLANS) -> None:
        self._capturer = capturer
        self._capture_at = capture_at
        self._max_plans = max_plans
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        self._recorded: OrderedDict[Hashable, _RecordedPlan] = OrderedDict()
        self._eager: set[Hashable] = set()
        self.failures = 0
        self.replays = 0
        self.recorded = 0

    @property
    def keys(self) -> list[Hashable]:
        """The keys of the recorded plans, the least recently used first."""
        return list(self._recorded)

    def boxes(self, key: Hashable, plan: InferencePlan, *inputs: Tensor) -> BoxState:
        """Run `plan.boxes(*inputs)`.

        Args:
            key: equal for equal plans, for instance (padded shape, batch, precision).
            plan: its `network` and other settings belong to the key.
            inputs: of equal shapes for equal keys.

        Returns:
            The state for `masks`; valid until the next call of `boxes`.
        """
        found = self._recorded.get(key)
        if found is None and self._is_due(key):
            found = self._record(key, plan, inputs)
        if found is None:
            return plan.boxes(*inputs)
        self._recorded.move_to_end(key)
        for static, given in zip(found.inputs, inputs, strict=True):
            static.copy_(given, non_blocking=True)
        found.boxes.replay()
        self.replays += 1
        return found.state

    def masks(self, key: Hashable, plan: InferencePlan, state: BoxState, bucket: int) -> StaticDetections:
        """Run `plan.masks(state, bucket)` on what `boxes` has returned for the same key; the result is a copy.

        Of a box-only plan, which has no buckets, the detections are returned.
        """
        found = self._recorded.get(key)
        if not plan.mask_buckets:
            return _cloned(state.detections)
        if found is None or state is not found.state:
            return plan.masks(state, bucket)
        recording = found.masks[bucket]
        recording.replay()
        return _cloned(recording.outputs)

    def clear(self) -> None:
        """Drop every recording, for instance because memory is full; keys are counted from the start again."""
        for plan in self._recorded.values():
            plan.reset()
        self._recorded.clear()
        self._seen.clear()

    def _is_due(self, key: Hashable) -> bool:
        if self._capturer is None or key in self._eager:
            return False
        self._seen[key] = self._seen.pop(key, 0) + 1
        if len(self._seen) > _MAX_COUNTED:
            self._seen.popitem(last=False)
        return self._seen[key] >= self._capture_at

    def _record(self, key: Hashable, plan: InferencePlan, inputs: Sequence[Tensor]) -> _RecordedPlan | None:
        """Record a plan; None when that fails, and then it is not tried again."""
        if self._capturer is None:
            return None
        while len(self._recorded) >= self._max_plans:
            _, oldest = self._recorded.popitem(last=False)
            oldest.reset()
        boxes: Recording[BoxState] | None = None
        masks: dict[int, Recording[StaticDetections]] = {}
        try:
            static = tuple(tensor.clone() for tensor in inputs)
            boxes = self._capturer.capture(lambda: plan.boxes(*static))
            outputs = boxes.outputs
            for bucket in plan.mask_buckets:
                masks[bucket] = self._capturer.capture(lambda bucket=bucket: plan.masks(outputs, bucket))  # type: ignore[misc]
        except RuntimeError as error:
            _reset([*masks.values(), *([boxes] if boxes else [])])
            self.failures += 1
            self._eager.add(key)
            log.warning("no CUDA graph of plan %s, which runs eagerly from now on: %s", key, _first_line(error))
            return None
        del self._seen[key]
        self.recorded += 1
        # Without the features, whose memory other recordings may then use.
        state = replace(outputs, pyramid=[], semantic_feat=None)
        recorded = _RecordedPlan(plan, static, replace(boxes, outputs=state), state, masks)
        self._recorded[key] = recorded
        return recorded


def _reset(recordings: Sequence[Recording[Any]]) -> None:
    for recording in recordings:
        recording.reset()


def _cloned(detections: StaticDetections) -> StaticDetections:
    values: dict[str, Any] = {field.name: getattr(detections, field.name) for field in fields(detections)}
    cloned: dict[str, Any] = {name: None if value is None else value.clone() for name, value in values.items()}
    return StaticDetections(**cloned)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
