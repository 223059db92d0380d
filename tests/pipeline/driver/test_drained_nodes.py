"""Drained and lost nodes as the worker pool sees them: what is handed out, ended, given away, and charged."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from ray import exceptions

from pipeline.cluster.node_states import NodeStates
from pipeline.driver.events import ShardEnded, WorkerDied, WorkerLeaving, WorkerLeft, WorkerStarted, WorkersWaiting
from pipeline.driver.run_job import worker_settings
from pipeline.driver.worker_pool import DRAINS_EVERY_S, IDLE_S, LAST_MOMENT_S, WorkerPool
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import ComputeSection, RetrySection
from pipeline.messages import Assignment
from pipeline.planning.node_shapes import ClusterNodes, NodeShape
from pipeline.planning.worker_plan import WorkerPlan
from tests.support.fakes.clock import HandClock
from tests.support.fakes.ray_calls import FakeCall, FakeHandle, FakeRay
from tests.support.fakes.shard_bench import spec_for


class FakeNodes(NodeStates):
    """Nodes whose state a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.drained: dict[str, float | None] = {}
        self.gone: set[str] = set()

    def draining(self) -> Mapping[str, float | None]:
        return self.drained

    def lost(self, nodes: Collection[str]) -> set[str]:
        return self.gone & set(nodes)

    @staticmethod
    def shapes() -> ClusterNodes:
        return ClusterNodes((NodeShape(1, 2.0, 0.0),))


class Bench:
    """A pool of ready workers, the first on node-0, the second on node-1, and so on."""

    def __init__(self, folder: Path, ray: FakeRay, *, workers: int, compute: ComputeSection | None = None) -> None:
        self.clock, self.nodes, self.ray = HandClock(), FakeNodes(), ray
        self.handles: list[FakeHandle] = []
        self.pool = WorkerPool(
            worker_settings(spec_for(folder), "r"),
            WorkerPlan(workers, 1, 0),
            compute=compute or ComputeSection(),
            retry=RetrySection(),
            start_actor=lambda settings: self._start(),
            nodes=self.nodes,
            clock=self.clock,
        )
        self.pool.scale_to(workers)
        assert [type(event) for event in self.pool.events(0.0)] == [WorkerStarted] * workers

    def _start(self) -> FakeHandle:
        handle = FakeHandle()
        handle.node = FakeCall(f"node-{len(self.handles)}")
        self.handles.append(handle)
        return handle

    def submit(self, worker: int, *indices: int) -> None:
        for index in indices:
            self.pool.submit(worker, Shard(index, ()), Assignment(index, 1, is_last=False))

    def later(self, seconds: float = DRAINS_EVERY_S) -> list[Any]:
        self.clock.now += seconds
        return self.pool.events(0.0)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return FakeRay().install(monkeypatch)


