"""A Ray cluster of several nodes on this machine, with its dashboard, reached by URL as any cluster is."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
COMMAND_S = 180


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RealCluster:
    """A head without cores, and worker nodes with one each; `url` is the dashboard's."""

    url: str
    cluster: Any
    nodes: list[Any] = field(default_factory=list)

    def kill_node(self, number: int) -> None:
        """End a worker node as a power cut does; its processes go with it."""
        node = self.nodes[number]
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)


@contextmanager
def real_cluster(nodes: int = 2, environment: Mapping[str, str] | None = None) -> Iterator[RealCluster]:
    """Run a cluster for the time of the block."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        **(environment or {}),
    }
    former = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    from ray.cluster_utils import Cluster

    port = free_port()
    small = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": port, **small},
    )
    try:
        workers = [cluster.add_node(num_cpus=1, **small) for _ in range(nodes)]
        yield RealCluster(f"http://127.0.0.1:{port}", cluster, workers)
    finally:
        cluster.shutdown()
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def htc(*arguments: str, environment: Mapping[str, str] | None = None) -> Done:
    """Run one `htc` command in a process of its own, from a folder that is not the repository."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_S,
        env={**os.environ, **(environment or {})},
    )
    return Done(done.returncode, done.stdout, done.stderr)


def wait_for(what: str, is_true: Any, timeout_s: float = 90.0) -> None:
    """Wait until something holds."""
    end_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > end_s:
            raise TimeoutError(what)
        time.sleep(0.3)
