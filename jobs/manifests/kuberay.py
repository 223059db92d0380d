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


def build_ray_job(shape: ClusterShape, entrypoint: str, *, deadline_s: int | None = None) -> Manifest:
    """Return one run on its own cluster, which is removed at the end; `deadline_s` as for `build_ray_job_spec`."""
    return {
        "apiVersion": API_VERSION,
        "kind": "RayJob",
        "metadata": _metadata(shape),
        "spec": build_ray_job_spec(shape, entrypoint, deadline_s=deadline_s),
    }


def build_ray_cron_job(
    shape: ClusterShape,
    entrypoint: str,
    *,
    cron: str,
    time_zone: str,
    is_paused: bool = False,
    deadline_s: int | None = None,
) -> Manifest:
    """Return a run at each time of `cron` in `time_zone`."""
    return {
        "apiVersion": API_VERSION,
        "kind": "RayCronJob",
        "metadata": _metadata(shape),
        "spec": {
            "schedule": cron,
            "timeZone": time_zone,
            "suspend": is_paused,
            "jobTemplate": build_ray_job_spec(shape, entrypoint, deadline_s=deadline_s),
        },
    }


def build_ray_job_spec(shape: ClusterShape, entrypoint: str, *, deadline_s: int | None = None) -> Manifest:
    """Return the spec that RayJob and RayCronJob share.

    Args:
        deadline_s: seconds from the job's start, retries included, after which KubeRay ends it.
    """
    spec: Manifest = {
        "entrypoint": entrypoint,
        "runtimeEnvYAML": dump_mapping({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": shape.keep_s,
        # Safe to repeat: the same command resumes from the committed results.
        "backoffLimit": shape.retries,
        "submitterConfig": {"backoffLimit": 3},
        "submitterPodTemplate": build_submitter_pod(shape),
        "rayClusterSpec": _cluster_spec(shape, has_spec=True),
    }
    if deadline_s is not None:
        spec["activeDeadlineSeconds"] = deadline_s
    return spec


def _metadata(shape: ClusterShape) -> Manifest:
    return {"name": shape.name, "namespace": shape.namespace, "labels": labels_of(shape)}


def _cluster_spec(shape: ClusterShape, *, has_spec: bool) -> Manifest:
    authentication = {"mode": "token"}
    if shape.token_secret:
        authentication["secretName"] = shape.token_secret
    return {
        "rayVersion": shape.ray_version,
        # KubeRay sets RAY_AUTH_MODE=token and RAY_AUTH_TOKEN from the Secret in every container, also in the
        # submitter's and the autoscaler's.
        "authOptions": authentication,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": IDLE_TIMEOUT_S,
            **autoscaler_container(),
        },
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
