"""Thousands of workers: the work of a tick grows with the workers and not with their square, by counted operations."""

import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from pipeline.driver import worker_pool
from pipeline.driver.events import ShardEnded, WorkerDied
from pipeline.driver.hand_out import ShardDispatcher
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import worker_settings
from pipeline.driver.shard_queue import MAX_BACKOFF_S, RECLAIM_PATIENCE_S, ShardQueue
from pipeline.driver.worker_pool import PROGRESS_EVERY_S, QUESTIONS_PER_S, REFS_PER_WAIT, WorkerPool
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import ComputeSection, RetrySection
from pipeline.messages import ShardFailure, WorkerProgress
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.runs.error_budget import ErrorBudget
from pipeline.runs.row_counts import RowCounts
from pipeline.worker.commit_claim import ORPHAN_AFTER_S, DriverLiveness
from tests.support.fakes.clock import HandClock
from tests.support.fakes.ray_calls import FakeCall, FakeHandle, FakeRay, Ref
from tests.support.fakes.shard_bench import spec_for

TICK_S = 0.25


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setattr(worker_pool.time, "sleep", lambda seconds: None)
    return FakeRay().install(monkeypatch)


class Work:
    """The operations (bytecode instructions) of the driver's modules while `count` is active."""

    def __init__(self) -> None:
        self.operations = 0

    @contextmanager
    def count(self) -> Iterator[None]:
        former = sys.gettrace()
        # Python 3.12 traces operations only if a frame asked for it before.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(former)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        if "pipeline/driver/" not in frame.f_code.co_filename.replace("\\", "/"):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._operation

    def _operation(self, frame: FrameType, event: str, argument: object) -> Any:
        self.operations += event == "opcode"
        return self._operation


class Bench:
    """A queue, a dispatcher and a pool of ready workers; attempts end when the test says so."""

    def __init__(self, folder: Path, ray: FakeRay, *, workers: int, shards: int) -> None:
        self.clock, self.read = HandClock(), Counter[int]()
        self.queue = ShardQueue(max_attempts=100, count_images=lambda index: 4, clock=self.clock)
        self.queue.add(range(shards))
        self.handles: list[FakeHandle] = []
        self.pool = WorkerPool(
            worker_settings(spec_for(folder), "r"),
            WorkerPlan(workers, 1, 0),
            compute=ComputeSection(),
            retry=RetrySection(),
            start_actor=lambda settings: self._start(),
            clock=self.clock,
        )
        run: Any = SimpleNamespace(is_planned=True, read_shard=self._read)
        self.dispatcher = ShardDispatcher(run, self.queue, ErrorBudget(1.0), SilentProgress())
        ray.answer = lambda refs: (refs, [])
        self.pool.scale_to(workers)
        self.pool.events(0.0)
        self.ending: set[Ref] = set()
        ray.answer = self._answer

    def _start(self) -> FakeHandle:
        self.handles.append(FakeHandle())
        return self.handles[-1]

    def _read(self, index: int) -> Shard:
        self.read[index] += 1
        return Shard(index, ())

    def _answer(self, refs: list[Any]) -> tuple[list[Any], list[Any]]:
        questions = (WorkerProgress, bool)
        return [ref for ref in refs if isinstance(ref.answer, questions) or ref in self.ending], []

    def tick(self) -> list[Any]:
        self.dispatcher.hand_out(self.pool, RowCounts())
        found = self.pool.events(TICK_S)
        self.clock.now += TICK_S
        return found

    def held(self) -> list[tuple[int, int]]:
        return [(worker, index) for worker, shards in self.pool.ready_workers().items() for index in shards]


def ticks(bench: Bench) -> int:
    """Return the operations of three ticks."""
    work = Work()
    with work.count():
        for _ in range(3):
            bench.tick()
    return work.operations


def steady(folder: Path, ray: FakeRay, workers: int) -> Bench:
    """Every worker has two shards, and more wait."""
    bench = Bench(folder, ray, workers=workers, shards=4 * workers)
    bench.tick()
    assert len(bench.held()) == 2 * workers
    return bench


