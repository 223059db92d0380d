"""What is said about workers that wait for nodes, when the run ends for it, and how a run grows with its cluster."""

import pytest

from pipeline.driver.room_watch import LOOK_EVERY_S, NOTE_AFTER_S, NOTE_EVERY_S, RoomWatch
from pipeline.errors import RunError
from pipeline.planning.node_shapes import ClusterNodes, NodeShape
from pipeline.planning.worker_plan import WorkerPlan
from tests.support.fakes.clock import HandClock

HEAD = NodeShape(1, 1.0, 0.0)


class Bench:
    def __init__(self, plan: WorkerPlan, nodes: ClusterNodes, start_timeout_s: float | None = 1800.0) -> None:
        self.clock, self.nodes = HandClock(), nodes
        self.watch = RoomWatch(plan, lambda: self.nodes, start_timeout_s=start_timeout_s, clock=self.clock)

    def wait(self, seconds: float, *, asked: int = 2, begun: int = 0) -> list[str]:
        """Look every second for so long; return what was said."""
        said = []
        for _ in range(int(seconds)):
            self.clock.now += 1.0
            said.append(self.watch.check(asked=asked, begun=begun))
        return [sentence for sentence in said if sentence]


def test_a_run_without_a_node_says_what_it_waits_for_and_ends_in_one_sentence() -> None:
    bench = Bench(WorkerPlan(2, 4.0, 1.0), ClusterNodes((HEAD,)))
    assert bench.wait(NOTE_AFTER_S - 1) == []
    (said,) = bench.wait(LOOK_EVERY_S)
    assert "2 workers of 4 CPUs and 1 GPU were asked for; the cluster has 1 node of 1 CPU" in said
    assert "Waiting at most 30 min" in said
    assert "if it has one" in said
    assert len(bench.wait(NOTE_EVERY_S + LOOK_EVERY_S)) == 1
    with pytest.raises(RunError, match=r"No node came for the workers within 30 min .* 1 node of 1 CPU, and"):
        bench.wait(2000)


def test_what_the_autoscaler_may_bring_is_said() -> None:
    bench = Bench(WorkerPlan(2, 4.0, 1.0), ClusterNodes((HEAD,), (NodeShape(3, 8.0, 1.0), NodeShape(None, 2.0, 0.0))))
    (said,) = bench.wait(NOTE_AFTER_S + LOOK_EVERY_S)
    assert "its autoscaler may bring 3 nodes of 8 CPUs and 1 GPU, any number of nodes of 2 CPUs" in said


@pytest.mark.parametrize(("begun", "limit_s"), [(1, 60.0), (0, None)])
def test_a_run_that_works_or_has_no_limit_waits_for_ever(begun: int, limit_s: float | None) -> None:
    bench = Bench(WorkerPlan(2, 4.0, 0.0), ClusterNodes((HEAD,)), limit_s)
    assert bench.wait(7000, begun=begun)


def test_a_cluster_that_others_use_ends_no_run() -> None:
    bench = Bench(WorkerPlan(2, 1.0, 0.0), ClusterNodes((HEAD,)), 60.0)
    said = bench.wait(7000)
    assert said
    assert all("Other jobs seem to use" in sentence for sentence in said)


def test_a_run_whose_workers_have_all_begun_is_told_once_and_never_again() -> None:
    bench = Bench(WorkerPlan(2, 1.0, 0.0), ClusterNodes((HEAD,)))
    assert len(bench.wait(3000, begun=1)) == 1
    assert bench.wait(3000, begun=2) == []


def test_a_run_that_loses_all_its_nodes_is_told_again_and_waits_anew() -> None:
    bench = Bench(WorkerPlan(2, 4.0, 0.0), ClusterNodes((HEAD,)), 600.0)
    assert len(bench.wait(1000, begun=1)) == 1
    (said,) = bench.wait(500)
    assert "No worker has begun" in said
    with pytest.raises(RunError, match="No node came"):
        bench.wait(200)


def test_auto_grows_with_the_cluster_and_a_number_does_not() -> None:
    growing = Bench(WorkerPlan(1, 1.0, 0.0, is_growing=True), ClusterNodes((HEAD,)))
    fixed = Bench(WorkerPlan(1, 1.0, 0.0), ClusterNodes((HEAD,)))
    for bench in (growing, fixed):
        bench.nodes = ClusterNodes((HEAD, NodeShape(1, 4.0, 0.0)))
        bench.wait(LOOK_EVERY_S, asked=1, begun=1)
    assert (growing.watch.max_workers, fixed.watch.max_workers) == (5, 1)
