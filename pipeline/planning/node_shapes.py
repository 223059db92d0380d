"""The nodes of a cluster by what they have, and the workers that they hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.text import count_of


@dataclass(frozen=True)
class NodeShape:
    """Nodes that are alike: how many there are or may be (None: no limit), and what each has."""

    count: int | None
    cpus: float
    gpus: float

    def holds(self, *, cpus: float, gpus: float) -> bool:
        """Return whether an empty node has room for a worker of this size."""
        return self.count != 0 and self.cpus + 1e-9 >= cpus and self.gpus + 1e-9 >= gpus


@dataclass(frozen=True)
class ClusterNodes:
    """The nodes that a cluster has now, and those that its autoscaler may bring; None without an autoscaler."""

    now: tuple[NodeShape, ...]
    possible: tuple[NodeShape, ...] | None = None


def room_for(shapes: Sequence[NodeShape], *, cpus: float, gpus: float) -> int | None:
    """Return how many workers of this size the nodes hold when they are empty; None for no limit."""
    total = 0
    for shape in shapes:
        if not shape.holds(cpus=cpus, gpus=gpus):
            continue
        if shape.count is None:
            return None
        each = [int(have / need + 1e-9) for have, need in ((shape.cpus, cpus), (shape.gpus, gpus)) if need]
        total += shape.count * min(each, default=1)
    return total


def describe_shapes(shapes: Sequence[NodeShape]) -> str:
    """Return the nodes as text: "1 node of 4 CPUs, 2 nodes of 8 CPUs and 1 GPU"."""
    counts: dict[tuple[float, float], int | None] = {}
    for shape in shapes:
        size = (shape.cpus, shape.gpus)
        known = counts.get(size, 0)
        counts[size] = None if shape.count is None or known is None else known + shape.count
    parts = [
        f"{_count_of_nodes(count)} of {describe_size(cpus, gpus)}"
        for (cpus, gpus), count in counts.items()
        if count != 0
    ]
    return ", ".join(parts) or "no node"


def _count_of_nodes(count: int | None) -> str:
    return "any number of nodes" if count is None else count_of(count, "node")


def describe_size(cpus: float, gpus: float) -> str:
    """Return what a node or a worker has as text: "8 CPUs and 1 GPU"."""
    parts = [f"{number:g} {name}{'' if number == 1 else 's'}" for number, name in ((cpus, "CPU"), (gpus, "GPU"))]
    return " and ".join(parts if gpus else parts[:1])
