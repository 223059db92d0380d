"""Ray: start or join a cluster, check its nodes, classify its failures."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.cluster.connection import ray_cluster
    from pipeline.cluster.preflight import check_nodes

__all__ = ["check_nodes", "ray_cluster"]

__getattr__ = attach(
    __name__,
    {
        "connection": ["ray_cluster"],
        "preflight": ["check_nodes"],
    },
)
