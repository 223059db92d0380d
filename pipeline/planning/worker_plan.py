"""WorkerPlan: how many workers fit a machine or cluster, and what each of them reserves."""

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import RunError
from pipeline.job_spec.job import ComputeSection
from pipeline.machine_limits import usable_cpus, usable_memory
from pipeline.planning.node_shapes import ClusterNodes, describe_shapes, room_for

# A worker on the CPU with what it reads ahead, for images of 12 megapixels.
WORKER_BYTES = 2 * 2**30


# A GPU worker decodes on its cores; eight keep pace with about 15 images/s of 12 megapixels.
MAX_AUTO_CPUS_PER_GPU_WORKER = 8.0
# Where an autoscaler has no limit and the number of shards is not known; the driver was measured with that many.
MAX_AUTO_WORKERS = 10_000


@dataclass(frozen=True)
class WorkerPlan:
    """The number of workers, and the cores and GPUs that each reserves; fractions are allowed.

    is_growing: whether there are more workers when the cluster gets more nodes.
    """

    workers: int
    cpus: float
    gpus: float
    is_growing: bool = False


def local_cpus() -> int:
    """Return the number of cores that this process may use; see `machine_limits.usable_cpus`."""
    return usable_cpus()


def plan_workers(
    compute: ComputeSection, *, cpus: float, gpus: float, shards: int | None, memory_bytes: int | None = None
) -> WorkerPlan:
    """Choose the workers for a machine or cluster.

    By default a worker takes one GPU when there are any, else one core. There are never more workers than shards, and
    always at least one.

    Args:
        cpus, gpus: what the machine or cluster has.
        shards: how many there are to do; None when that is not known.
        memory_bytes: of this machine. When the spec leaves the number of workers open, a worker without a GPU gets
            WORKER_BYTES; None for no such limit.

    Raises:
        RunError: a worker needs more than the whole cluster has.
    """
    gpus_each = (1.0 if gpus >= 1 else 0.0) if compute.gpus_per_worker == "auto" else compute.gpus_per_worker
    if gpus_each > gpus:
        raise RunError(
            f"compute.gpus_per_worker is {gpus_each:g}, but there are {gpus:g} GPUs here; "
            "leave it out or set it to 0 to run on the CPU."
        )
    cpus_each = 1.0 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
    by_gpus = math.floor(gpus / gpus_each + 1e-9) if gpus_each else None
    by_cpus = math.floor(cpus / cpus_each + 1e-9) if cpus_each else None
    by_memory = None if by_gpus or memory_bytes is None else max(1, memory_bytes // WORKER_BYTES)
    limits = [limit for limit in (by_gpus, by_cpus, by_memory) if limit is not None]
    workers = min(limits) if limits else 1
    if isinstance(compute.workers, int):
        workers = compute.workers
    elif compute.most_workers is not None:
        workers = max(compute.fewest_workers, min(workers, compute.most_workers))
    workers = max(1, workers if shards is None else min(workers, shards))
    if gpus_each and compute.cpus_per_worker == "auto":
        cpus_each = max(1.0, min(MAX_AUTO_CPUS_PER_GPU_WORKER, float(math.floor(cpus / workers))))
    return WorkerPlan(workers, cpus_each, gpus_each)


def plan_on_nodes(compute: ComputeSection, nodes: ClusterNodes, *, shards: int | None) -> WorkerPlan:
    """Choose the workers for a cluster, which may have fewer nodes now than it will have.

    A number, or the larger one of a range, is asked for in any case. By default there are as many workers as the nodes
    hold that are there or, where Ray reports that, that the autoscaler may bring; one at least.

    Args:
        shards: how many there are to do; None when that is not known.

    Raises:
        RunError: a worker needs GPUs that no node has and the autoscaler brings none.
    """
    shapes = [*nodes.now, *(nodes.possible or ())]
    has_gpus = any(shape.holds(cpus=0, gpus=1) for shape in shapes)
    gpus_each = (1.0 if has_gpus else 0.0) if compute.gpus_per_worker == "auto" else compute.gpus_per_worker
    with_room = [shape for shape in shapes if shape.holds(cpus=0, gpus=gpus_each)]
    if gpus_each and not with_room and nodes.possible is not None:
        raise RunError(
            f"compute.gpus_per_worker is {gpus_each:g}, but the cluster has {describe_shapes(nodes.now)}, and its "
            f"autoscaler may bring {describe_shapes(nodes.possible)}; leave it out or set it to 0 to run on the CPU."
        )
    cpus_each = 1.0 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
    if gpus_each and with_room and compute.cpus_per_worker == "auto":
        # What every such node has for each of its GPUs; more would leave GPUs without a worker.
        shares = [math.floor(shape.cpus / math.floor(shape.gpus / gpus_each + 1e-9)) for shape in with_room]
        cpus_each = max(1.0, min(MAX_AUTO_CPUS_PER_GPU_WORKER, *map(float, shares)))
    plan = WorkerPlan(1, cpus_each, gpus_each, is_growing=compute.most_workers is None)
    workers = compute.most_workers or most_workers_on(nodes, plan)
    return replace(plan, workers=max(1, workers if shards is None else min(workers, shards)))


def most_workers_on(nodes: ClusterNodes, plan: WorkerPlan) -> int:
    """Return how many workers of the plan's size the nodes hold that are there, or that the autoscaler may bring."""
    now = room_for(nodes.now, cpus=plan.cpus, gpus=plan.gpus) or 0
    later = room_for(nodes.possible or (), cpus=plan.cpus, gpus=plan.gpus)
    return max(now, MAX_AUTO_WORKERS if later is None else later)


def expected_workers(compute: ComputeSection, nodes: ClusterNodes | None = None) -> int:
    """Return how many workers a run is expected to have, before they are started.

    Args:
        nodes: the cluster's; None for this machine.
    """
    if compute.most_workers is not None:
        return compute.most_workers
    try:
        if nodes is not None:
            return plan_on_nodes(compute, nodes, shards=None).workers
        cpus, gpus = float(local_cpus()), float(local_gpus())
        return plan_workers(compute, cpus=cpus, gpus=gpus, shards=None, memory_bytes=usable_memory()).workers
    except RunError:
        # Too little for one worker; starting the workers will raise the error.
        return 1


def local_gpus(devices: Path = Path("/dev")) -> int:
    """Count the NVIDIA GPUs that this process may use, without CUDA: by CUDA_VISIBLE_DEVICES, else by device files."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in {"", "-1", "NoDevFiles"}])
    return sum(re.fullmatch(r"nvidia\d+", each.name) is not None for each in devices.glob("nvidia*"))
