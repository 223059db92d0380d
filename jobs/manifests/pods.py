"""The pods of a run's cluster: the head with the driver, workers with GPUs, and the one that submits."""

from typing import Any

from jobs.manifests.cluster_shape import ClusterShape, SpotMarket
from jobs.manifests.pod_options import apply_container_options, apply_pod_options

Manifest = dict[str, Any]

SPEC_FOLDER = "/etc/htc"
# Of a head, the output that its run writes: by it the starter finds RayJobs with the same output.
OUTPUT_ANNOTATION = "htc-batch/output"
SPEC_PATH = f"{SPEC_FOLDER}/job.yaml"
CACHE_FOLDER = "/var/cache/htc"
# Ray's ports (ray._private.ray_constants, KubeRay's utils/constant.go).
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
AGENT_PORT = 52365
# The image's user, see infra/docker/Dockerfile.
USER_ID = 1000
HEAD_CPUS, HEAD_MEMORY_GIB = 2, 8
# Together what the Pod Security Standard "restricted" requires.
POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
}
# Ray's object store only holds lists of shards and reports, see pipeline.cluster.connection.
OBJECT_STORE_BYTES = 200 * 2**20

# Label and taint of each cloud's spot nodes. Google: cloud.google.com/kubernetes-engine/docs/how-to/spot-vms
# (GKE taints only where asked to); EKS: docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html (no taint of
# its own); Karpenter: karpenter.sh/docs/concepts/scheduling; Azure: learn.microsoft.com/azure/aks/spot-node-pool.
SPOT_LABELS: dict[SpotMarket, tuple[str, str]] = {
    "gke": ("cloud.google.com/gke-spot", "true"),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT"),
    "karpenter": ("karpenter.sh/capacity-type", "spot"),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot"),
}


def labels_of(shape: ClusterShape) -> dict[str, str]:
    """Return the labels of all the run's resources."""
    # Not app.kubernetes.io/name and the like: KubeRay selects by those, with its own values.
    return {"app": "htc-batch", "htc-job": shape.name}


def build_head_pod(shape: ClusterShape, *, has_spec: bool) -> Manifest:
    """Return the pod of Ray's head, where the driver runs; it has no GPU and no actors.

    Args:
        has_spec: mount the spec's ConfigMap.
    """
    container = _container(shape, "ray-head", cpus=HEAD_CPUS, memory_gib=HEAD_MEMORY_GIB)
    container["ports"] = [{"name": name, "containerPort": port} for name, port in PORTS.items()]
    container["readinessProbe"] = _probe(PORTS["dashboard"], "/api/gcs_healthz")
    container["livenessProbe"] = _probe(AGENT_PORT, "/api/local_raylet_healthz", failures=12)
    pod = _pod(shape, container)
    if has_spec:
        container["volumeMounts"].append({"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True})
        pod["spec"]["volumes"].append({"name": "spec", "configMap": {"name": f"{shape.name}-spec"}})
        pod["metadata"]["annotations"] = {OUTPUT_ANNOTATION: shape.output}
    _give_identity(shape, pod)
    apply_pod_options(pod, shape.pods, is_worker=False)
    return pod


def build_worker_pod(shape: ClusterShape) -> Manifest:
    """Return a worker pod, with one worker process for each GPU or share of a GPU."""
    container = _container(shape, "ray-worker", cpus=shape.cpus, memory_gib=shape.memory_gib)
    container["ports"] = [{"name": "metrics", "containerPort": PORTS["metrics"]}]
    container["readinessProbe"] = _probe(AGENT_PORT, "/api/local_raylet_healthz")
    container["livenessProbe"] = _probe(AGENT_PORT, "/api/local_raylet_healthz", failures=12)
    if shape.gpus:
        for side in ("requests", "limits"):
            container["resources"][side]["nvidia.com/gpu"] = str(shape.gpus)
    pod = _pod(shape, container)
    # Workers never use the Kubernetes API; a cloud identity has its own token.
    pod["spec"]["automountServiceAccountToken"] = False
    _give_identity(shape, pod)
    selector, tolerations = _placement(shape)
    if selector:
        pod["spec"]["nodeSelector"] = selector
    if tolerations:
        pod["spec"]["tolerations"] = tolerations
    apply_pod_options(pod, shape.pods, is_worker=True)
    return pod


def build_submitter_pod(shape: ClusterShape) -> Manifest:
    """Return the pod that submits the entrypoint to the head and follows it; KubeRay fills in its command."""
    container = {
        "name": "ray-job-submitter",
        "image": shape.image,
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
        "securityContext": CONTAINER_SECURITY,
    }
    pod = {
        "metadata": {"labels": labels_of(shape)},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": POD_SECURITY,
            "containers": [container],
        },
    }
    apply_pod_options(pod, shape.pods, is_worker=False)
    return pod


def autoscaler_container() -> Manifest:
    """Return the resources and the security context of the autoscaler beside the head."""
    return {
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
        "securityContext": CONTAINER_SECURITY,
    }


def _pod(shape: ClusterShape, container: Manifest) -> Manifest:
    return {
        "metadata": {"labels": labels_of(shape)},
        "spec": {
            # KubeRay creates a new pod instead; Ray's autoscaler counts pods, and a restarted one would confuse it.
            "restartPolicy": "Never",
            "securityContext": POD_SECURITY,
            "containers": [container],
            "volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "8Gi"}}],
        },
    }


def _container(shape: ClusterShape, name: str, *, cpus: int, memory_gib: int) -> Manifest:
    memory = f"{memory_gib}Gi"
    container: Manifest = {
        "name": name,
        "image": shape.image,
        "env": [
            {"name": "HTC_CACHE", "value": CACHE_FOLDER},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        ],
        # Cores are not limited: Ray counts them by num-cpus, and throttled decoding would starve the GPU.
        "resources": {"requests": {"cpu": str(cpus), "memory": memory}, "limits": {"memory": memory}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "cache", "mountPath": CACHE_FOLDER}],
    }
    if shape.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in shape.secrets]
    apply_container_options(container, shape.pods)
    return container


def _give_identity(shape: ClusterShape, pod: Manifest) -> None:
    if not shape.service_account:
        return
    pod["spec"]["serviceAccountName"] = shape.service_account
    # Azure's webhook gives a cloud identity only to pods with this label; elsewhere it means nothing.
    # learn.microsoft.com/azure/aks/workload-identity-overview
    pod["metadata"]["labels"]["azure.workload.identity/use"] = "true"


def _probe(port: int, path: str, *, failures: int = 3) -> Manifest:
    # Ray answers these two paths without the token.
    return {
        "httpGet": {"path": path, "port": port},
        "initialDelaySeconds": 10,
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _placement(shape: ClusterShape) -> tuple[dict[str, str], list[Manifest]]:
    selector = dict(shape.node_selector)
    tolerations: list[Manifest] = []
    if shape.gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if shape.spot:
        key, value = SPOT_LABELS[shape.spot]
        selector[key] = value
        tolerations.append({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    return selector, tolerations
