"""The connection to Ray: joins a cluster or starts one on this machine, and sizes its workers."""

import logging
import math
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.cluster.local_ray import RayThread, end_processes, ray_folder
from pipeline.cluster.node_states import NodeStates
from pipeline.cluster.search_path import worker_search_path
from pipeline.errors import RunError
from pipeline.job_spec.job import ComputeSection
from pipeline.machine_limits import SHARED_MEMORY, free_shared_memory, usable_memory
from pipeline.planning.node_shapes import ClusterNodes
from pipeline.planning.worker_plan import WorkerPlan, local_cpus, plan_on_nodes, plan_workers
from pipeline.text import message_of

if TYPE_CHECKING:
    from ray.job_config import JobConfig

log = logging.getLogger(__name__)

# Images and tables never pass through Ray's object store: only shard lists and reports do.
OBJECT_STORE_BYTES = 200 * 2**20
# Ray refuses less (ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES).
MIN_OBJECT_STORE_BYTES = 75 * 2**20
# The largest share of the machine's memory.
OBJECT_STORE_SHARE = 0.1
# For the TCP connection alone; a cluster that does not accept one in this time is not running.
CONNECT_TIMEOUT_S = 10.0


class RayStart:
    """Ray on this machine, or the connection to a cluster, from the beginning of its start to its end."""

    def __init__(self, compute: ComputeSection, on_connected: Callable[[], object]) -> None:
        """Begin; `on_connected` is called in another thread once Ray is connected."""
        _quiet_environment()
        self._compute = compute
        self._on_connected = on_connected
        self._is_own = not os.environ.get("RAY_ADDRESS")
        self._is_ended = False
        self._settings = ExitStack()
        if self._is_own:
            self._settings.enter_context(_private_ray())
        self._thread = RayThread(self._connect)

    def wait(self) -> None:
        """Wait until Ray is connected; errors as for `local_ray.RayThread.wait`."""
        self._thread.wait()

    def end(self) -> None:
        """Disconnect from Ray, and end one that was started here."""
        self._is_ended = True
        try:
            if self._thread.is_connected:
                import ray

                ray.shutdown()
            elif self._thread.is_connecting and self._is_own:
                # Ray's messages about that do not matter any more.
                logging.getLogger("ray").setLevel(logging.CRITICAL + 1)
                end_processes(Path(os.environ["RAY_TMPDIR"]), patience_s=0.0)
                self._thread.give_up()
            self._thread.end()
        finally:
            self._settings.close()

    def _connect(self) -> None:
        import ray

        if self._is_ended:
            # Importing Ray takes seconds, and nothing was started yet that `end` could have ended.
            return
        _init(self._compute)
        if self._is_ended:
            ray.shutdown()
        else:
            self._on_connected()


