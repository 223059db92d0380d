"""Runs a function once on each node of a Ray cluster, without reserving a core or an accelerator."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pipeline.errors import RunError
from pipeline.text import count_of, one_line

T = TypeVar("T")
log = logging.getLogger(__name__)

# More give no new information: the nodes of one cluster are set up alike.
MAX_NODES = 16
# Enough for a node that has yet to install the job's libraries, torch among them.
TIMEOUT_S = 900.0
PATIENCE_S = 10.0
_HEAD = "node:__internal_head__"


def choose_nodes(nodes: Sequence[Mapping[str, Any]], *, limit: int = MAX_NODES) -> list[Mapping[str, Any]]:
    """Choose the nodes where workers will run: those with GPUs if there are any, else those that are not the head.

    Args:
        nodes: as returned by `ray.nodes()`.
    """
    alive = [node for node in nodes if node["Alive"]]
    others = [node for node in alive if _HEAD not in node["Resources"] and node["Resources"].get("CPU")] or alive
    chosen = [node for node in alive if node["Resources"].get("GPU")] or others
    ordered = sorted(chosen, key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))
    step = max(1.0, len(ordered) / limit)
    return [ordered[int(number * step)] for number in range(min(limit, len(ordered)))]


def run_on_nodes(
    action: Callable[..., T],
    *arguments: object,
    notify: Callable[[str], None] = log.info,
    timeout_s: float = TIMEOUT_S,
    limit: int = MAX_NODES,
) -> dict[str, T]:
    """Run a function on each of the nodes where workers will run, at most `limit` of them.

    Args:
        action: must survive pickling, as must its arguments and what it returns; references to objects in Ray's store
            become these objects.
        notify: called with a sentence when it takes longer than PATIENCE_S.

    Returns:
        The function's results by the node's address; without the nodes that went away meanwhile.

    Raises:
        RunError: the function cannot be started on one of them, or no node answers.
    """
    import ray
    from ray import exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(num_cpus=0)(action)
    nodes_of: dict[Any, str] = {}
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    for node in choose_nodes(nodes, limit=limit):
        # Soft: a node that dies before the call must not end the run.
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        reference = remote.options(scheduling_strategy=strategy).remote(*arguments)
        nodes_of[reference] = node["NodeManagerAddress"]
    references = list(nodes_of)
    ready, late = ray.wait(references, num_returns=len(references), timeout=min(PATIENCE_S, timeout_s))
    if late:
        notify(f"Checking input and output from {count_of(len(late), 'node')}.")
        ready, late = ray.wait(references, num_returns=len(references), timeout=timeout_s)
    answers: dict[str, T] = {}
    for reference in ready:
        address = _free_name(nodes_of[reference], answers)
        try:
            answers[address] = ray.get(reference)
        except (exceptions.RuntimeEnvSetupError, exceptions.RayTaskError) as error:
            cause = getattr(error, "cause", None)
            raise RunError(
                f"The node {address} cannot run this program: {one_line(cause or error, max_chars=500)}"
            ) from error
        except exceptions.RayError as error:
            log.info("the node %s did not answer: %s", address, one_line(error))
    if not answers:
        raise RunError(
            f"None of the cluster's {len(references)} nodes has answered within {timeout_s:.0f} s; its dashboard "
            "shows what they are waiting for."
        )
    return answers


def _free_name(address: str, taken: Mapping[str, object]) -> str:
    # Several nodes on one machine share its address.
    number = sum(name.split(" ")[0] == address for name in taken)
    return f"{address} ({number + 1})" if number else address
