"""The pod that creates RayJobs and follows them, in a Job or a CronJob; a new cluster only where the old one was lost.

The RayJob is owned by the pod's Job, so that it goes when Kubernetes replaces or removes the Job. It has not the Job's
name: KubeRay's own Job, which submits, has the name of the RayJob.
"""

from jobs.manifests.cluster_shape import ClusterShape
from jobs.manifests.kuberay import build_ray_job
from jobs.manifests.pod_options import apply_container_options, apply_pod_options
from jobs.manifests.pods import CONTAINER_SECURITY, POD_SECURITY, SPEC_FOLDER, SPEC_PATH, Manifest, labels_of
from jobs.manifests.yaml_dump import dump_manifests

TEMPLATE_FOLDER = "/etc/htc-start"
TEMPLATE_FILE = "rayjob.yaml"
# Exit codes of the pod. Of the first three, another pod would only meet the same again.
FAILED_EXIT_CODE = 1
REFUSED_EXIT_CODE = 2
HELD_EXIT_CODE = 4
UNREACHABLE_EXIT_CODE = 3
FINAL_EXIT_CODES = (FAILED_EXIT_CODE, REFUSED_EXIT_CODE, HELD_EXIT_CODE)
# Of the starter, when the command line names none: two machines lost in one run are rare, a third is a pattern.
DEFAULT_RETRIES = 2
# The attempt is the last character of the RayJob's name, see `attempt_name`.
MAX_RETRIES = 8


def attempt_name(job: str, attempt: int) -> str:
    """Return the name of a Job's RayJob: at most 47 characters, as KubeRay requires.

    Args:
        job: the Job's name: at most MAX_NAME characters, or of a CronJob 9 more. attempt: 1 to 9.
    """
    return f"{job}-{attempt}"


def build_start_job(shape: ClusterShape, entrypoint: str) -> list[Manifest]:
    """Return a Job that runs once, and what its pod needs."""
    return [
        *build_starter_resources(shape, entrypoint),
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": _metadata(shape, shape.name),
            "spec": build_starter_job_spec(shape),
        },
    ]


def build_starter_resources(shape: ClusterShape, entrypoint: str) -> list[Manifest]:
    """Return an account that may create RayJobs, and the RayJob to create."""
    account = _account(shape)
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(shape, account)},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": _metadata(shape, account),
            "rules": [
                # list: whether another RayJob works on the same output.
                {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]},
                # A lost cluster's nodes are freed before the next one asks for theirs.
                {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["delete"]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": _metadata(shape, account),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": shape.namespace}],
        },
        build_template_map(shape, entrypoint),
    ]


def build_template_map(shape: ClusterShape, entrypoint: str) -> Manifest:
    """Return the ConfigMap with the RayJob that the pod creates."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(shape, f"{shape.name}-rayjob"),
        "data": {TEMPLATE_FILE: dump_manifests([build_ray_job(shape, entrypoint)])},
    }


def build_starter_job_spec(shape: ClusterShape, arguments: tuple[str, ...] = ()) -> Manifest:
    """Return the spec of the Job whose pod creates the RayJobs.

    Args:
        arguments: of `jobs.entrypoints.kube_cron_job`, in addition to those that every such pod has.
    """
    retries = DEFAULT_RETRIES if shape.retries is None else shape.retries
    command = ["python", "-P", "-m", "jobs.entrypoints.kube_cron_job", f"{TEMPLATE_FOLDER}/{TEMPLATE_FILE}"]
    container: Manifest = {
        "name": "starter",
        "image": shape.image,
        "command": [*command, "--spec", SPEC_PATH, "--retries", str(retries), *arguments],
        "env": [
            _label_of_pod("JOB_NAME", "batch.kubernetes.io/job-name"),
            _label_of_pod("JOB_UID", "batch.kubernetes.io/controller-uid"),
            # Of the pod and not of the template: kustomize can move the objects, but not change a text.
            {"name": "JOB_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "template", "mountPath": TEMPLATE_FOLDER, "readOnly": True},
            {"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True},
        ],
    }
    if shape.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in shape.secrets]
    template: Manifest = {
        "metadata": {"labels": labels_of(shape)},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": _account(shape),
            "securityContext": POD_SECURITY,
            "containers": [container],
            "volumes": [
                {"name": "template", "configMap": {"name": f"{shape.name}-rayjob"}},
                {"name": "spec", "configMap": {"name": f"{shape.name}-spec"}},
            ],
        },
    }
    apply_container_options(container, shape.pods, has_storage=False)
    apply_pod_options(template, shape.pods, is_worker=False)
    return {
        # A pod that was evicted is created again, and finds its RayJob.
        "backoffLimit": 3,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "starter",
                        "operator": "In",
                        "values": list(FINAL_EXIT_CODES),
                    },
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": template,
    }


def _account(shape: ClusterShape) -> str:
    return f"{shape.name}-starter"


def _label_of_pod(variable: str, label: str) -> Manifest:
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}}}


def _metadata(shape: ClusterShape, name: str) -> Manifest:
    return {"name": name, "namespace": shape.namespace, "labels": labels_of(shape)}
