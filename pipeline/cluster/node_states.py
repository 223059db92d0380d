"""Which nodes of a Ray cluster are being drained, which are lost, and what nodes there are or could be.

Everything that the driver asks of Ray's node table stands here. Public Ray (2.60) has no call for drains and for the
autoscaler's configuration; Ray Serve and Ray Data use the ones below. Where another version of Ray lacks them, or the
connection is a client's (ray://), nothing is known: a drained node is then noticed when it is gone.
"""

import logging
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pipeline.planning.node_shapes import ClusterNodes, NodeShape

log = logging.getLogger(__name__)

# For the answer of the cluster's head, which takes a millisecond; without one, what was known stands.
CALL_TIMEOUT_S = 2.0
# A raylet on a node that runs accepts a connection at once; a host that is gone never answers.
PROBE_TIMEOUT_S = 1.0
PROBES_AT_ONCE = 128
# What the autoscaler's configuration writes for "no limit".
UNLIMITED = -1
# A resource that Ray gives the head alone.
HEAD = "node:__internal_head__"


class NodeStates:
    """Asks the cluster that this process is connected to; called from one thread."""

    def __init__(self) -> None:
        self._draining: dict[str, float | None] = {}
        self._lacks_drains = False

    def draining(self) -> Mapping[str, float | None]:
        """Return the nodes that are being drained: hexadecimal id to seconds left, None without a deadline."""
        if self._lacks_drains:
            return {}
        found = _ask_for_drains()
        if found is None:
            self._lacks_drains = True
            log.info("this version of Ray, or a client's connection, does not say which nodes are being drained")
            return {}
        # Ray has milliseconds since 1970, 0 for no deadline.
        now = time.time()
        return {node: at_ms / 1000 - now if at_ms else None for node, at_ms in found.items()}

    def lost(self, nodes: Collection[str]) -> set[str]:
        """Return those of the nodes that are gone.

        Ray declares a node dead some 15 s after its power went, and reports to the callers of its actors within a
        second that these are unavailable; so each node that is not dead in Ray's table is asked whether its raylet
        still listens.
        """
        import ray

        table: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        known = {node["NodeID"]: node for node in table if node["NodeID"] in nodes}
        lost = {each for each in nodes if each not in known or not known[each]["Alive"]}
        if _is_client():
            # It reaches the head's proxy alone.
            return lost
        alive = [each for each in known if each not in lost]
        if alive:
            with ThreadPoolExecutor(min(PROBES_AT_ONCE, len(alive)), "htc-nodes") as threads:
                listening = threads.map(lambda each: _is_listening(known[each]), alive)
                lost |= {each for each, answers in zip(alive, listening, strict=True) if not answers}
        return lost

    @staticmethod
    def shapes() -> ClusterNodes:
        """Return the cluster's nodes, those that are drained left out, and those that its autoscaler may bring."""
        import ray

        drained = _ask_for_drains() or {}
        table: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        resources = [node["Resources"] for node in table if node["Alive"] and node["NodeID"] not in drained]
        possible = _autoscaled_shapes()
        if possible is not None:
            # The autoscaler's groups are of worker nodes.
            possible += tuple(_shape_of(each) for each in resources if HEAD in each)
        return ClusterNodes(tuple(_shape_of(each) for each in resources), possible)


def _shape_of(resources: Mapping[str, float]) -> NodeShape:
    return NodeShape(1, resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def _is_client() -> bool:
    from ray.util import client

    return bool(client.ray.is_connected())  # type: ignore[no-untyped-call]


def _ask_for_drains() -> dict[str, int] | None:
    """Return each drained node's deadline in ms; None where Ray cannot say."""
    try:
        from ray._private import worker

        client: Any = getattr(worker.global_worker, "gcs_client", None)

        with _no_failure_of_the_head():
            return dict(client.get_draining_nodes(timeout=CALL_TIMEOUT_S))
    except (ImportError, AttributeError, TypeError):
        return None
    return {}


def _autoscaled_shapes() -> tuple[NodeShape, ...] | None:
    try:
        from ray._private.state import state

        with _no_failure_of_the_head():
            config = state.get_cluster_config()
            groups = config.node_group_configs if config is not None else ()
            shapes = [
                NodeShape(
                    None if group.max_count == UNLIMITED else int(group.max_count),
                    float(group.resources.get("CPU", 0)),
                    float(group.resources.get("GPU", 0)),
                )
                for group in groups
            ]
            return tuple(shape for shape in shapes if shape.count != 0) or None
    except (ImportError, AttributeError, TypeError):
        log.info("this version of Ray does not report the autoscaler's configuration")
    return None


@contextmanager
def _no_failure_of_the_head() -> Iterator[None]:
    """A head that is restarted answers later; the driver's calls must not end the run meanwhile."""
    from ray import exceptions

    try:
        yield
    except (exceptions.RayError, exceptions.RpcError, ValueError, RuntimeError) as error:
        log.info("the cluster's head did not answer: %s", error)


def _is_listening(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True
