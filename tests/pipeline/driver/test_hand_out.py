"""Shards are handed out breadth first, and at the end none waits behind a long one."""

import heapq
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import pipeline.driver.session
from pipeline.driver.events import Event, ShardAbandoned, ShardEnded, WorkerDied, WorkerLeft, WorkerStarted
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.driver.shard_queue import ShardQueue
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import load_spec
from pipeline.messages import Assignment, ShardFailure, WorkerReady
from pipeline.output.results import open_results
from pipeline.worker.worker import Worker, WorkerSettings
from tests.support.fakes.clock import HandClock
from tests.support.fakes.models import LoadFake, write_images


class TimedPool:
    """Workers that do their shards one after the other, each in its time by a clock that the test sets.

    clock: the present. shard_s: seconds by shard, 2 for others. start_s: seconds until a worker is ready, by number.
    done: shards with their worker and the time of their end. refuses: whether shards are given back.
    """

    clock = HandClock()
    shard_s: Mapping[int, float] = {}
    start_s: Callable[[int], float] = staticmethod(lambda number: 0.0)
    done: list[tuple[int, int, float]] = []  # noqa: RUF012 - set anew by each test
    refuses = False

    def __init__(self, settings: WorkerSettings, max_workers: int) -> None:
        self._settings = settings
        self.max_workers = max_workers
        self._workers: list[Worker] = []
        self._held: dict[int, list[tuple[Shard, Assignment]]] = {}
        self._given_back: set[tuple[int, int]] = set()
        self._alarms: list[tuple[float, int, int]] = []
        self._events: list[Event] = []

    @property
    def size(self) -> int:
        return len(self._workers)

    images_in_flight = 0

    @property
    def running(self) -> int:
        return len(self._workers)

    def ready_workers(self) -> dict[int, tuple[int, ...]]:
        return {number: tuple(shard.index for shard, _ in held) for number, held in self._held.items()}

    def may_take(self, worker: int) -> bool:
        return True

    def scale_to(self, wanted: int, *, spare: int | None = None) -> None:
        while self.size < wanted:
            number = self.size
            self._workers.append(Worker(self._settings))
            heapq.heappush(self._alarms, (self.clock.now + type(self).start_s(number), number, -1))

    def submit(self, worker: int, shard: Shard, assignment: Assignment) -> None:
        assert shard.index not in self.ready_workers()[worker], "a worker was given a shard that it holds"
        self._held[worker].append((shard, assignment))
        if len(self._held[worker]) == 1:
            self._begin(worker)

    def abandon(self, worker: int, index: int, *, is_queued: bool = False) -> None:
        # Not the speculative copies, which are abandoned in the same way.
        if not (is_queued and self.refuses):
            self._given_back.add((worker, index))
            self._events.append(ShardAbandoned(worker, index))

    def events(self, timeout_s: float) -> list[Event]:
        if self._events:
            found, self._events = self._events, []
            return found
        if not self._alarms:
            return []
        now, worker, index = heapq.heappop(self._alarms)
        self.clock.now = max(self.clock.now, now)
        if index < 0:
            self._held[worker] = []
            ready = self._workers[worker].start()
            assert isinstance(ready, WorkerReady)
            return [WorkerStarted(worker, ready)]
        if (worker, index) in self._given_back:
            return self._begin(worker)
        shard, assignment = self._held[worker].pop(0)
        ended = self._workers[worker].run_shard(shard, assignment)
        self.done.append((shard.index, worker, self.clock.now))
        return [ShardEnded(worker, ended), *self._begin(worker)]

    def end(self, worker: int, reason: str) -> WorkerLeft:
        raise NotImplementedError("no node of this pool is drained")

    def final_check(self) -> list[WorkerDied]:
        return []

    def shut_down(self) -> None:
        self._held.clear()

    def _begin(self, worker: int) -> list[Event]:
        dropped: list[Event] = []
        while self._held[worker]:
            index = self._held[worker][0][0].index
            if (worker, index) not in self._given_back:
                heapq.heappush(self._alarms, (self.clock.now + self.shard_s.get(index, 2.0), worker, index))
                break
            self._held[worker].pop(0)
            dropped.append(ShardEnded(worker, ShardFailure(index, "abandoned", "given back", is_charged=False)))
        return dropped


