"""Workers that leak memory, reach their limits or never start are replaced, and no attempt is charged for it."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.driver.events import ShardEnded, WorkerDied, WorkerReported, WorkerRetired, WorkerStarted
from pipeline.driver.run_job import worker_settings
from pipeline.driver.worker_pool import PROGRESS_EVERY_S, WorkerPool
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import ComputeSection, RetrySection
from pipeline.messages import CAUSES, Assignment, WorkerProgress, WorkerReport
from pipeline.planning.worker_plan import WorkerPlan
from tests.support.fakes.clock import HandClock
from tests.support.fakes.ray_calls import FakeHandle, FakeRay
from tests.support.fakes.shard_bench import spec_for


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return FakeRay().install(monkeypatch)


class PoolBench:
    """A pool with one ready worker; handles: of all workers that were started."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.clock = HandClock()
        self.handles: list[FakeHandle] = []
        self.retry = RetrySection()
        self.pool = WorkerPool(
            worker_settings(spec_for(folder), "r"),
            WorkerPlan(1, 1, 0),
            compute=ComputeSection(**limits),
            retry=self.retry,
            start_actor=lambda settings: self._start(),
            clock=self.clock,
        )
        self.pool.scale_to(1)
        (started,) = self.pool.events(0.0)
        assert isinstance(started, WorkerStarted)

    def _start(self) -> FakeHandle:
        self.handles.append(FakeHandle())
        return self.handles[-1]

    def submit(self, index: int) -> None:
        self.pool.submit(0, Shard(index, ()), Assignment(index, 1, is_last=False))

    def events(self) -> list[type]:
        return [type(event) for event in self.pool.events(0.0)]


def test_a_worker_is_replaced_after_its_shards(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = PoolBench(tmp_path, worker_max_shards=2)
    pool = bench.pool
    bench.submit(0)
    assert bench.events() == [ShardEnded]
    assert pool.may_take(0)
    bench.submit(1)
    assert not pool.may_take(0)
    assert bench.events() == [ShardEnded, WorkerRetired]
    assert fake_ray.killed == bench.handles
    pool.scale_to(1)
    assert list(pool.ready_workers()) == []
    assert pool.size == 1


@pytest.mark.parametrize(("limit_gib", "events"), [(2.5, [ShardEnded, WorkerRetired]), (3.5, [ShardEnded])])
def test_a_worker_that_holds_too_much_memory_is_replaced(
    tmp_path: Path, fake_ray: FakeRay, limit_gib: float, events: list[type]
) -> None:
    bench = PoolBench(tmp_path, worker_max_memory_gib=limit_gib)
    bench.submit(0)
    assert bench.events() == events
    assert len(fake_ray.killed) == len(events) - 1


def test_a_worker_that_never_loads_its_model_is_ended_once_its_process_runs(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = PoolBench(tmp_path)
    pool, clock = bench.pool, bench.clock
    answered: list[object] = []
    fake_ray.answer = lambda refs: ([ref for ref in refs if ref in answered], [])
    pool.scale_to(2)
    # A cluster that grows may take its time.
    clock.now += 10_000.0
    assert pool.events(0.0) == []
    # A worker without room costs nothing either.
    assert (pool.running, pool.size) == (1, 2)
    answered += bench.handles[1].node.refs
    assert pool.events(0.0) == []
    assert (pool.running, pool.size) == (2, 2)
    clock.now += bench.retry.start_timeout_s or 0.0
    assert pool.events(0.0) == []
    clock.now += 1.0
    (death,) = pool.events(0.0)
    assert isinstance(death, WorkerDied)
    assert (death.worker, death.was_ready) == (1, False)
    assert "loading its model for 1801 s; the limit is retry.start_timeout_s" in death.reason
    assert fake_ray.killed == bench.handles[1:]
    assert pool.size == 1


def test_a_worker_that_lost_its_raylet_is_replaced_and_its_shards_are_not_charged(
    tmp_path: Path, fake_ray: FakeRay
) -> None:
    bench = PoolBench(tmp_path)
    progress = bench.handles[0].progress
    bench.submit(7)
    progress.answer = WorkerProgress(has_lost_raylet=True)
    bench.clock.now += PROGRESS_EVERY_S
    # Only the call for progress is answered.
    fake_ray.answer = lambda refs: (progress.refs[-1:], [])
    (death,) = bench.pool.events(0.0)
    assert len(progress.refs) == 1
    assert isinstance(death, WorkerDied)
    assert (death.lost_shards, death.was_preempted, "raylet" in death.reason) == ((7,), True, True)
    assert fake_ray.killed == bench.handles


def test_the_death_of_a_worker_that_holds_no_shard_is_found_at_the_end(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = PoolBench(tmp_path)
    assert bench.pool.final_check() == []
    bench.handles[0].progress.answer = WorkerProgress(has_lost_raylet=True)
    (death,) = bench.pool.final_check()
    assert (death.worker, death.lost_shards, "raylet" in death.reason) == (0, (), True)
    assert bench.pool.final_check() == []


def test_an_idle_worker_that_does_not_answer_at_the_end_is_named(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = PoolBench(tmp_path)
    fake_ray.answer = lambda refs: ([], refs)
    (death,) = bench.pool.final_check()
    assert (death.worker, death.lost_shards, "answered nothing" in death.reason) == (0, (), True)
    assert fake_ray.killed == bench.handles


def test_the_start_and_the_reports_of_workers_are_events(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = PoolBench(tmp_path)
    report = WorkerReport((1.0,) * len(CAUSES), "read", 2.0)
    bench.clock.now += 7.0
    bench.pool.scale_to(2)
    bench.clock.now += 5.0
    (started,) = bench.pool.events(0.0)
    # By the driver's clock, from the request.
    assert (started.worker, started.start_s) == (1, 5.0)  # type: ignore[union-attr]
    bench.submit(7)
    progress = bench.handles[0].progress
    progress.answer = WorkerProgress(worker=report)
    bench.clock.now += PROGRESS_EVERY_S
    fake_ray.answer = lambda refs: ([ref for ref in refs if ref in progress.refs], [])
    assert bench.pool.events(0.0) == [WorkerReported(0, report)]
    fake_ray.answer = lambda refs: (refs, [])
    assert bench.pool.final_check() == [WorkerReported(0, report)]
