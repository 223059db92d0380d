"""A schedule for KubeRay without RayCronJob: a CronJob whose pod creates a RayJob and waits for its end."""

from jobs.manifests.cluster_shape import ClusterShape
from jobs.manifests.cron_fields import portable_cron
from jobs.manifests.kuberay import build_ray_job
from jobs.manifests.pods import CONTAINER_SECURITY, POD_SECURITY, Manifest, labels_of
from jobs.manifests.yaml_dump import dump_manifests
from jobs.scheduling.schedule import Schedule

TEMPLATE_FOLDER = "/etc/htc-start"
TEMPLATE_FILE = "rayjob.yaml"
# How late the CronJob controller may be without missing a time; it checks every 10 s.
MIN_STARTING_DEADLINE_S = 60
CONCURRENCY = {"skip": "Forbid", "queue": "Forbid", "replace": "Replace"}
# The starter's exit code if the RayJob failed: starting it again would not help.
FAILED_EXIT_CODE = 1


def build_cron_job(schedule: Schedule, shape: ClusterShape, entrypoint: str) -> list[Manifest]:
    """Return the CronJob and what its pod needs: an account that may create RayJobs, and the RayJob to create.

    The pod lives as long as the RayJob, so that concurrencyPolicy counts it; the RayJob is owned by the pod's Job, so
    that it is removed when Kubernetes replaces or removes the Job.
    """
    account = f"{shape.name}-starter"
    template = build_ray_job(shape, entrypoint)
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(shape, account)},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": _metadata(shape, account),
            "rules": [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": _metadata(shape, account),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": shape.namespace}],
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": _metadata(shape, f"{shape.name}-rayjob"),
            "data": {TEMPLATE_FILE: dump_manifests([template])},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": _metadata(shape, shape.name),
            "spec": {
                "schedule": portable_cron(schedule.cron, "Kubernetes"),
                "timeZone": schedule.time_zone,
                "suspend": schedule.is_paused,
                "concurrencyPolicy": CONCURRENCY[schedule.overlap],
                "startingDeadlineSeconds": starting_deadline_s(schedule),
                "successfulJobsHistoryLimit": 3,
                "failedJobsHistoryLimit": 3,
                "jobTemplate": {"spec": _job(schedule, shape, account)},
            },
        },
    ]


def starting_deadline_s(schedule: Schedule) -> int:
    """Return how many seconds after its time a missed firing may start."""
    if schedule.catch_up == "none":
        return MIN_STARTING_DEADLINE_S
    return max(MIN_STARTING_DEADLINE_S, int(schedule.catch_up_window_s))


def stop_deadline_s(schedule: Schedule) -> int | None:
    """Return the seconds after which Kubernetes ends the job, counted from its start, not from its scheduled time."""
    is_stopped = schedule.deadline_s is not None and schedule.on_deadline == "stop"
    return int(schedule.deadline_s or 0) if is_stopped else None


def _job(schedule: Schedule, shape: ClusterShape, account: str) -> Manifest:
    words = ["python", "-P", "-m", "jobs.entrypoints.kube_cron_job", f"{TEMPLATE_FOLDER}/{TEMPLATE_FILE}"]
    if schedule.mode == "full":
        words.append("--run-of-its-own")
    if schedule.jitter_s:
        words += ["--jitter-s", f"{schedule.jitter_s:g}"]
    container = {
        "name": "starter",
        "image": shape.image,
        "command": words,
        "env": [
            _label_of_pod("JOB_NAME", "batch.kubernetes.io/job-name"),
            _label_of_pod("JOB_UID", "batch.kubernetes.io/controller-uid"),
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "template", "mountPath": TEMPLATE_FOLDER, "readOnly": True}],
    }
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": account,
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [{"name": "template", "configMap": {"name": f"{shape.name}-rayjob"}}],
    }
    return {
        # A pod that was evicted is created again, and finds its RayJob.
        "backoffLimit": 3,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "starter", "operator": "In", "values": [FAILED_EXIT_CODE]},
                }
            ]
        },
        "template": {"metadata": {"labels": labels_of(shape)}, "spec": pod},
    }


def _label_of_pod(variable: str, label: str) -> Manifest:
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}}}


def _metadata(shape: ClusterShape, name: str) -> Manifest:
    return {"name": name, "namespace": shape.namespace, "labels": labels_of(shape)}
