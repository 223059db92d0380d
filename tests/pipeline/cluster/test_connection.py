"""The number of workers, the connection to Ray, and the descriptions of deaths."""

import os
import socket
import subprocess
import sys
import threading
from types import ModuleType

import pytest
import ray
from ray import exceptions

from pipeline.cluster import connection as cluster
from pipeline.cluster import local_ray
from pipeline.cluster.connection import connected_nodes, object_store_options, ray_cluster, starting_early
from pipeline.cluster.failures import describe_death, was_preempted, worker_deaths
from pipeline.errors import RunError
from pipeline.job_spec.job import ComputeSection
from pipeline.planning.worker_plan import plan_workers


@pytest.mark.parametrize(
    ("compute", "cpus", "gpus", "shards", "expected"),
    [
        (ComputeSection(), 8, 0, 100, (8, 1, 0)),
        (ComputeSection(), 8, 0, 3, (3, 1, 0)),
        (ComputeSection(cpus_per_worker=4), 9, 0, 100, (2, 4, 0)),
        (ComputeSection(cpus_per_worker=0.5), 2, 0, 100, (4, 0.5, 0)),
        (ComputeSection(cpus_per_worker=16), 8, 0, 100, (1, 16, 0)),
        (ComputeSection(workers=5), 2, 0, 100, (5, 1, 0)),
        (ComputeSection(), 32, 4, 100, (4, 8, 1)),
        (ComputeSection(), 6, 4, 100, (4, 1, 1)),
        (ComputeSection(gpus_per_worker=0.5), 16, 2, 100, (4, 4, 0.5)),
        (ComputeSection(gpus_per_worker=0.0), 16, 2, 100, (16, 1, 0)),
        (ComputeSection(), 16, 1, 1, (1, 8, 1)),
    ],
)
def test_workers_sit_on_gpus_when_there_are_any_else_on_cores(
    compute: ComputeSection, cpus: int, gpus: int, shards: int, expected: tuple[int, float, float]
) -> None:
    plan = plan_workers(compute, cpus=cpus, gpus=gpus, shards=shards)
    assert (plan.workers, plan.cpus, plan.gpus) == expected


@pytest.mark.parametrize(
    ("compute", "gpus", "memory_gib", "workers"),
    [
        (ComputeSection(), 0, 64, 8),
        (ComputeSection(), 0, 7, 3),
        (ComputeSection(), 0, 1, 1),
        (ComputeSection(workers=8), 0, 1, 8),
        (ComputeSection(), 2, 1, 2),
    ],
)
def test_workers_on_cores_are_no_more_than_the_memory_holds(
    compute: ComputeSection, gpus: int, memory_gib: int, workers: int
) -> None:
    plan = plan_workers(compute, cpus=8, gpus=gpus, shards=None, memory_bytes=memory_gib * 2**30)
    assert plan.workers == workers


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray has no file system of shared memory")
@pytest.mark.parametrize(
    ("memory_gib", "shared_mib", "size_mib", "place"),
    [
        (None, 1000, 200, "/dev/shm"),
        (64, 1000, 200, "/dev/shm"),
        (1, 1000, 102, "/dev/shm"),
        (0.25, 1000, 75, "/dev/shm"),
        (64, 64, 200, "/own"),
        (64, 0, 200, "/own"),
        (0.25, 80, 75, "/dev/shm"),
    ],
)
def test_the_object_store_fits_memory_and_shared_memory(
    memory_gib: float | None, shared_mib: int, size_mib: int, place: str
) -> None:
    memory = None if memory_gib is None else int(memory_gib * 2**30)
    options = object_store_options("/own", memory_bytes=memory, shared_bytes=shared_mib * 2**20)
    assert (options["object_store_memory"] // 2**20, options["_plasma_directory"]) == (size_mib, place)


def test_missing_gpus_are_refused_with_advice() -> None:
    with pytest.raises(RunError, match="there are 0 GPUs here; leave it out"):
        plan_workers(ComputeSection(gpus_per_worker=1.0), cpus=8, gpus=0, shards=1)


def test_every_exception_for_a_dead_worker_is_listed() -> None:
    deaths = worker_deaths()
    for error in (
        exceptions.ActorDiedError(),
        exceptions.NodeDiedError("gone"),
        exceptions.WorkerCrashedError(),
        exceptions.OutOfMemoryError("node is full"),
    ):
        assert isinstance(error, deaths)
    assert was_preempted(exceptions.NodeDiedError("gone"))
    assert not was_preempted(exceptions.ActorDiedError())


def test_a_death_is_described_in_one_line() -> None:
    text = (
        "The actor died unexpectedly before finishing this task.\n\tpid: 7\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) ..."
    )
    assert describe_death(RuntimeError(text)) == (
        "the worker died: Worker unexpectedly exits with a connection error code 2. End of file"
    )
    assert describe_death(RuntimeError("Owner's node has crashed.\n")) == "the worker died: Owner's node has crashed"


def test_what_a_worker_raised_is_described_by_its_last_line_without_colours() -> None:
    from ray import exceptions

    text = "\x1b[36mray::WorkerActor.run_shard()\x1b[39m (pid=7, ip=127.0.0.1)\n  File x.py\nKeyboardInterrupt"
    error = exceptions.RayTaskError("run_shard", text, KeyboardInterrupt())
    assert describe_death(error) == "the worker raised KeyboardInterrupt"
    assert describe_death(RuntimeError("\x1b[1;31mgone\x1b[0m.")) == "the worker died: gone"


def test_the_driver_needs_no_torch() -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import pipeline.driver.run_job, pipeline.driver.worker_pool, pipeline.driver.session\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_an_exception_at_the_start_of_ray_is_one_sentence_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(**options: object) -> None:
        raise Exception("The current node timed out\n  during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", too_slow)
    sentence = r"^Cannot start Ray on this machine: The current node timed out during startup \(run the same command"
    with pytest.raises(RunError, match=sentence), ray_cluster(ComputeSection(), shards=1):
        pass
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_missing_cluster_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        # Bound, but not listening: no other process can take the port meanwhile.
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused.getsockname()[1]}")
        with (
            pytest.raises(RunError, match=r"^Cannot reach the Ray cluster at 127\.0\.0\.1:\d+: .*refused \(check"),
            ray_cluster(ComputeSection(), shards=1),
        ):
            pass


