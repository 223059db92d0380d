"""One batcher for the shards of a worker: full batches, each result to its own shard, and nothing waits for ever."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htc_model.config import load_preset
from pipeline.driver.events import WorkerDied
from pipeline.messages import Hang
from pipeline.worker.commit_claim import AbandonedError
from pipeline.worker.error_boundaries import DeviceLostError
from pipeline.worker.model_queue import ModelQueue
from pipeline.worker.watchdog import Watchdog
from tests.support.fakes.clock import HandClock
from tests.support.fakes.model_feeds import FakeSegmenter, FakeShard
from tests.support.fakes.models import FakeModel, write_image, write_images
from tests.support.fakes.shard_bench import Bench

PATIENCE_S = 60.0
WIDE, TALL = (2, 3), (3, 2)


def queue_of(segmenter: FakeSegmenter, **options: int) -> ModelQueue:
    return ModelQueue(segmenter, Watchdog(None), **{"max_bytes": 10**6, **options})  # type: ignore[arg-type]


class Runs:
    """Runs shards on threads of their own, in the order in which they are given the model's turn."""

    def __init__(self, queue: ModelQueue) -> None:
        self.queue = queue
        self.errors: dict[int, BaseException] = {}
        self.ended: dict[int, threading.Event] = {}
        self.any_end = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, shard: FakeShard) -> None:
        self.ended[shard.index] = threading.Event()
        feed = self.queue.open(shard)
        self._threads.append(threading.Thread(target=self._run, args=(feed, shard)))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _run(self, feed: object, shard: FakeShard) -> None:
        try:
            self.queue.run(feed, shard)  # type: ignore[arg-type]
        except (DeviceLostError, AbandonedError, OSError, KeyError) as error:
            self.errors[shard.index] = error
        finally:
            self.queue.close(feed)  # type: ignore[arg-type]
            self.ended[shard.index].set()
            self.any_end.set()


def start_second_while_first_has_the_turn(runs: Runs, first: FakeShard, second: FakeShard) -> None:
    """Start both such that the first shard's images come before the second's."""
    first.gates[0] = threading.Event()
    runs.start(first)
    assert first.asked.wait(PATIENCE_S)
    runs.start(second)
    first.gates[0].set()


def assert_complete(shard: FakeShard) -> None:
    assert sorted(shard.results) == list(range(len(shard.shapes)))
    for position, outcome in shard.results.items():
        assert float(outcome.scores[0]) == shard.mark(position)  # type: ignore[union-attr]
    assert sorted(shard.given_back) == list(range(len(shard.shapes)))


def test_the_rest_of_a_shard_shares_a_batch_with_the_next_shard() -> None:
    segmenter = FakeSegmenter(4)
    runs = Runs(queue_of(segmenter))
    first, second = FakeShard(0, [WIDE] * 6), FakeShard(1, [WIDE] * 6)
    start_second_while_first_has_the_turn(runs, first, second)
    runs.join()
    assert runs.errors == {}
    assert segmenter.batches == [
        [(0, 0), (0, 1), (0, 2), (0, 3)],
        [(0, 4), (0, 5), (1, 0), (1, 1)],
        [(1, 2), (1, 3), (1, 4), (1, 5)],
    ]
    assert_complete(first)
    assert_complete(second)
    assert first.seconds > 0 < second.seconds


def test_a_rest_leaves_before_the_model_would_be_idle() -> None:
    """The second shard's first image comes only after the first shard has ended."""
    segmenter = FakeSegmenter(4)
    runs = Runs(queue_of(segmenter))
    first, second = FakeShard(0, [WIDE] * 6), FakeShard(1, [WIDE] * 2, gates={0: threading.Event()})
    start_second_while_first_has_the_turn(runs, first, second)
    assert runs.ended[0].wait(PATIENCE_S)
    second.gates[0].set()
    runs.join()
    assert [len(batch) for batch in segmenter.batches] == [4, 2, 2]


def test_a_rest_does_not_wait_for_more_images_than_the_limit() -> None:
    segmenter = FakeSegmenter(4)
    runs = Runs(queue_of(segmenter, joining_images=5))
    first, second = FakeShard(0, [TALL] * 3), FakeShard(1, [WIDE] * 5, gates={5: threading.Event()})
    second.shapes = [WIDE] * 8
    start_second_while_first_has_the_turn(runs, first, second)
    assert runs.ended[0].wait(PATIENCE_S)
    second.gates[5].set()
    runs.join()
    assert segmenter.batches[1] == [(0, 0), (0, 1), (0, 2)]


def test_a_rest_leaves_when_the_other_shard_fails_to_load() -> None:
    segmenter = FakeSegmenter(4)
    runs = Runs(queue_of(segmenter))
    first, second = FakeShard(0, [WIDE] * 2), FakeShard(1, [WIDE] * 9, fails_at=1)
    start_second_while_first_has_the_turn(runs, first, second)
    runs.join()
    assert isinstance(runs.errors.pop(1), OSError)
    assert runs.errors == {}
    # The image that the second shard had added went with it.
    assert segmenter.batches == [[(0, 0), (0, 1)]]
    assert_complete(first)
    assert second.results == {}


def test_an_abandoned_rest_leaves_the_batch_to_the_others() -> None:
    segmenter = FakeSegmenter(4)
    runs = Runs(queue_of(segmenter))
    first, second = FakeShard(0, [WIDE] * 2), FakeShard(1, [WIDE] * 6)
    start_second_while_first_has_the_turn(runs, first, second)
    first.is_abandoned = True
    runs.join()
    assert isinstance(runs.errors.pop(0), AbandonedError)
    assert runs.errors == {}
    assert all(shard == 1 for batch in segmenter.batches for shard, _ in batch)
    assert_complete(second)


