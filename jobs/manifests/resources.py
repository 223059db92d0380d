"""The resources around a run's pods: namespace, quota, spec, network policy, disruption budget, monitoring."""

from urllib.parse import urlsplit

from jobs.cluster.package import spec_text
from jobs.manifests.cluster_shape import ClusterShape, fit_spec
from jobs.manifests.pods import HEAD_CPUS, HEAD_MEMORY_GIB, PORTS, SPEC_PATH, Manifest, labels_of
from pipeline.job_spec.job import JobSpec

# For the autoscaler, the submitter and other small pods, in addition to the head and the workers.
EXTRA_CPUS, EXTRA_MEMORY_GIB, EXTRA_PODS = 2, 4, 4
# Ports of the API server: of its Service (443), and of the server itself in most clusters (6443).
HTTPS_PORTS = (443, 6443)
# Servers of cloud identities: Google's metadata server (on its Dataplane V2 169.254.169.252:988), EKS Pod Identity.
# IRSA and Azure mount a token and use a public address by HTTPS.
IDENTITY_SERVERS = (("169.254.169.254/32", 80), ("169.254.169.252/32", 988), ("169.254.170.23/32", 80))


def build_namespace(shape: ClusterShape) -> Manifest:
    """Return the namespace, which enforces the Pod Security Standard "restricted"."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": shape.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }


def build_quota(shape: ClusterShape) -> Manifest:
    """Return the quota of all pods of the namespace together: enough for one such run at a time."""
    hard = {
        "pods": str(1 + shape.max_workers + EXTRA_PODS),
        "requests.cpu": str(HEAD_CPUS + shape.max_workers * shape.cpus + EXTRA_CPUS),
        "requests.memory": f"{HEAD_MEMORY_GIB + shape.max_workers * shape.memory_gib + EXTRA_MEMORY_GIB}Gi",
    }
    if shape.gpus:
        hard["requests.nvidia.com/gpu"] = str(shape.max_workers * shape.gpus)
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        # Not named after the job: of several quotas in a namespace, the smallest would apply.
        "metadata": {"name": "htc", "namespace": shape.namespace},
        "spec": {"hard": hard},
    }


def build_spec_map(spec: JobSpec, shape: ClusterShape) -> Manifest:
    """Return the ConfigMap with the job spec, see `fit_spec`."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**_metadata(shape), "name": f"{shape.name}-spec"},
        "data": {SPEC_PATH.rpartition("/")[2]: spec_text(fit_spec(spec, shape))},
    }


def build_network_policy(spec: JobSpec, shape: ClusterShape) -> Manifest:
    """Return the network policy of the run's pods.

    Ingress: each other, KubeRay's operator to the dashboard, Prometheus to the metrics. Egress: each other, DNS, HTTPS
    (buckets, the API server), the port of `storage.endpoint_url`, and a cloud's identity server if one is needed.
    """
    peers = [{"podSelector": {"matchLabels": labels_of(shape)}}]
    ports = {*HTTPS_PORTS, *_endpoint_ports(spec)}
    egress: list[Manifest] = [
        {"to": peers},
        # To any address: a DNS cache on the node, which many clusters have, is not a pod that could be selected.
        {"ports": [_port(53, "UDP"), _port(53)]},
        {"ports": [_port(port) for port in sorted(ports)]},
    ]
    if shape.service_account:
        egress += [{"to": [{"ipBlock": {"cidr": cidr}}], "ports": [_port(port)]} for cidr, port in IDENTITY_SERVERS]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(shape),
        "spec": {
            "podSelector": {"matchLabels": labels_of(shape)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": peers},
                {"from": [_elsewhere("kuberay-operator")], "ports": [_port(PORTS["dashboard"])]},
                {"from": [_elsewhere("prometheus")], "ports": [_port(PORTS["metrics"])]},
            ],
            "egress": egress,
        },
    }


def build_disruption_budget(shape: ClusterShape) -> Manifest:
    """Return the budget that keeps node maintenance from evicting the head; workers may be evicted and are retried."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {**_metadata(shape), "name": f"{shape.name}-head"},
        "spec": {
            # An integer: Kubernetes allows nothing else for pods that belong to a custom kind.
            "minAvailable": 1,
            "selector": {"matchLabels": {**labels_of(shape), "ray.io/node-type": "head"}},
        },
    }


def build_pod_monitor(shape: ClusterShape) -> Manifest:
    """Return the PodMonitor by which Prometheus' operator scrapes the run's pods (monitoring.coreos.com/v1)."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": _metadata(shape),
        "spec": {
            "selector": {"matchLabels": labels_of(shape)},
            "podMetricsEndpoints": [{"port": "metrics", "interval": "15s"}],
        },
    }


def _metadata(shape: ClusterShape) -> Manifest:
    return {"name": shape.name, "namespace": shape.namespace, "labels": labels_of(shape)}


def _port(port: int, protocol: str = "TCP") -> Manifest:
    return {"port": port, "protocol": protocol}


def _elsewhere(name: str) -> Manifest:
    return {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}


def _endpoint_ports(spec: JobSpec) -> set[int]:
    options = spec.storage.options.values()
    urls = [spec.storage.endpoint_url, *(each.get("endpoint_url") for each in options), spec.input.uri]
    split = [urlsplit(url) for url in urls if url]
    return {url.port or (80 if url.scheme == "http" else 443) for url in split if url.scheme in ("http", "https")}