def test_an_idle_worker_leaves_a_drained_node_and_is_replaced_at_once(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = Bench(tmp_path, fake_ray, workers=2)
    bench.nodes.drained = {"node-1": 100.0}
    (left,) = bench.later()
    assert isinstance(left, WorkerLeft)
    assert (left.worker, left.lost_shards, fake_ray.killed) == (1, (), [bench.handles[1]])
    bench.pool.scale_to(2)
    assert len(bench.handles) == 3


def test_a_busy_worker_gets_nothing_more_and_ends_after_its_shards(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = Bench(tmp_path, fake_ray, workers=2)
    bench.submit(1, 7, 8)
    fake_ray.answer = lambda refs: ([], refs)
    bench.nodes.drained = {"node-1": 100.0}
    (leaving,) = bench.later()
    assert isinstance(leaving, WorkerLeaving)
    assert (leaving.shards, leaving.seconds_left) == ((7, 8), 100.0 - LAST_MOMENT_S)
    # It is not counted any more, so that another one is started while it works.
    assert (bench.pool.size, list(bench.pool.ready_workers())) == (1, [0])
    fake_ray.answer = lambda refs: (refs, [])
    ends = bench.later()
    assert [type(event) for event in ends] == [ShardEnded, ShardEnded, WorkerLeft]
    assert fake_ray.killed == [bench.handles[1]]


def test_a_worker_is_ended_just_before_its_node_goes(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = Bench(tmp_path, fake_ray, workers=1)
    bench.submit(0, 7)
    fake_ray.answer = lambda refs: ([], refs)
    bench.nodes.drained = {"node-0": 30.0}
    bench.later()
    assert bench.later(20.0) == []
    (left,) = bench.later(30.0 - LAST_MOMENT_S - 20.0)
    assert isinstance(left, WorkerLeft)
    assert left.lost_shards == (7,)


def test_without_a_deadline_a_worker_takes_the_time_it_needs(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = Bench(tmp_path, fake_ray, workers=1)
    bench.submit(0, 7)
    fake_ray.answer = lambda refs: ([], refs)
    bench.nodes.drained = {"node-0": None}
    (leaving,) = bench.later()
    assert leaving.seconds_left is None
    assert bench.later(200.0) == []


@pytest.mark.parametrize(("is_gone", "is_charged"), [(True, False), (False, True)])
def test_an_unavailable_actor_is_charged_unless_its_node_is_gone(
    tmp_path: Path, fake_ray: FakeRay, is_gone: bool, is_charged: bool
) -> None:
    bench = Bench(tmp_path, fake_ray, workers=1)
    bench.handles[0].run_shard = FakeCall(exceptions.ActorUnavailableError("Socket closed", b"0" * 16))
    bench.submit(0, 7)
    bench.nodes.gone = {"node-0"} if is_gone else set()
    (death,) = bench.later()
    assert isinstance(death, WorkerDied)
    assert death.failure_of(7).is_charged is is_charged


def test_a_death_on_a_drained_node_is_not_charged(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = Bench(tmp_path, fake_ray, workers=1)
    bench.handles[0].run_shard = FakeCall(exceptions.ActorDiedError())
    fake_ray.answer = lambda refs: ([], refs)
    bench.submit(0, 7)
    bench.nodes.drained = {"node-0": 100.0}
    bench.later()
    fake_ray.answer = lambda refs: (refs, [])
    (death,) = bench.later()
    assert isinstance(death, WorkerDied)
    assert death.was_preempted


def test_workers_that_wait_for_room_are_not_waited_for_when_fewer_are_needed(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = Bench(tmp_path, fake_ray, workers=1)
    fake_ray.answer = lambda refs: ([], refs)
    bench.pool.scale_to(3)
    assert bench.later(20.0) == []
    (waiting,) = bench.later(60.0)
    assert isinstance(waiting, WorkersWaiting)
    assert "1 of the workers have begun: 3 workers of 1 CPU were asked for" in waiting.reason
    assert "1 node of 2 CPUs" in waiting.reason
    bench.pool.scale_to(1)
    # The newest first; those that work are kept.
    assert fake_ray.killed == [bench.handles[2], bench.handles[1]]


def test_idle_workers_are_ended_at_the_end_first_where_nobody_else_works(tmp_path: Path, fake_ray: FakeRay) -> None:
    bench = Bench(tmp_path, fake_ray, workers=4, compute=ComputeSection(workers="2:4"))
    bench.submit(0, 7)
    fake_ray.answer = lambda refs: ([], refs)
    for handle, member in zip(bench.handles, bench.pool._members.values(), strict=True):
        member.node = "shared" if handle in bench.handles[:2] else member.node
    bench.pool.scale_to(1, spare=1)
    assert fake_ray.killed == []
    bench.clock.now += IDLE_S
    bench.pool.scale_to(1, spare=None)
    assert fake_ray.killed == []
    bench.pool.scale_to(1, spare=1)
    assert fake_ray.killed == bench.handles[2:]
    bench.clock.now += IDLE_S
    # One spare, and never fewer than the range's smaller number.
    bench.pool.scale_to(1, spare=0)
    assert bench.pool.size == 2
