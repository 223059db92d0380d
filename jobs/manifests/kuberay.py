"""KubeRay's kinds: RayCluster, RayJob, RayCronJob (ray.io/v1, KubeRay 1.6 and later)."""

from jobs.cluster.package import STOP_WAIT_S
from jobs.manifests.cluster_shape import ClusterShape
from jobs.manifests.pods import (
    OBJECT_STORE_BYTES,
    Manifest,
    autoscaler_container,
    build_head_pod,
    build_submitter_pod,
    build_worker_pod,
    labels_of,
)
from jobs.manifests.yaml_dump import dump_mapping

API_VERSION = "ray.io/v1"
# Time until an idle worker pod is removed: much longer than between two shards, much shorter than a GPU's billing hour.
IDLE_TIMEOUT_S = 120


def build_ray_cluster(shape: ClusterShape) -> Manifest:
    """Return a permanent cluster, for `htc submit`."""
    return {
        "apiVersion": API_VERSION,
        "kind": "RayCluster",
        "metadata": _metadata(shape),
        "spec": _cluster_spec(shape, has_spec=False),
    }


def build_ray_job(shape: ClusterShape, entrypoint: str) -> Manifest:
    """Return one run on its own cluster, which is removed at the end."""
    return {
        "apiVersion": API_VERSION,
        "kind": "RayJob",
        "metadata": _job_metadata(shape),
        "spec": build_ray_job_spec(shape, entrypoint),
    }


def build_ray_cron_job(
    shape: ClusterShape,
    entrypoint: str,
    *,
    cron: str,
    time_zone: str,
    is_paused: bool = False,
) -> Manifest:
    """Return a run at each time of `cron` in `time_zone`."""
    return {
        "apiVersion": API_VERSION,
        "kind": "RayCronJob",
        "metadata": _job_metadata(shape),
        "spec": {
            "schedule": cron,
            "timeZone": time_zone,
            "suspend": is_paused,
            "jobTemplate": build_ray_job_spec(shape, entrypoint),
        },
    }


def build_ray_job_spec(shape: ClusterShape, entrypoint: str) -> Manifest:
    """Return the spec that RayJob and RayCronJob share."""
    spec: Manifest = {
        "entrypoint": entrypoint,
        "runtimeEnvYAML": dump_mapping({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": shape.keep_s,
        # KubeRay repeats every failure alike, also a wrong spec and a run over its error budget, each time on a new
        # cluster. The pod of `jobs.manifests.starter` distinguishes them.
        "backoffLimit": 0,
        # Of the pod that submits. It finds the job that it has submitted, and submits again when the head was replaced.
        "submitterConfig": {"backoffLimit": 3},
        "submitterPodTemplate": build_submitter_pod(shape),
        "rayClusterSpec": _cluster_spec(shape, has_spec=True),
    }
    if shape.deadline_s is not None:
        spec["activeDeadlineSeconds"] = shape.deadline_s
    return spec


def _job_metadata(shape: ClusterShape) -> Manifest:
    metadata = _metadata(shape)
    if shape.queue:
        # kueue.sigs.k8s.io/docs/tasks/run/rayjobs
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = shape.queue
    return metadata


def _metadata(shape: ClusterShape) -> Manifest:
    return {"name": shape.name, "namespace": shape.namespace, "labels": labels_of(shape)}


def _cluster_spec(shape: ClusterShape, *, has_spec: bool) -> Manifest:
    authentication = {"mode": "token"}
    if shape.token_secret:
        authentication["secretName"] = shape.token_secret
    autoscaling: Manifest = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": IDLE_TIMEOUT_S,
            **autoscaler_container(),
        },
    }
    return {
        "rayVersion": shape.ray_version,
        # KubeRay sets RAY_AUTH_MODE=token and RAY_AUTH_TOKEN from the Secret in every container, also in the
        # submitter's and the autoscaler's.
        "authOptions": authentication,
        # Kueue refuses jobs that change their size.
        **({} if shape.queue else autoscaling),
        "headGroupSpec": {
            "rayStartParams": {
                "num-cpus": "0",
                # KubeRay and the submitter come from other pods; the token and the NetworkPolicy keep the rest out.
                "dashboard-host": "0.0.0.0",  # noqa: S104  # nosec B104
                "object-store-memory": str(OBJECT_STORE_BYTES),
            },
            "template": build_head_pod(shape, has_spec=has_spec),
        },
        "workerGroupSpecs": [
            {
                "groupName": "gpu" if shape.gpus else "cpu",
                "replicas": shape.min_workers,
                "minReplicas": shape.min_workers,
                "maxReplicas": shape.max_workers,
                "rayStartParams": {"num-cpus": str(shape.cpus), "object-store-memory": str(OBJECT_STORE_BYTES)},
                "template": build_worker_pod(shape),
            }
        ],
    }