@pytest.mark.parametrize("error", [DeviceLostError("gone"), KeyError("our bug")])
def test_an_error_of_a_shared_batch_reaches_both_shards(error: BaseException) -> None:
    def fail(number: int) -> None:
        if number == 0:
            raise error

    segmenter = FakeSegmenter(4, fail)
    runs = Runs(queue_of(segmenter))
    start_second_while_first_has_the_turn(runs, FakeShard(0, [WIDE] * 2), FakeShard(1, [WIDE] * 6))
    runs.join()
    assert runs.errors == {0: error, 1: error}
    assert segmenter.batches == [[(0, 0), (0, 1), (1, 0), (1, 1)]]


SHARD = st.fixed_dictionaries(
    {
        "shapes": st.lists(st.sampled_from([WIDE, TALL, (4, 4)]), max_size=12),
        "late": st.sets(st.integers(0, 12), max_size=3),
        "fails_at": st.none() | st.integers(0, 12),
        "abandoned_at_batch": st.none() | st.integers(0, 6),
    }
)


@settings(deadline=None, max_examples=60)
@given(
    shards=st.lists(SHARD, min_size=1, max_size=5),
    batch_size=st.integers(1, 5),
    joining=st.integers(1, 20),
    max_bytes=st.integers(1, 300),
)
def test_every_schedule_comes_to_an_end(
    shards: Sequence[dict[str, object]], batch_size: int, joining: int, max_bytes: int
) -> None:
    """Two shards at once, as in a worker; images come late, loads fail and attempts are abandoned anywhere."""
    made = [
        FakeShard(
            index,
            plan["shapes"],  # type: ignore[arg-type]
            gates={position: threading.Event() for position in plan["late"]},  # type: ignore[attr-defined]
            fails_at=plan["fails_at"],  # type: ignore[arg-type]
        )
        for index, plan in enumerate(shards)
    ]

    def abandon(number: int) -> None:
        for shard, plan in zip(made, shards, strict=True):
            shard.is_abandoned = shard.is_abandoned or plan["abandoned_at_batch"] == number

    segmenter = FakeSegmenter(batch_size, abandon)
    runs = Runs(queue_of(segmenter, joining_images=joining, max_bytes=max_bytes))
    run_two_at_a_time(runs, made)
    for shard in made:
        if shard.index in runs.errors:
            assert isinstance(runs.errors[shard.index], OSError | AbandonedError)
            assert shard.is_abandoned or shard.fails_at is not None
        else:
            assert_complete(shard)
    assert all(len(batch) <= batch_size for batch in segmenter.batches)


def run_two_at_a_time(runs: Runs, shards: Sequence[FakeShard]) -> None:
    """Run the shards in order, two at once; an image that is late comes soon after it was asked for."""
    is_over = threading.Event()

    def open_gates() -> None:
        while not is_over.is_set():
            for shard in shards:
                gate = shard.gates.get(shard.position)
                if gate is not None and shard.asked.is_set():
                    gate.set()
            is_over.wait(0.001)

    opener = threading.Thread(target=open_gates)
    opener.start()
    for number, shard in enumerate(shards):
        while number - sum(ended.is_set() for ended in runs.ended.values()) >= 2:
            runs.any_end.wait(PATIENCE_S)
            runs.any_end.clear()
        runs.start(shard)
    runs.join()
    is_over.set()
    opener.join(PATIENCE_S)


def test_a_shared_batch_that_hangs_convicts_no_image() -> None:
    """Each shard is charged as for a death, so that it is tried alone; no image is convicted on half a suspicion."""
    clock = HandClock()
    watchdog = Watchdog(5.0, clock=clock)
    with watchdog.on_images([(1, 4), (0, 7)], "the model"):
        clock.now = 9.0
        assert watchdog.hang() is None
        clock.now = 11.0
        hang = watchdog.hang()
    assert hang == Hang(
        0, (7,), "the model hung for 11 s with 2 images; the limit is retry.image_timeout_s", is_shared=True
    )
    died = WorkerDied(3, hang.reason, was_ready=True, was_preempted=False, lost_shards=(0, 1), hang=hang)
    for index in (0, 1):
        failure = died.failure_of(index)
        assert (failure.kind, failure.is_charged, failure.suspects) == ("death", True, ())


def test_images_of_a_shared_batch_become_rows_of_their_own_shards(tmp_path: Path) -> None:
    """With files, masks and tables; one image of the shared batch makes the model raise, and fails alone."""
    first = write_images(tmp_path / "first", 6)
    second = [*write_images(tmp_path / "second", 3), write_image(tmp_path / "second" / "lethal.png", (32, 47))]
    config = load_preset("htc_lite0_fpn")
    tiny = replace(config, resize=replace(config.resize, short_side=32, long_side=64))
    bench = Bench(tmp_path, FakeModel(tiny, deeds={(32, 47): "raise"}), batch_size=8)
    opened = bench.resources.model.open

    def open_both(owner: object) -> object:
        feed = opened(owner)  # type: ignore[arg-type]
        gate.wait()
        return feed

    gate = threading.Barrier(2, timeout=PATIENCE_S)
    bench.resources.model.open = open_both  # type: ignore[method-assign,assignment]
    threads = [
        threading.Thread(target=bench.process, args=(paths,), kwargs={"index": index})
        for index, paths in enumerate((first, second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert [row["status"] for row in bench.image_rows(0)] == ["ok"] * 6
    assert [row["status"] for row in bench.image_rows(1)] == ["ok"] * 3 + ["failed"]
    assert [row["uri"] for row in bench.instance_rows(0)] == [str(path) for path in first]
    assert [row["uri"] for row in bench.instance_rows(1)] == [str(path) for path in second[:3]]
