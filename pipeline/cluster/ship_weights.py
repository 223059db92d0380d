"""Ships downloaded weights to the nodes of a cluster through Ray's object store, so that they are fetched once per run.

Each node gets the bytes once, into its own cache of weights; the workers there read that file, whose pages the system
keeps in memory once for all of them. On one machine they read the driver's file in the same way, and nothing is
shipped. Weights of a local path lie on storage that all nodes share, the demo weights in the program, and a caller's
own model loads itself.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster.node_calls import run_on_nodes
from pipeline.errors import RunError
from pipeline.text import count_of, one_line
from pipeline.weights.cache import place_in_cache, store_in_cache

log = logging.getLogger(__name__)

# Nodes that join later, and all beyond these, fetch the weights themselves.
MAX_NODES = 1000
TIMEOUT_S = 300.0
# For the end of a run that ends before its weights are everywhere.
JOIN_PATIENCE_S = 2.0

RunOnNodes = Callable[..., Any]


@contextmanager
def weights_on_nodes(path: Path | None) -> Iterator[None]:
    """Ship a weights file during the block; this process is connected to a cluster.

    Workers that start before their node has the file fetch it themselves.

    Args:
        path: as `weights.cache.resolve_weights` returns it.
    """
    if path is None or place_in_cache(path) is None:
        yield
        return
    thread = threading.Thread(target=ship_weights, args=(path,), daemon=True, name="weights")
    thread.start()
    try:
        yield
    finally:
        thread.join(JOIN_PATIENCE_S)


def ship_weights(
    path: Path, *, put: Callable[[Any], Any] | None = None, run_on_nodes: RunOnNodes = run_on_nodes
) -> None:
    """Ship a weights file of this machine's cache; a failure is logged, and costs the nodes a download.

    Args:
        put: puts an object into Ray's store and returns a reference, `ray.put` by default.
        run_on_nodes: runs a function on each node, see `node_calls.run_on_nodes`.
    """
    name = place_in_cache(path)
    try:
        if put is None:
            import ray

            put = ray.put
        # As an array, because workers on a node share the memory of arrays in Ray's store.
        reference = put(np.fromfile(path, np.uint8))
        reached = run_on_nodes(_store, name, reference, timeout_s=TIMEOUT_S, limit=MAX_NODES)
        log.info("the weights %s are on %s", name, count_of(len(reached), "node"))
    except (RunError, OSError, _ray_error()) as error:
        log.warning("the weights were not shipped, and each node fetches them: %s", one_line(error))


def _store(name: str, payload: "np.ndarray[Any, Any]") -> None:
    store_in_cache(name, payload.data)


def _ray_error() -> type[Exception]:
    from ray.exceptions import RayError

    return RayError
