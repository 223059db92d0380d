"""A worker's wall time by what its model did or waited for: each cause by itself, and together the whole time."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.messages import CAUSES, Cause, ShardResult
from pipeline.worker import shard_pipeline
from pipeline.worker.model_queue import ModelQueue
from pipeline.worker.model_time import ModelTime
from pipeline.worker.upload_lane import UploadLane
from pipeline.worker.watchdog import Watchdog
from tests.support.fakes.clock import HandClock
from tests.support.fakes.model_feeds import FakeSegmenter, FakeShard
from tests.support.fakes.models import write_images
from tests.support.fakes.shard_bench import Bench

PATIENCE_S = 20.0


class Gate:
    """Holds calls up until it is opened."""

    def __init__(self) -> None:
        self.is_open = threading.Event()

    def hold(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def held(*arguments: Any, **options: Any) -> Any:
            assert self.is_open.wait(PATIENCE_S)
            return function(*arguments, **options)

        return held


def await_cause(model_time: ModelTime, cause: Cause) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while model_time.so_far()[1] != cause:
        assert time.monotonic() < deadline, f"it is at {model_time.so_far()[1]}, not at {cause}"
        time.sleep(0.001)


def seconds_of(model_time: ModelTime) -> dict[Cause, float]:
    """Return the causes that took any time."""
    seconds, _, _ = model_time.so_far()
    return {cause: value for cause, value in zip(CAUSES, seconds, strict=True) if value}


def started(clock: HandClock) -> ModelTime:
    model_time = ModelTime(clock)
    model_time.started()
    return model_time


class InThread:
    """Runs a function in a thread of its own."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(function,))
        self._thread.start()

    def _run(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - carried over to the test, whatever it is
            self._errors.append(error)

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert self._errors == []


@pytest.mark.parametrize(
    ("cause", "place"),
    [
        ("read", "pipeline.worker.shard_pipeline.fetch_image"),
        ("decode", "pipeline.worker.shard_pipeline.decode_image"),
        ("infer", "pipeline.models.pixels.build_batch"),
        ("encode", "pipeline.worker.shard_pipeline.build_instance_rows"),
        ("write", "pipeline.worker.shard_processor.commit_shard"),
    ],
)
def test_what_holds_the_shard_up_gets_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Cause, place: str
) -> None:
    """Two of a worker's 100 seconds pass while it has no shard, the others while one step does not go on."""
    module, name = place.rsplit(".", 1)
    gate, clock = Gate(), HandClock()
    monkeypatch.setattr(place, gate.hold(getattr(__import__(module, fromlist=[name]), name)))
    model_time = started(clock)
    bench = Bench(tmp_path, model_time=model_time)
    clock.now = 2.0
    work = InThread(lambda: bench.process(write_images(tmp_path / "in", 3)))
    await_cause(model_time, cause)
    clock.now = 100.0
    gate.is_open.set()
    work.join()
    assert seconds_of(model_time) == {"no_shard": 2.0, cause: 98.0}
    assert model_time.so_far()[1] == "no_shard"


def test_an_image_that_is_read_meanwhile_is_waited_for_as_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, decoding, clock = Gate(), Gate(), HandClock()
    monkeypatch.setattr(shard_pipeline, "fetch_image", reading.hold(shard_pipeline.fetch_image))
    monkeypatch.setattr(shard_pipeline, "decode_image", decoding.hold(shard_pipeline.decode_image))
    model_time = started(clock)
    bench = Bench(tmp_path, model_time=model_time)
    work = InThread(lambda: bench.process(write_images(tmp_path / "in", 1)))
    await_cause(model_time, "read")
    clock.now = 7.0
    reading.is_open.set()
    await_cause(model_time, "decode")
    clock.now = 10.0
    decoding.is_open.set()
    work.join()
    assert seconds_of(model_time) == {"read": 7.0, "decode": 3.0}


