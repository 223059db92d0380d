"""What stands around a run's pods: its namespace and quota, its spec, who may talk to whom, what may be evicted."""

from urllib.parse import urlsplit

from jobs.cluster.package import spec_text
from jobs.manifests.cluster_shape import ClusterShape, fit_spec
from jobs.manifests.pods import HEAD_CPUS, HEAD_MEMORY_GIB, PORTS, SPEC_PATH, Manifest, labels_of
from pipeline.job_spec.job import JobSpec

# The autoscaler, the submitter and, beside them, whatever else is as small: pods and GiB on top of head and workers.
EXTRA_CPUS, EXTRA_MEMORY_GIB, EXTRA_PODS = 2, 4, 4
# The API server, behind its Service (443) and where most clusters have it (6443).
HTTPS_PORTS = (443, 6443)
# Where pods get a cloud identity: Google's metadata server (and, on its Dataplane V2, 169.254.169.252:988), EKS Pod
# Identity. The token that IRSA and Azure mount goes to a public address by HTTPS.
IDENTITY_SERVERS = (("169.254.169.254/32", 80), ("169.254.169.252/32", 988), ("169.254.170.23/32", 80))


def build_namespace(shape: ClusterShape) -> Manifest:
    """The namespace, in which no pod may be root or ask for the host's things."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": shape.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }


def build_quota(shape: ClusterShape) -> Manifest:
    """What all pods of the namespace may ask for together: one such run at a time."""
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
        # Not named like the job: a namespace has one, or the smallest of several would bind.
        "metadata": {"name": "htc", "namespace": shape.namespace},
        "spec": {"hard": hard},
    }


def build_spec_map(spec: JobSpec, shape: ClusterShape) -> Manifest:
    """The job spec as the pods see it, its compute section made definite."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**_metadata(shape), "name": f"{shape.name}-spec"},
        "data": {SPEC_PATH.rpartition("/")[2]: spec_text(fit_spec(spec, shape))},
    }


def build_network_policy(spec: JobSpec, shape: ClusterShape) -> Manifest:
    """Who may talk to the run's pods, and where these may go.

    In: each other, KubeRay's operator to the dashboard, Prometheus to the metrics. Out: each other, names, HTTPS
    (buckets, the API server), the port of `storage.endpoint_url`, and a cloud's identity server where one is needed.
    """
    peers = [{"podSelector": {"matchLabels": labels_of(shape)}}]
    ports = {*HTTPS_PORTS, *_endpoint_ports(spec)}
    egress: list[Manifest] = [
        {"to": peers},
        # To anywhere: a cache on the node, which many clusters have, is no pod that could be selected.
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
    """Keeps node maintenance from evicting the head; workers may go, their shards are done again."""
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
    """Tells Prometheus' operator to scrape the run's pods (monitoring.coreos.com/v1)."""
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
