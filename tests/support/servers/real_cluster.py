"""A Ray cluster of several nodes with a dashboard on this machine, in a separate process:
python real_cluster.py FOLDER NODES.

It prints its URL, its address and the raylets of its worker nodes as one JSON line. It reads commands, one a line:
`add` starts another node and prints its raylet, `drain NUMBER SECONDS` has a node drained as before the end of a spot
machine. It ends when its standard input closes.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.support.processes import command_of, is_alive

OBJECT_STORE_BYTES = 80 * 2**20
COMMAND_S = 240
PATIENCE_S = 60.0


@dataclass(frozen=True)
class RealCluster:
    """A running cluster: its dashboard, its address, and a raylet to kill for each worker node."""

    url: str
    address: str
    raylets: list[int]
    process: "subprocess.Popen[bytes]" = field(repr=False)

    def kill_node(self, number: int) -> None:
        """Kill a worker node and all its processes, as a power cut does."""
        raylet = psutil.Process(self.raylets[number])
        # Workers outlive their raylet, and could finish their shard before Ray detects its death.
        for process in [*raylet.children(recursive=True), raylet]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def is_working(self, number: int) -> bool:
        """Return whether a worker on this node is doing a shard."""
        children = psutil.Process(self.raylets[number]).children()
        return any("WorkerActor.run_shard" in command_of(each) for each in children)

    def is_gone(self, number: int) -> bool:
        """Return whether the raylet of this node has ended."""
        return not is_alive(self.raylets[number])

    def add_node(self) -> int:
        """Start another worker node of one core; return its number."""
        self.raylets.append(self._tell("add"))
        return len(self.raylets) - 1

    def drain_node(self, number: int, *, seconds: float) -> None:
        """Tell the cluster that a spot node ends in so many seconds."""
        assert self._tell(f"drain {number} {seconds}") is True

    def _tell(self, command: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def real_cluster(nodes: int, environment: Mapping[str, str]) -> Iterator[RealCluster]:
    """Run a cluster for the block: a head, which has no cores if there are worker nodes of one core each.

    Args:
        environment: of its processes, in addition to this process's environment.
    """
    # Ray's sockets are below it, and a socket's path has at most 107 characters.
    folder = tempfile.mkdtemp(prefix="htc-ray-")
    command = [sys.executable, __file__, folder, str(nodes)]
    # A job's `python` is the first on the PATH where Ray was started, which a test run by its path has not set.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    settings = {**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", **environment}
    settings.pop("RAY_ADDRESS", None)
    try:
        with subprocess.Popen(command, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            if process.stdin is None or process.stdout is None:
                raise ValueError("pipes were asked for")
            try:
                for line in process.stdout:
                    if line.startswith(b"{"):
                        yield RealCluster(**json.loads(line), process=process)
                        break
            finally:
                process.stdin.close()
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def htc(*arguments: str, environment: Mapping[str, str] | None = None) -> Done:
    """Run one `htc` command in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_S,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", **(environment or {})},
    )
    return Done(done.returncode, done.stdout, done.stderr)


def wait_until(is_true: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Wait until a condition holds."""
    end_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > end_s:
            raise TimeoutError("it never came true")
        time.sleep(0.3)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    # Ray reads its environment when it is imported.
    from ray._private.utils import write_ray_address
    from ray.cluster_utils import Cluster

    folder, nodes = Path(sys.argv[1]) / "ray", int(sys.argv[2])
    # Ray writes a file there before it creates the folder.
    folder.mkdir()
    port = free_port()
    head = {"num_cpus": 0 if nodes else 1, "include_dashboard": True, "dashboard_port": port, "temp_dir": str(folder)}
    # Jobs are started through it, and its default port is taken if another Ray runs on this machine.
    head["dashboard_agent_listen_port"] = free_port()
    cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": OBJECT_STORE_BYTES})
    # As `ray start` does: otherwise a job connects to any Ray on this machine, such as another test's.
    write_ray_address(cluster.address, str(folder))
    added = [cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES) for _ in range(nodes)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in added]
    answer({"url": f"http://127.0.0.1:{port}", "address": cluster.address, "raylets": raylets})
    for command in sys.stdin:
        match command.split():
            case ["add"]:
                added.append(cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES))
                answer(added[-1].all_processes["raylet"][0].process.pid)
            case ["drain", number, seconds]:
                answer(drain(cluster.address, added[int(number)].node_id, float(seconds)))
    cluster.shutdown()  # type: ignore[no-untyped-call]


def answer(value: object) -> None:
    """Print one JSON line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def drain(address: str, node: str, seconds: float) -> bool:
    """Announce the end of a node as `ray drain-node` does; return whether it agrees."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + seconds) * 1000)
    accepted, _ = GcsClient(address=address).drain_node(node, reason, "the spot machine is taken away", deadline_ms)
    return bool(accepted)


if __name__ == "__main__":
    main()
