"""The upload lane with a device whose copies and computations end when the test says so."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.worker.error_boundaries import DeviceLostError
from pipeline.worker.model_queue import ModelQueue
from pipeline.worker.upload_lane import UploadLane
from pipeline.worker.watchdog import Watchdog
from tests.support.fakes.model_feeds import FakeSegmenter, FakeShard

PATIENCE_S = 60.0


class SlowUpload:
    """A copy that is under way until `ended` is set."""

    def __init__(self, device: "SlowDevice", number: int, slot: int, images: Sequence[Any]) -> None:
        self.slot = slot
        self.ended = threading.Event()
        self._device, self._number, self._images = device, number, [image.copy() for image in images]

    def receive(self) -> list[Tensor]:
        assert self.ended.wait(PATIENCE_S)
        self._device.note(f"received {self._number}")
        return [torch.from_numpy(image) for image in self._images]


class SlowDevice:
    """Records what happens in which order. errors: by the number of an upload, what it raises."""

    def __init__(self, *, is_held: bool = False, errors: dict[int, Exception] | None = None) -> None:
        self.uploads: list[SlowUpload] = []
        self.events: list[str] = []
        self.change = threading.Condition()
        self.threads: set[str] = set()
        self._is_held = is_held
        self._errors = errors or {}
        self._numbers = iter(range(10**6))

    def upload(self, slot: int, images: Sequence[np.ndarray]) -> SlowUpload:
        number = next(self._numbers)
        if number in self._errors:
            raise self._errors[number]
        upload = SlowUpload(self, number, slot, images)
        if not self._is_held:
            upload.ended.set()
        with self.change:
            self.uploads.append(upload)
        self.note(f"upload {number}")
        return upload

    def computing(self) -> AbstractContextManager[object]:
        self.threads.add(threading.current_thread().name)
        return nullcontext()

    def note(self, event: str) -> None:
        with self.change:
            self.events.append(event)
            self.change.notify_all()

    def await_event(self, event: str) -> None:
        with self.change:
            assert self.change.wait_for(lambda: event in self.events, PATIENCE_S), self.events


class Receiving(FakeSegmenter):
    """Receives each batch, computes until the test lets it go on, and checks that the right pixels have come."""

    def __init__(self, device: SlowDevice, batch_size: int, *, is_held: bool = False) -> None:
        super().__init__(batch_size)
        self.device = device
        self.go_on = threading.Semaphore(0 if is_held else 10**6)

    def segment(self, images: Any, *, watch: Any, staged: Any = None) -> Any:
        number = len(self.batches)
        if staged is not None:
            for tensor, image in zip(staged.receive(), images, strict=True):
                assert torch.equal(tensor, torch.from_numpy(image.pixels))
        self.device.note(f"compute {number}")
        assert self.go_on.acquire(timeout=PATIENCE_S)
        self.device.note(f"computed {number}")
        yield from super().segment(images, watch=watch, staged=staged)


def start(device: SlowDevice, segmenter: FakeSegmenter, shard: FakeShard, errors: list[BaseException]) -> Any:
    queue = ModelQueue(segmenter, Watchdog(None), max_bytes=10**6, runner=UploadLane(device))  # type: ignore[arg-type]
    feed = queue.open(shard)

    def run() -> None:
        try:
            queue.run(feed, shard)
        except (DeviceLostError, KeyError) as error:
            errors.append(error)
        finally:
            queue.close(feed)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(PATIENCE_S)
    return not thread.is_alive()


def test_the_next_batch_is_uploaded_while_one_computes() -> None:
    device = SlowDevice()
    segmenter = Receiving(device, 2, is_held=True)
    shard = FakeShard(0, [(2, 3)] * 10)
    thread = start(device, segmenter, shard, [])
    # The first batch computes until it is let go, and the next two are uploaded meanwhile: three slots.
    device.await_event("compute 0")
    device.await_event("upload 2")
    assert "computed 0" not in device.events
    assert not any(event.endswith(" 3") for event in device.events)
    segmenter.go_on.release()
    device.await_event("upload 3")
    assert "computed 1" not in device.events
    segmenter.go_on.release(10)
    assert ended(thread)
    assert device.uploads[3].slot == device.uploads[0].slot
    assert len({upload.slot for upload in device.uploads[:3]}) == 3
    computed = [event for event in device.events if event.startswith("compute ")]
    assert computed == [f"compute {number}" for number in range(5)]
    assert sorted(shard.results) == list(range(10))
    assert sorted(shard.given_back) == list(range(10))
    assert len(device.threads) == 1


def test_a_batch_computes_only_when_its_copy_has_ended() -> None:
    device = SlowDevice(is_held=True)
    segmenter = Receiving(device, 2)
    thread = start(device, segmenter, FakeShard(0, [(2, 3)] * 4), [])
    device.await_event("upload 1")
    # The later copy ends first, which changes nothing.
    device.uploads[1].ended.set()
    assert not any(event.startswith("compute") for event in device.events)
    device.uploads[0].ended.set()
    assert ended(thread)
    order = [event for event in device.events if not event.startswith("upload")]
    assert order == [f"{what} {number}" for number in range(2) for what in ("received", "compute", "computed")]


def test_images_that_cannot_be_uploaded_for_want_of_memory_are_left_to_the_segmenter() -> None:
    device = SlowDevice(errors={1: torch.OutOfMemoryError("CUDA out of memory (pretended)")})
    segmenter = Receiving(device, 2)
    shard = FakeShard(0, [(2, 3)] * 6)
    thread = start(device, segmenter, shard, [])
    assert ended(thread)
    assert [staged is None for staged in segmenter.staged] == [False, True, False]
    assert sorted(shard.results) == list(range(6))


def test_a_lost_device_ends_the_shard_and_leaves_the_slots_free() -> None:
    device = SlowDevice(errors={1: torch.AcceleratorError("CUDA error (pretended)")})
    errors: list[BaseException] = []
    shard = FakeShard(0, [(2, 3)] * 6)
    thread = start(device, Receiving(device, 2), shard, errors)
    assert ended(thread)
    assert [type(error) for error in errors] == [DeviceLostError]
    assert sorted(shard.given_back) == [0, 1, 2, 3]


def test_an_error_of_the_model_reaches_the_shard_whose_batches_are_in_the_lane() -> None:
    device = SlowDevice()

    class Failing(Receiving):
        def segment(self, images: Any, *, watch: Any, staged: Any = None) -> Any:
            raise KeyError("our bug")

    errors: list[BaseException] = []
    shard = FakeShard(0, [(2, 3)] * 20)
    thread = start(device, Failing(device, 2), shard, errors)
    assert ended(thread)
    assert [type(error) for error in errors] == [KeyError]
    assert shard.results == {}


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_two_shards_through_the_lane_get_all_their_results(batch_size: int) -> None:
    device = SlowDevice()
    queue = ModelQueue(
        Receiving(device, batch_size),  # type: ignore[arg-type]
        Watchdog(None),
        max_bytes=10**6,
        runner=UploadLane(device),
    )
    shards = [FakeShard(index, [(2, 3), (3, 2), (2, 3)] * 7) for index in range(2)]
    feeds = [queue.open(shard) for shard in shards]

    def run(index: int) -> None:
        queue.run(feeds[index], shards[index])
        queue.close(feeds[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        assert ended(thread)
    for shard in shards:
        assert sorted(shard.results) == list(range(21))
        for position, outcome in shard.results.items():
            assert float(outcome.scores[0]) == shard.mark(position)  # type: ignore[union-attr]