@pytest.fixture
def timed_pool(monkeypatch: pytest.MonkeyPatch) -> type[TimedPool]:
    """The class of the next run's pool, with a clock of its own."""

    class Fresh(TimedPool):
        clock = HandClock()
        done: list[tuple[int, int, float]] = []  # noqa: RUF012 - of this test alone

    monkeypatch.setattr(pipeline.driver.session, "ShardQueue", partial(ShardQueue, clock=Fresh.clock))
    return Fresh


def segment(folder: Path, pool_class: type[TimedPool], *, shards: int, workers: int) -> None:
    @contextmanager
    def open_pool(settings: WorkerSettings, **options: object) -> Iterator[TimedPool]:
        yield pool_class(settings, workers)

    write_images(folder / "in", shards)
    values = {
        "input.uri": str(folder / "in"),
        "output.uri": str(folder / "out"),
        "model.preset": "htc_lite0_fpn",
        "model.weights": "untrained",
        "compute.workers": workers,
        "compute.shard_images": 1,
        "retry.max_error_rate": 1.0,
    }
    summary = run(load_spec(None, values), progress=SilentProgress(), load_model=LoadFake(), open_pool=open_pool)
    assert (summary.status, summary.images_done) == ("complete", shards)
    rows = open_results(str(folder / "out")).images(columns=["uri", "attempts"]).to_pylist()
    assert len({row["uri"] for row in rows}) == len(rows) == shards


def test_eight_workers_do_eight_shards_at_once(tmp_path: Path, timed_pool: type[TimedPool]) -> None:
    segment(tmp_path, timed_pool, shards=8, workers=8)
    assert sorted(worker for _, worker, _ in timed_pool.done) == list(range(8))
    assert timed_pool.clock.now == 2.0


def test_workers_that_are_ready_first_leave_shards_for_those_that_still_load_their_model(
    tmp_path: Path, timed_pool: type[TimedPool]
) -> None:
    timed_pool.start_s = staticmethod(lambda number: number * 0.1)
    segment(tmp_path, timed_pool, shards=8, workers=8)
    assert timed_pool.clock.now == pytest.approx(2.7)


def test_a_shard_that_waits_behind_a_long_one_goes_to_an_idle_worker(
    tmp_path: Path, timed_pool: type[TimedPool]
) -> None:
    timed_pool.shard_s = {0: 60.0}
    segment(tmp_path, timed_pool, shards=5, workers=2)
    ends = {index: at for index, _, at in timed_pool.done}
    assert ends.pop(0) == 60.0
    assert max(ends.values()) == 8.0
    assert {worker for index, worker, _ in timed_pool.done if index} == {1}


def test_each_shard_is_done_once_and_counts_one_attempt(tmp_path: Path, timed_pool: type[TimedPool]) -> None:
    timed_pool.shard_s = {0: 60.0, 1: 50.0, 2: 40.0}
    segment(tmp_path, timed_pool, shards=12, workers=4)
    # A late shard may get a speculative copy; one that was only given back does not.
    short = [index for index, _, _ in timed_pool.done if index > 2]
    assert sorted(short) == list(range(3, 12))
    rows = open_results(str(tmp_path / "out")).images(columns=["shard", "attempts"]).to_pylist()
    assert {row["attempts"] for row in rows if row["shard"] > 2} == {1}


def test_a_worker_that_gives_no_shard_back_does_it_itself(tmp_path: Path, timed_pool: type[TimedPool]) -> None:
    timed_pool.shard_s = {0: 60.0}
    timed_pool.refuses = True
    segment(tmp_path, timed_pool, shards=5, workers=2)
    assert {index for index, _, _ in timed_pool.done} == set(range(5))


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_worker_is_idle_while_another_has_two(
    tmp_path: Path, timed_pool: type[TimedPool], shards: int, workers: int
) -> None:
    segment(tmp_path, timed_pool, shards=shards, workers=workers)
    assert timed_pool.clock.now == 2.0 * -(-shards // workers)
