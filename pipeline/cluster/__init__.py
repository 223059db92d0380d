"""Ray: start or join a cluster, ask its nodes, size its workers."""
