"""WorkerPlan: how many workers fit a machine or cluster, and what each of them reserves."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RunError
from pipeline.job_spec.job import ComputeSection
from pipeline.machine_limits import usable_cpus, usable_memory

# A worker on the CPU with what it reads ahead, for images of 12 megapixels.
WORKER_BYTES = 2 * 2**30


# A GPU worker decodes on its cores; eight keep pace with about 15 images/s of 12 megapixels.
MAX_AUTO_CPUS_PER_GPU_WORKER = 8.0


@dataclass(frozen=True)
class WorkerPlan:
    """The number of workers, and the cores and GPUs that each reserves; fractions are allowed."""

    workers: int
    cpus: float
    gpus: float


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
    workers = (min(limits) if limits else 1) if compute.workers == "auto" else compute.workers
    workers = max(1, workers if shards is None else min(workers, shards))
    if gpus_each and compute.cpus_per_worker == "auto":
        cpus_each = max(1.0, min(MAX_AUTO_CPUS_PER_GPU_WORKER, float(math.floor(cpus / workers))))
    return WorkerPlan(workers, cpus_each, gpus_each)


def expected_workers(compute: ComputeSection, resources: Mapping[str, float] | None = None) -> int:
    """Return how many workers a run is expected to have, before they are started.

    Args:
        resources: what the cluster has, by Ray's names ("CPU", "GPU"); None for this machine.
    """
    if compute.workers != "auto":
        return compute.workers
    try:
        if resources is not None:
            cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
            return plan_workers(compute, cpus=cpus, gpus=gpus, shards=None).workers
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
