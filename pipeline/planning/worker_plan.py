"""How many workers fit, and what each of them gets."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RunError
from pipeline.job_spec.job import ComputeSection
from pipeline.machine_limits import usable_cpus, usable_memory

# A worker on the CPU with what it reads ahead, at photos of 12 megapixels.
WORKER_BYTES = 2 * 2**30


# A GPU worker decodes on as many cores, which keeps pace with about 15 images/s of 12 megapixels.
MAX_AUTO_CPUS_PER_GPU_WORKER = 8.0


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers, and what each reserves; fractions allowed."""

    workers: int
    cpus: float
    gpus: float


def local_cpus() -> int:
    """Cores this process may use; see `machine_limits.usable_cpus`."""
    return usable_cpus()


def plan_workers(
    compute: ComputeSection, *, cpus: float, gpus: float, shards: int | None, memory_bytes: int | None = None
) -> WorkerPlan:
    """Spread `shards` over a machine or cluster with so many cores and GPUs.

    Workers sit on GPUs when there are any, one each unless the spec gives them a fraction; else on cores, one
    each. There are never more workers than shards, where their number is known, and always at least one.

    Args:
        memory_bytes: of this machine; where the spec leaves the number of workers open, those on cores get
            WORKER_BYTES each.

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
    """Return how many workers a run will have, as far as that is known before they are started.

    Args:
        resources: what the cluster has, by Ray's names; None for this machine.
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
        # Too little for one worker: the run says so when it starts them.
        return 1


def local_gpus(devices: Path = Path("/dev")) -> int:
    """The NVIDIA GPUs of this machine that this process may use, told without a library for them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in {"", "-1", "NoDevFiles"}])
    return sum(re.fullmatch(r"nvidia\d+", each.name) is not None for each in devices.glob("nvidia*"))
