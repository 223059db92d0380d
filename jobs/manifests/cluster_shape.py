"""The shape of a Kubernetes cluster that the job spec does not define: image, sizes and number of pods, identity."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal

from jobs.manifests.pod_options import PodOptions, parse_labels
from jobs.manifests.volumes import Volume
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec
from pipeline.storage.uris import base_name, is_local

SpotMarket = Literal["gke", "eks", "karpenter", "aks"]

# KubeRay appends up to 16 characters to the names of its resources, and Service names have at most 63 characters.
MAX_NAME = 36
# What the daemons leave of a node with one GPU and 8 cores (AWS g5.2xlarge and g6.2xlarge, Google g2-standard-8).
CPUS_PER_GPU = 6
MEMORY_GIB_PER_GPU = 24
# Without a GPU: an ordinary node of 8 cores.
CPUS_PER_POD = 6
MEMORY_GIB_PER_POD = 20
# Ten minutes: time to read the pods' logs.
KEEP_S = 600
# Kubernetes' own, which exist in every cluster.
SYSTEM_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


@dataclass(frozen=True)
class ClusterShape:
    """The shape of a run's cluster.

    name: of the job and its resources, a DNS label.
    output: URI of what the job writes, by which jobs with the same output are found.
    image: container image of all pods, with htc-batch and Ray.
    ray_version: version of Ray in the image.
    min_workers, max_workers: limits of Ray's autoscaler, in worker pods.
    gpus, cpus, memory_gib: of one worker pod.
    spot: provider of the spot nodes that workers may run on; the head never does.
    secrets: Secrets whose keys become the pods' environment variables, such as AWS_ACCESS_KEY_ID.
    service_account: an existing service account, the pods' cloud identity.
    token_secret: a Secret whose key auth_token holds the cluster's token; by default KubeRay creates one.
    pods: what all pods get, see `PodOptions`.
    queue: the Kueue queue that admits the job, None without Kueue.
    retries: how many new clusters a lost one gets; None for the default of the kinds that have it.
    keep_s: seconds until the finished job's pods are removed.
    deadline_s: seconds from the job's start after which KubeRay ends it, None for no limit.
    has_namespace, has_quota: write the namespace, and its quota; else they must exist, or are another's.
    """

    name: str
    output: str
    namespace: str
    image: str
    ray_version: str
    min_workers: int
    max_workers: int
    gpus: int
    cpus: int
    memory_gib: int
    spot: SpotMarket | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    service_account: str | None = None
    token_secret: str | None = None
    pods: PodOptions = field(default_factory=PodOptions)
    queue: str | None = None
    retries: int | None = None
    keep_s: int = KEEP_S
    deadline_s: int | None = None
    has_namespace: bool = False
    has_quota: bool = False


def build_shape(
    spec: JobSpec,
    *,
    image: str | None,
    name: str | None = None,
    namespace: str = "htc",
    workers: str = "1:4",
    gpus: int = 1,
    cpus: int | None = None,
    memory_gib: int | None = None,
    spot: SpotMarket | None = None,
    node_selector: Iterable[str] = (),
    secrets: Iterable[str] = (),
    service_account: str | None = None,
    token_secret: str | None = None,
    ray_version: str | None = None,
    pods: PodOptions | None = None,
    queue: str | None = None,
    retries: int | None = None,
    keep_s: float | None = None,
    deadline_s: float | None = None,
    has_namespace: bool = False,
    has_quota: bool = False,
) -> ClusterShape:
    """Check a command's options and fill in the defaults.

    Args:
        workers: minimum and maximum of worker pods, "4" or "1:8".
        node_selector: labels of the workers' nodes, each "key=value".
        keep_s, deadline_s: seconds, see `ClusterShape`; None for the default.

    Raises:
        SpecError: an option is wrong or missing, or the spec names a local path, which no pod can see.
    """
    if not image:
        raise SpecError(
            "Name the image that the pods run: --image REGISTRY/htc-batch:TAG; infra/docker/Dockerfile builds it."
        )
    if gpus < 0:
        raise SpecError(f"--gpus is {gpus}; give the GPUs of one worker pod, 0 for none.")
    volumes = pods.volumes if pods else ()
    _check_reachable(spec, volumes)
    fewest, most = _parse_workers(workers)
    if queue and fewest != most:
        raise SpecError(
            f"--workers is {workers}, and Kueue admits jobs of one size only; give one number with --queue, such as "
            f"--workers {most}."
        )
    shape = ClusterShape(
        name=_checked_name(name, "--name") if name else job_name(spec),
        output=spec.output.uri.rstrip("/"),
        namespace=_checked_name(namespace, "--namespace"),
        image=image,
        ray_version=ray_version or _installed_ray(),
        min_workers=fewest,
        max_workers=most,
        gpus=gpus,
        cpus=cpus or (CPUS_PER_GPU * gpus if gpus else CPUS_PER_POD),
        memory_gib=memory_gib or (MEMORY_GIB_PER_GPU * gpus if gpus else MEMORY_GIB_PER_POD),
        spot=spot,
        node_selector=parse_labels(node_selector, "--node-selector"),
        secrets=tuple(_checked_name(each, "--secret") for each in secrets),
        service_account=_checked_name(service_account, "--service-account") if service_account else None,
        token_secret=_checked_name(token_secret, "--token-secret") if token_secret else None,
        pods=pods or PodOptions(),
        queue=_checked_name(queue, "--queue") if queue else None,
        retries=retries,
        keep_s=KEEP_S if keep_s is None else _whole_seconds(keep_s, "--ttl", least=0),
        deadline_s=None if deadline_s is None else _whole_seconds(deadline_s, "--deadline", least=1),
        has_namespace=has_namespace,
        has_quota=has_quota,
    )
    if has_namespace:
        check_own_namespace(shape)
    return shape


def check_own_namespace(shape: ClusterShape) -> None:
    """Check that the job's namespace may be written, and that its pods fit its Pod Security Standard.

    Raises:
        SpecError: it is one that others use, or a volume is a folder of the node.
    """
    if shape.namespace in SYSTEM_NAMESPACES:
        raise SpecError(
            f"--create-namespace and --kustomize would change the namespace {shape.namespace}, which others use; leave "
            "them out, or name another with --namespace."
        )
    paths = [volume.source for volume in shape.pods.volumes if volume.kind == "hostpath"]
    if paths:
        raise SpecError(
            f"--volume hostpath:{paths[0]} is not allowed in the namespace that --create-namespace and --kustomize "
            "write: the Pod Security Standard restricted forbids folders of the node; use a claim (pvc:NAME:PATH), or "
            "a namespace that exists."
        )


def job_name(spec: JobSpec) -> str:
    """Return a name that is valid in Kubernetes: the spec's, else that of the output's last folder."""
    return label_of(spec.name or base_name(spec.output.uri.rstrip("/")) or "htc")


def label_of(name: str) -> str:
    """Return a name as a DNS label of at most MAX_NAME characters that begins with a letter."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:MAX_NAME].strip("-")
    return label if label[:1].isalpha() else f"htc-{label}"[:MAX_NAME].strip("-")