def test_a_model_that_waits_for_masks_of_earlier_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While images are left, so that the shard itself is not waiting for its last masks."""
    gate, clock = Gate(), HandClock()
    monkeypatch.setattr(shard_pipeline, "MAX_ENCODING", 1)
    monkeypatch.setattr(shard_pipeline, "build_instance_rows", gate.hold(shard_pipeline.build_instance_rows))
    model_time = started(clock)
    bench = Bench(tmp_path, model_time=model_time, batch_size=1)
    work = InThread(lambda: bench.process(write_images(tmp_path / "in", 9)))
    await_cause(model_time, "encode")
    assert len(bench.model.batch_sizes) < 9
    clock.now = 5.0
    gate.is_open.set()
    work.join()
    assert seconds_of(model_time) == {"encode": 5.0}


def test_the_start_counts_until_the_model_is_loaded() -> None:
    clock = HandClock()
    model_time = ModelTime(clock)
    clock.now = 4.0
    with model_time.shard():
        assert model_time.so_far()[1] == "start_up"
    model_time.started()
    clock.now = 5.0
    assert seconds_of(model_time) == {"start_up": 4.0, "no_shard": 1.0}
    assert model_time.so_far()[1:] == ("no_shard", 1.0)


class Waiting:
    """The images of a shard."""

    awaits: Literal["read", "decode"] = "read"


def test_the_first_cause_that_applies_counts() -> None:
    clock, images = HandClock(), Waiting()
    model_time = started(clock)
    expected: dict[Cause, float] = {}

    def pass_as(cause: Cause) -> None:
        assert model_time.so_far()[1] == cause
        clock.now += 1.0
        expected[cause] = expected.get(cause, 0.0) + 1.0

    pass_as("no_shard")
    with model_time.shard() as first:
        pass_as("read")
        first.feeding()
        pass_as("infer")
        with model_time.awaiting(images):
            pass_as("read")
            images.awaits = "decode"
            model_time.note()
            pass_as("decode")
            with model_time.busy("infer"):
                pass_as("infer")
                with model_time.busy("encode"):
                    pass_as("encode")
                pass_as("infer")
            pass_as("decode")
            with model_time.uploading():
                pass_as("upload")
                # The lane computes the batch before.
                with model_time.busy("infer"):
                    pass_as("infer")
        first.fed()
        pass_as("encode")
        with model_time.shard() as second:
            pass_as("read")
            first.writing()
            pass_as("read")
            second.feeding()
            second.fed()
            pass_as("encode")
            second.writing()
            pass_as("write")
    pass_as("no_shard")
    assert seconds_of(model_time) == expected
    assert sum(seconds_of(model_time).values()) == clock.now


def test_an_upload_counts_while_the_model_has_nothing_else() -> None:
    gate, clock = Gate(), HandClock()

    class SlowDevice:
        def upload(self, slot: int, images: object) -> None:
            assert gate.is_open.wait(PATIENCE_S)

        def computing(self) -> Any:
            return threading.Lock()

    model_time = started(clock)
    queue = ModelQueue(
        FakeSegmenter(2),  # type: ignore[arg-type]
        Watchdog(None),
        max_bytes=10**6,
        runner=UploadLane(SlowDevice()),
        model_time=model_time,
    )
    shard = FakeShard(0, [(2, 3)] * 2)
    feed = queue.open(shard)
    work = InThread(lambda: queue.run(feed, shard))
    await_cause(model_time, "upload")
    clock.now = 3.0
    gate.is_open.set()
    work.join()
    assert seconds_of(model_time) == {"upload": 3.0}
    assert (queue.batch_images, queue.batch_slots) == (2, 2)


def test_a_shard_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    model_time = started(HandClock())

    def fail() -> None:
        with model_time.shard() as shard:
            shard.feeding()
            with model_time.awaiting(Waiting()), model_time.busy("infer"):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model_time.so_far()[1] == "no_shard"


def test_the_report_of_a_worker_adds_up_to_its_wall_time(tmp_path: Path) -> None:
    """With the real clock: whatever happened, no second is lost and none counts twice."""
    before = time.perf_counter()
    model_time = ModelTime()
    model_time.started()
    bench = Bench(tmp_path, model_time=model_time)
    result = bench.process(write_images(tmp_path / "in", 6))
    after = time.perf_counter()
    assert isinstance(result, ShardResult)
    assert result.worker is not None
    assert result.seconds - 0.01 <= sum(result.worker.seconds) <= after - before + 0.01
    assert result.worker.images == 6
    assert (result.worker.batch_images, result.worker.batch_slots) == (6, 8)
    assert result.worker.memory_bytes > 0
    assert result.worker.gpu_share is None