@pytest.mark.parametrize(
    ("users", "set_here"),
    [
        ({}, {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}),
        ({"RAY_AUTH_TOKEN": "x" * 32}, {"RAY_AUTH_MODE"}),
        ({"RAY_AUTH_TOKEN_PATH": "/a/file"}, {"RAY_AUTH_MODE"}),
        ({"RAY_AUTH_MODE": "disabled"}, set()),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, set()),
    ],
)
def test_a_local_ray_gets_a_token_unless_the_user_sets_otherwise(
    monkeypatch: pytest.MonkeyPatch, users: dict[str, str], set_here: set[str]
) -> None:
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    seen: list[dict[str, str]] = []

    def init(compute: ComputeSection) -> None:
        seen.append({name: os.environ[name] for name in names if name in os.environ})
        raise RunError("stop here")

    monkeypatch.setattr(cluster, "_init", init)
    for _ in range(2):
        with pytest.raises(RunError, match="stop here"), ray_cluster(ComputeSection(), shards=1):
            pass
    first, second = seen
    assert first.keys() == users.keys() | set_here
    assert users.items() <= first.items()
    # Each start has its own.
    assert (first == second) is ("RAY_AUTH_TOKEN" not in set_here)
    assert {name: os.environ[name] for name in names if name in os.environ} == users


def test_ray_that_another_thread_is_importing_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    assert connected_nodes() is None


class FakeRay:
    """What `ray` does when a driver starts and ends it, slowly; `_init` waits until `may_connect` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_connect = threading.Event()
        self.is_starting = threading.Event()
        self.calls: list[str] = []
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(cluster, "_init", self._init)
        monkeypatch.setattr(cluster, "_plan_on_cluster", lambda *arguments: "plan")
        monkeypatch.setattr(cluster, "end_processes", lambda *arguments, **options: self.calls.append("end"))
        monkeypatch.setattr(ray, "shutdown", lambda: self.calls.append("shutdown"))

    def _init(self, compute: ComputeSection) -> None:
        self.calls.append(f"init in {'own' if 'htc-' in os.environ['RAY_TMPDIR'] else 'another'} folder")
        self.is_starting.set()
        self.may_connect.wait(60)


INIT = "init in own folder"


def test_a_ray_that_was_begun_early_is_used_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, connected = FakeRay(monkeypatch), threading.Event()
    with starting_early(ComputeSection(), connected.set) as starter:
        starter.begin()
        starter.begin()
        assert fake.is_starting.wait(60)
        assert not connected.is_set()
        fake.may_connect.set()
        with ray_cluster(ComputeSection(), shards=1) as plan:
            assert plan == "plan"
            assert connected.wait(60)
            assert fake.calls == [INIT]
        assert fake.calls == [INIT, "shutdown"]
        # The workers' block is over, so that a planning that ends now starts nothing.
        starter.begin()
    assert fake.calls == [INIT, "shutdown"]
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("is_connected", [False, True])
def test_a_ray_that_was_begun_for_nothing_is_ended(monkeypatch: pytest.MonkeyPatch, *, is_connected: bool) -> None:
    monkeypatch.setattr(local_ray, "GIVING_UP_S", 0.01)
    fake, connected = FakeRay(monkeypatch), threading.Event()
    if is_connected:
        fake.may_connect.set()
    before = os.environ.get("RAY_TMPDIR")
    with starting_early(ComputeSection(), connected.set) as starter:
        starter.begin()
        assert fake.is_starting.wait(60)
        assert not is_connected or connected.wait(60)
    assert fake.calls == [INIT, "shutdown" if is_connected else "end"]
    assert os.environ.get("RAY_TMPDIR") == before
    fake.may_connect.set()


def test_without_an_early_start_ray_starts_in_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, connected = FakeRay(monkeypatch), threading.Event()
    fake.may_connect.set()
    with starting_early(ComputeSection(), connected.set), ray_cluster(ComputeSection(), shards=1):
        assert connected.wait(60)
    assert fake.calls == [INIT, "shutdown"]


def test_a_cluster_is_not_joined_early(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with starting_early(ComputeSection()) as starter:
        starter.begin()
    assert fake.calls == []


def test_a_failed_early_start_is_reported_where_ray_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch)

    def fail(compute: ComputeSection) -> None:
        raise RunError("stop here")

    monkeypatch.setattr(cluster, "_init", fail)
    with starting_early(ComputeSection()) as starter:
        starter.begin()
        with pytest.raises(RunError, match="stop here"), ray_cluster(ComputeSection(), shards=1):
            pass