def tail(folder: Path, ray: FakeRay, workers: int) -> Bench:
    """Half of the workers are idle, the other half have the last shards, which are not late."""
    bench = Bench(folder, ray, workers=workers, shards=workers)
    bench.tick()
    bench.clock.now += 1000.0
    for worker, index in bench.held()[: workers // 2]:
        bench.queue.committed(index)
        bench.ending.update(bench.handles[worker].run_shard.refs)
    bench.tick()
    assert len(bench.held()) == bench.queue.left == workers - workers // 2
    return bench


def queued(folder: Path, ray: FakeRay, workers: int) -> Bench:
    """Half of the workers are idle, the other half have two shards each, of which they give none back."""
    bench = Bench(folder, ray, workers=workers, shards=2 * workers)
    bench.tick()
    for worker, index in bench.held()[: 2 * (workers // 2)]:
        bench.queue.committed(index)
        bench.ending.update(bench.handles[worker].run_shard.refs)
    bench.tick()
    assert bench.queue.left == 2 * (workers - workers // 2)
    bench.clock.now += RECLAIM_PATIENCE_S
    return bench


def outage(folder: Path, ray: FakeRay, workers: int, *, kind: Any = "storage", wait_s: float = -10.0) -> Bench:
    """Two shards for each worker have failed and wait, all workers are idle."""
    bench = Bench(folder, ray, workers=workers, shards=2 * workers)
    bench.tick()
    for worker, index in bench.held():
        bench.queue.failed(worker, ShardFailure(index, kind, "because", is_charged=kind == "death"))
        bench.ending.update(bench.handles[worker].run_shard.refs)
    bench.clock.now -= 1000.0
    bench.pool.events(0.0)
    assert len(bench.held()) == 0
    bench.clock.now += 1000.0 + wait_s
    return bench


def after_an_outage(folder: Path, ray: FakeRay, workers: int) -> Bench:
    """All of them are due."""
    return outage(folder, ray, workers, wait_s=MAX_BACKOFF_S)


def after_many_deaths(folder: Path, ray: FakeRay, workers: int) -> Bench:
    """All of them are due, and each needs a worker of its own."""
    return outage(folder, ray, workers, kind="death", wait_s=MAX_BACKOFF_S)


@pytest.mark.parametrize(
    "situation", [steady, tail, queued, outage, after_an_outage, after_many_deaths], ids=lambda each: each.__name__
)
def test_four_times_the_workers_are_four_times_the_work_of_a_tick(
    tmp_path: Path, fake_ray: FakeRay, situation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda least, most: most)
    few, many = (ticks(situation(tmp_path, fake_ray, workers)) for workers in (50, 200))
    # Quadratic work would be sixteen times as much.
    assert 0 < few <= many <= 5 * few


def test_retries_are_read_in_the_order_of_the_manifest(
    tmp_path: Path, fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = after_an_outage(tmp_path, fake_ray, 40)
    bench.read.clear()
    bench.tick()
    # Once for the first shard of each worker, once for the second.
    indices = list(bench.read)
    assert len(indices) == 80
    assert sum(later < earlier for earlier, later in pairwise(indices)) <= 1


class Heart(FakeCall):
    """Notes when the driver called: longest_s between two calls, and how often it was too late for the worker."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__(WorkerProgress())
        self._clock = clock
        self._driver = DriverLiveness(0.0, clock=clock)
        self.longest_s, self.last_s = 0.0, clock.now
        self.orphaned = 0

    def remote(self, *arguments: object, **options: object) -> Ref:
        self.orphaned += self._driver.heartbeat()
        self.longest_s = max(self.longest_s, self._clock.now - self.last_s)
        self.last_s = self._clock.now
        return Ref(self.answer)


@pytest.mark.parametrize("workers", [10, pytest.param(10_000, marks=pytest.mark.slow)])
def test_workers_hear_from_their_driver_in_time_and_it_asks_few_at_once(
    tmp_path: Path, fake_ray: FakeRay, workers: int
) -> None:
    bench = Bench(tmp_path, fake_ray, workers=workers, shards=workers)
    bench.tick()
    assert len(bench.held()) == workers
    hearts = [Heart(bench.clock) for _ in bench.handles]
    for handle, heart in zip(bench.handles, hearts, strict=True):
        handle.progress = heart
    asked: list[int] = []
    for number in range(60):
        before = len(fake_ray.waited)
        bench.pool.events(0.0)
        assert max(fake_ray.waited[before:]) <= REFS_PER_WAIT
        asked.append(sum(heart.last_s == bench.clock.now for heart in hearts))
        # Once it is busy elsewhere, as with a slow store, for half of what the workers bear.
        bench.clock.now += ORPHAN_AFTER_S / 2 if number == 20 else 2.0
    assert sum(heart.orphaned for heart in hearts) == 0
    bound_s = min(ORPHAN_AFTER_S / 3, max(PROGRESS_EVERY_S, workers / QUESTIONS_PER_S))
    longest_s = max(heart.longest_s for heart in hearts)
    assert longest_s <= bound_s + ORPHAN_AFTER_S / 2 + 2.0 < ORPHAN_AFTER_S
    if workers > QUESTIONS_PER_S:
        assert max(asked[1:21]) <= 2 * 2.0 * workers / bound_s
        # After the pause all are due at once, and not so ever after.
        assert asked[21] > workers / 2 > 2 * max(asked[-10:])


def test_one_death_among_many_answers_costs_only_its_worker(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = Bench(tmp_path, fake_ray, workers=REFS_PER_WAIT + 10, shards=REFS_PER_WAIT + 10)
    bench.dispatcher.hand_out(bench.pool, RowCounts())
    for handle in bench.handles:
        bench.ending.update(handle.run_shard.refs)
    bench.handles[7].run_shard.refs[0].answer = exceptions.WorkerCrashedError()
    found = bench.pool.events(TICK_S)
    assert sum(isinstance(event, ShardEnded) for event in found) == REFS_PER_WAIT + 9
    assert isinstance(found[-1], WorkerDied)
    assert (found[-1].worker, found[-1].lost_shards) == (7, (7,))
    assert fake_ray.killed == [bench.handles[7]]
    assert max(fake_ray.waited) <= REFS_PER_WAIT
    assert 7 not in bench.pool.ready_workers()
