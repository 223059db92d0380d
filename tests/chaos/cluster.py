"""A Ray cluster of two nodes on this machine, in its own process: python cluster.py FOLDER.

It prints its address and the second node's raylet as one JSON line, and ends with its standard input.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OBJECT_STORE_BYTES = 100 * 2**20
PATIENCE_S = 60.0


@dataclass(frozen=True)
class TwoNodes:
    """A running cluster: one core on each node, and a raylet to kill."""

    address: str
    raylet_pid: int


@contextmanager
def two_nodes(folder: str, environment: Mapping[str, str]) -> Iterator[TwoNodes]:
    """Start the cluster for the time of the block; its workers inherit `environment`.

    Args:
        folder: Ray's own, whose path must be short.
    """
    command = [sys.executable, __file__, folder]
    here = Path(__file__).parents[2]
    with subprocess.Popen(
        command, env=dict(environment), cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise ValueError("pipes were asked for")
        try:
            for line in process.stdout:
                if line.startswith(b"{"):
                    yield TwoNodes(**json.loads(line))
                    break
        finally:
            process.stdin.close()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    # Ray reads its environment when it is imported.
    from ray.cluster_utils import Cluster

    folder = Path(sys.argv[1]).resolve() / "ray"
    # Ray writes a file there before it creates the folder.
    folder.mkdir(exist_ok=True)
    options = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "temp_dir": str(folder)})
    second = cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
    (raylet,) = second.all_processes["raylet"]
    sys.stdout.write(json.dumps({"address": cluster.address, "raylet_pid": raylet.process.pid}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