class RayStarter:
    """Starts Ray on this machine ahead of the block that needs it, while its input is being listed.

    Made by `starting_early`; its methods may be called from any thread.
    """

    def __init__(self, compute: ComputeSection, on_connected: Callable[[], object]) -> None:
        self._compute = compute
        self._on_connected = on_connected
        self._begun: RayStart | None = None
        self._is_over = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Begin to start Ray, unless that was done, or this process is or will be connected to a cluster."""
        with self._lock:
            if self._begun is None and not self._is_over and not _is_connected() and not os.environ.get("RAY_ADDRESS"):
                try:
                    self._begun = RayStart(self._compute, self._on_connected)
                except RunError as error:
                    # The block that needs Ray tries again, and reports it.
                    log.info("Ray was not started early: %s", error)

    def take(self) -> RayStart | None:
        """Return the start that was begun, which the caller ends; None without one. Nothing is begun afterwards."""
        with self._lock:
            begun, self._begun, self._is_over = self._begun, None, True
        return begun

    def connected(self) -> None:
        """Note that Ray is connected without an early start."""
        self._on_connected()


# Ray is one per process, and so is its early start.
_starters: list[RayStarter] = []


@contextmanager
def starting_early(compute: ComputeSection, on_connected: Callable[[], object] = lambda: None) -> Iterator[RayStarter]:
    """Let Ray be started before the `ray_cluster` in this block, by the yielded object's `begin`.

    What was begun and not used is ended after the block.

    Args:
        on_connected: called once Ray is connected, started early or not.
    """
    starter = RayStarter(compute, on_connected)
    _starters.append(starter)
    try:
        yield starter
    finally:
        _starters.remove(starter)
        begun = starter.take()
        if begun is not None:
            begun.end()


@contextmanager
def ray_cluster(compute: ComputeSection, *, shards: int | None) -> Iterator[WorkerPlan]:
    """Connect to Ray, or start it on this machine, for the time of the block; yield the plan of its workers.

    A cluster that RAY_ADDRESS names, or that this process is connected to already, is used and left running.
    One that is started here, or was begun in `starting_early`, is ended afterwards.

    Raises:
        RunError: Ray cannot be reached or started, or has too little for one worker.
    """
    _quiet_environment()
    starter = _starters[-1] if _starters else None
    start = starter.take() if starter else None
    if start is None and _is_connected():
        if starter:
            starter.connected()
        yield _plan_on_cluster(compute, shards)
        return
    if start is None:
        start = RayStart(compute, starter.connected if starter else lambda: None)
    try:
        start.wait()
        yield _plan_on_cluster(compute, shards, not os.environ.get("RAY_ADDRESS"))
    finally:
        start.end()


def _plan_on_cluster(compute: ComputeSection, shards: int | None, is_here: bool = False) -> WorkerPlan:
    if not is_here:
        return plan_on_nodes(compute, NodeStates.shapes(), shards=shards)
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    return plan_workers(compute, cpus=cpus, gpus=gpus, shards=shards, memory_bytes=usable_memory())


def object_store_options(folder: str, *, memory_bytes: int | None, shared_bytes: int) -> dict[str, Any]:
    """Return the options of `ray.init` for its object store, which holds very little here.

    Args:
        folder: for its file where shared memory is too small, such as the 64 MB of many containers.
        memory_bytes: the memory that may be used. shared_bytes: free bytes in the file system of shared memory.
    """
    size = OBJECT_STORE_BYTES
    if memory_bytes is not None:
        size = max(MIN_OBJECT_STORE_BYTES, min(size, int(memory_bytes * OBJECT_STORE_SHARE)))
    if sys.platform != "linux":
        return {"object_store_memory": size}
    fits = shared_bytes >= size
    return {"object_store_memory": size, "_plasma_directory": str(SHARED_MEMORY) if fits else folder}


def _quiet_environment() -> None:
    # Read when Ray is first imported, by this process and by those that it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@contextmanager
def _private_ray() -> Iterator[None]:
    """Have a Ray that is started in the block use a private folder, the loopback address and token authentication.

    The token is made for the block and set in the environment, which the processes of this Ray inherit; by default Ray
    uses a file that all clusters of a user share. Settings of the user are not changed.
    """
    # The first name is historical: on every system it means the loopback address.
    settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    settings = {name: value for name, value in settings.items() if not os.environ.get(name)}
    has_token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" in settings and not has_token:
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    former_folder = os.environ.get("RAY_TMPDIR")
    with ray_folder() as folder:
        os.environ.update(settings | {"RAY_TMPDIR": str(folder)})
        reread_ray_settings()
        try:
            yield
        finally:
            for name in [*settings, "RAY_TMPDIR"]:
                os.environ.pop(name, None)
            if former_folder is not None:
                os.environ["RAY_TMPDIR"] = former_folder
            reread_ray_settings()


def reread_ray_settings() -> None:
    """Have Ray read its settings again from the environment; it keeps those of its import otherwise."""
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
            _check_address(address)
            # A client's connection (ray://) is made by Ray's proxy, from another folder.
            options: dict[str, Any] = {} if address.startswith("ray://") else {"job_config": make_job_config()}
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)

        cluster_boundary(
            connect,
            f"Cannot reach the Ray cluster at {address}",
            "check RAY_ADDRESS and that the cluster runs the same version of Ray, or unset it to run on this machine",
        )
        _silence_error_listener()
        return
    # When the user asks for more workers than cores, Ray would wait for those cores forever.
    wanted = 0.0
    if compute.workers != "auto":
        each = 1.0 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
        wanted = each * (compute.workers if isinstance(compute.workers, int) else compute.fewest_workers)
    cluster_boundary(
        lambda: ray.init(
            address="local",
            num_cpus=max(local_cpus(), math.ceil(wanted)),
            include_dashboard=False,
            **object_store_options(
                os.environ["RAY_TMPDIR"], memory_bytes=usable_memory(), shared_bytes=free_shared_memory()
            ),
            log_to_driver=False,
            logging_level=logging.ERROR,
            job_config=make_job_config(),
        ),
        "Cannot start Ray on this machine",
        "run the same command again; the usual cause is a machine that is very busy, or short of memory or of space "
        "for temporary files",
    )
    _silence_error_listener()


class _FixedPath(list[str]):
    """A search path that Ray cannot add the driver's current folder and its script's folder to."""

    def extend(self, folders: Iterable[str], /) -> None:
        """Leave the path as it is."""


def make_job_config() -> "JobConfig":
    """Return a job's configuration with the workers' search path and nothing that Ray adds to it."""
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _FixedPath(worker_search_path())
    return config


def _check_address(address: str) -> None:
    # Ray retries for many minutes where nothing answers, and reports the reason only at the end.
    place = urlsplit(address if "://" in address else f"ray://{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), CONNECT_TIMEOUT_S).close()


def _silence_error_listener() -> None:
    # Whatever the log settings, Ray prints a page of general advice on standard output when a worker dies, between the
    # lines of the progress bar and of piped results. The driver reports the death in one line.
    from ray._private import worker as private

    if hasattr(private, "print_to_stdstream"):
        private.print_to_stdstream = lambda *arguments, **keywords: None


def cluster_boundary(connect: Callable[[], object], failure: str, way_out: str) -> None:
    """Start Ray or connect to it; catches every exception, because Ray raises Exception itself when a node is too slow.

    Args:
        failure, way_out: the sentence before and the advice after Ray's own message.

    Raises:
        RunError: it failed, for any reason.
    """
    try:
        connect()
    except Exception as error:  # the boundary of Ray's start
        log.debug("Ray did not start", exc_info=True)
        raise RunError(f"{failure}: {message_of(error)} ({way_out}).") from error


def connected_nodes() -> ClusterNodes | None:
    """Return the nodes of the connected cluster; None when this process is not connected."""
    return NodeStates.shapes() if _is_connected() else None


def _is_connected() -> bool:
    # Without importing Ray: its environment is not ready yet.
    # While another thread imports it, it is there without its names.
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())
