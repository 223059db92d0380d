"""Ray as the driver sees it: which cluster, how many workers, and what it means that one died."""

import logging
import math
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from pipeline.borders import at_cluster_border
from pipeline.config import ComputeSection
from pipeline.errors import RunError

# Images and tables never pass through Ray's object store: only shard lists and reports do.
OBJECT_STORE_BYTES = 200 * 2**20
# A GPU worker decodes on as many cores, which keeps pace with about 15 images/s of 12 megapixels.
MAX_AUTO_CPUS_PER_GPU_WORKER = 8.0
# For the connection alone; a cluster that cannot be connected to for so long is not there.
KNOCK_S = 10.0


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers, and what each reserves; fractions allowed."""

    workers: int
    cpus: float
    gpus: float


def local_cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan_workers(compute: ComputeSection, *, cpus: float, gpus: float, shards: int | None) -> WorkerPlan:
    """Spread `shards` over a machine or cluster with so many cores and GPUs.

    Workers sit on GPUs when there are any, one each unless the spec gives them a fraction; else on cores, one
    each. There are never more workers than shards, where their number is known, and always at least one.

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
    limits = [limit for limit in (by_gpus, by_cpus) if limit is not None]
    workers = (min(limits) if limits else 1) if compute.workers == "auto" else compute.workers
    workers = max(1, workers if shards is None else min(workers, shards))
    if gpus_each and compute.cpus_per_worker == "auto":
        cpus_each = max(1.0, min(MAX_AUTO_CPUS_PER_GPU_WORKER, float(math.floor(cpus / workers))))
    return WorkerPlan(workers, cpus_each, gpus_each)


@contextmanager
def ray_cluster(compute: ComputeSection, *, shards: int | None) -> Iterator[WorkerPlan]:
    """Connect to Ray, or start it on this machine, for the time of the block; yields the workers to start.

    A cluster that RAY_ADDRESS names, or that this process is connected to already, is used and left running.
    One that is started here is gone afterwards.

    Raises:
        RunError: Ray cannot be reached or started, or has too little for one worker.
    """
    _quiet_environment()
    is_ours = not _is_connected()
    is_started_here = is_ours and not os.environ.get("RAY_ADDRESS")
    with _kept_private() if is_started_here else nullcontext():
        import ray

        if is_ours:
            _init(compute)
        try:
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            yield plan_workers(compute, cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0), shards=shards)
        finally:
            if is_ours:
                ray.shutdown()


def _quiet_environment() -> None:
    # Read when ray is first imported, by this process and by those that it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _is_connected() -> bool:
    # Asked without importing it: its environment is not ready yet.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextmanager
def _kept_private() -> Iterator[None]:
    """Have a Ray that is started in the block listen on the loopback address only, and there answer to its own alone.

    Its token is made for the block and lies in the environment, which the processes of this Ray inherit; Ray's own
    way is a file that all clusters of a user share. What the user has set stays as it is.
    """
    # The first name is historical: on every system it means the loopback address.
    settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    settings = {name: value for name, value in settings.items() if not os.environ.get(name)}
    has_token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" in settings and not has_token:
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.update(settings)
    _reread_environment()
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        _reread_environment()


def _reread_environment() -> None:
    # Ray keeps what it read when it was imported, which somebody else may have done before us.
    if "ray" in sys.modules:
        with suppress(ImportError, AttributeError):
            from ray._private import ray_constants

            raylet: Any = import_module("ray._raylet")
            usual = "0" if sys.platform in ("darwin", "win32") else "1"
            is_open = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", usual) == "1"
            ray_constants.ENABLE_RAY_CLUSTER = is_open
            raylet.Config.initialize("")
            raylet.AuthenticationTokenLoader.instance().reset_cache()


def _init(compute: ComputeSection) -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if address:

        def connect() -> None:
            _knock(address)
            ray.init(log_to_driver=False, logging_level=logging.ERROR)

        at_cluster_border(
            connect,
            f"Cannot reach the Ray cluster at {address}",
            "check RAY_ADDRESS and that the cluster runs the same version of Ray, or unset it to run on this machine",
        )
        _silence_error_listener()
        return
    # More workers than cores is the user's explicit wish; Ray would wait for those cores forever.
    wanted = 0.0
    if compute.workers != "auto":
        each = 1.0 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
        wanted = compute.workers * each
    at_cluster_border(
        lambda: ray.init(
            address="local",
            num_cpus=max(local_cpus(), math.ceil(wanted)),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        ),
        "Cannot start Ray on this machine",
        "the same command tries again; a machine that is very busy, or short of memory or of space in /tmp, is the "
        "usual cause",
    )
    _silence_error_listener()


def _knock(address: str) -> None:
    # Ray itself tries for many minutes where nobody answers, and says why only in the end.
    place = urlsplit(address if "://" in address else f"ray://{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), KNOCK_S).close()


def _silence_error_listener() -> None:
    # Whatever the log settings, Ray prints every worker's death as a page of general advice on standard output, in the
    # middle of the progress bar and of results that are piped somewhere. The driver says it in one line.
    from ray._private import worker as private

    if hasattr(private, "print_to_stdstream"):
        private.print_to_stdstream = lambda *arguments, **keywords: None


def worker_deaths() -> tuple[type[Exception], ...]:
    """The Ray exceptions after which a worker is gone and its shard is worth another one.

    Named one by one because they share no base: NodeDiedError, WorkerCrashedError and OutOfMemoryError are
        not RayActorErrors. ActorUnavailableError (a RayActorError) may heal, but waiting for it costs more
        than a new worker.
    """
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.OutOfDiskError,
        exceptions.ObjectLostError,
    )


def was_preempted(error: BaseException) -> bool:
    """Whether the node was taken away, which nobody's shard is to blame for."""
    from ray import exceptions

    return isinstance(error, exceptions.NodeDiedError) or bool(getattr(error, "preempted", False))


def describe_death(error: BaseException) -> str:
    """One line saying how a worker ended, without Ray's general advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if "exit detail:" in line:
            detail = line.split("exit detail:", 1)[1]
            return f"the worker died: {detail.split('. Some common causes', 1)[0].strip().rstrip('.')}"
    if getattr(error, "actor_init_failed", False):
        return f"the worker could not begin: {lines[-1].rstrip('.')}"
    return f"the worker died: {lines[0].rstrip('.') if lines else type(error).__name__}"