def fit_spec(spec: JobSpec, shape: ClusterShape) -> JobSpec:
    """Return the spec with the "auto" values of its compute section resolved for the cluster's largest size.

    The driver counts the nodes when it starts, which in a cluster that grows is the minimum.

    Raises:
        SpecError: a worker does not fit into a pod.
    """
    compute = spec.compute
    gpus_each = (1.0 if shape.gpus else 0.0) if compute.gpus_per_worker == "auto" else compute.gpus_per_worker
    if gpus_each > shape.gpus:
        raise SpecError(
            f"compute.gpus_per_worker is {gpus_each:g}, and a pod has {shape.gpus}; give it more with --gpus."
        )
    if gpus_each:
        per_pod = math.floor(shape.gpus / gpus_each + 1e-9)
        cpus_each = shape.cpus / per_pod if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
    else:
        cpus_each = 1.0 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
        per_pod = math.floor(shape.cpus / cpus_each + 1e-9) if cpus_each else 1
    if per_pod < 1 or cpus_each * per_pod > shape.cpus + 1e-9:
        raise SpecError(
            f"compute.cpus_per_worker is {cpus_each:g}, and {max(1, per_pod)} of them do not fit into a pod of "
            f"{shape.cpus}; give it more with --cpus."
        )
    workers = per_pod * shape.max_workers if compute.workers == "auto" else compute.workers
    fitted = compute.model_copy(update={"workers": workers, "gpus_per_worker": gpus_each, "cpus_per_worker": cpus_each})
    return spec.model_copy(update={"compute": fitted})


def _check_reachable(spec: JobSpec, volumes: tuple[Volume, ...]) -> None:
    places = {"input.uri": spec.input.uri, "output.uri": spec.output.uri}
    for number, member in enumerate(spec.model.members):
        if member.weights not in ("demo", "coco", "untrained", "default"):
            key = "model.weights" if spec.model.ensemble is None else f"model.ensemble.members.{number}.weights"
            places[key] = member.weights
    for key, uri in places.items():
        mounted = next((volume for volume in volumes if volume.holds(uri)), None)
        if mounted is not None and mounted.is_read_only and key == "output.uri":
            raise SpecError(f"output.uri is {uri}, and --volume mounts {mounted.path} read-only.")
        if is_local(uri) and mounted is None:
            raise SpecError(
                f"{key} is {uri}, a path of this machine; pods can read buckets, such as s3://bucket/folder/, and what "
                "--volume mounts."
            )


def _parse_workers(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    if match is None:
        raise SpecError(f'--workers is {text!r}; give the number of worker pods, "4", or minimum and maximum, "1:8".')
    fewest = int(match[1])
    most = int(match[2] or fewest)
    if fewest < 1:
        # The driver plans its workers by the nodes at its start, and an empty cluster has no GPU.
        raise SpecError("--workers begins at 0; at least one worker pod must run when the run begins.")
    if most < fewest:
        raise SpecError(f"--workers is {text}: the maximum {most} is less than the minimum {fewest}.")
    return fewest, most


def _checked_name(name: str, option: str) -> str:
    longest = MAX_NAME if option == "--name" else 63
    if len(name) > longest or not re.fullmatch(r"[a-z](?:[a-z0-9-]*[a-z0-9])?", name):
        raise SpecError(
            f"{option} is {name!r}; Kubernetes requires lower-case letters, digits and dashes, beginning with a "
            f"letter, {longest} characters at most."
        )
    return name


def _whole_seconds(seconds: float, option: str, *, least: int) -> int:
    # Kubernetes' fields for seconds are 32-bit integers.
    if not least <= seconds < 2**31:
        raise SpecError(f"{option} is {seconds:g} s; give a time from {least} s to 68 years.")
    return int(seconds)


def _installed_ray() -> str:
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise SpecError("Ray is not installed here; name the image's version with --ray-version 2.60.0.") from None
