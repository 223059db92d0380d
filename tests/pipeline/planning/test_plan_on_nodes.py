"""How many workers a run asks a cluster for that has fewer nodes now than it may have."""

import pytest

from pipeline.errors import RunError
from pipeline.job_spec.job import ComputeSection
from pipeline.planning.node_shapes import ClusterNodes, NodeShape
from pipeline.planning.worker_plan import MAX_AUTO_WORKERS, WorkerPlan, plan_on_nodes

HEAD = NodeShape(1, 2.0, 0.0)
GPU_NODE = NodeShape(4, 12.0, 2.0)


@pytest.mark.parametrize(
    ("compute", "nodes", "shards", "plan"),
    [
        # As many as the autoscaler may bring, though only the head is there; cores are shared by a node's GPUs.
        ({}, ClusterNodes((HEAD,), (GPU_NODE,)), None, WorkerPlan(8, 6.0, 1.0, is_growing=True)),
        ({}, ClusterNodes((HEAD,), (GPU_NODE,)), 5, WorkerPlan(5, 6.0, 1.0, is_growing=True)),
        ({}, ClusterNodes((HEAD, HEAD)), None, WorkerPlan(4, 1.0, 0.0, is_growing=True)),
        ({}, ClusterNodes((), (NodeShape(None, 1.0, 0.0),)), None, WorkerPlan(MAX_AUTO_WORKERS, 1.0, 0.0, True)),
        # The nodes hold whole workers only: three cores are one worker of two.
        ({"cpus_per_worker": 2.0}, ClusterNodes((NodeShape(3, 3.0, 0.0),)), None, WorkerPlan(3, 2.0, 0.0, True)),
        ({"workers": 6}, ClusterNodes((HEAD,)), None, WorkerPlan(6, 1.0, 0.0)),
        ({"workers": "2:6"}, ClusterNodes((HEAD,)), 4, WorkerPlan(4, 1.0, 0.0)),
        # GPU nodes that may yet come, for all that is known.
        ({"gpus_per_worker": 1.0, "workers": 3}, ClusterNodes((HEAD,)), None, WorkerPlan(3, 1.0, 1.0)),
        ({}, ClusterNodes(()), None, WorkerPlan(1, 1.0, 0.0, is_growing=True)),
    ],
)
def test_the_workers_of_a_cluster(
    compute: dict[str, float], nodes: ClusterNodes, shards: int | None, plan: WorkerPlan
) -> None:
    assert plan_on_nodes(ComputeSection.model_validate(compute), nodes, shards=shards) == plan


def test_gpus_that_no_node_has_nor_will_have_are_refused() -> None:
    with pytest.raises(RunError, match="its autoscaler may bring 4 nodes of 12 CPUs and 2 GPUs"):
        plan_on_nodes(ComputeSection(gpus_per_worker=4.0), ClusterNodes((HEAD,), (GPU_NODE,)), shards=None)
