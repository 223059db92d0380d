"""Manifests: the same spec for Kubernetes."""

import enum
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli import options
from jobs.cli.app import app
from jobs.cli.flag_groups import AlsoFlag, with_flag_groups


class ManifestKind(enum.StrEnum):
    """The kind of Kubernetes resource."""

    RAYJOB = "rayjob"
    JOB = "job"
    RAYCRONJOB = "raycronjob"
    RAYCLUSTER = "raycluster"
    ALL = "all"


class Spot(enum.StrEnum):
    """The provider of spot nodes."""

    GKE = "gke"
    EKS = "eks"
    KARPENTER = "karpenter"
    AKS = "aks"


Image = Annotated[
    str | None, typer.Option("--image", metavar="IMAGE", help="Container image of all pods; infra/docker builds it.")
]
ToFolder = Annotated[
    Path | None,
    typer.Option("--to", metavar="DIR", help="Write there: a folder for the files. [default: all to stdout]"),
]
KustomizeFolder = Annotated[
    Path | None,
    typer.Option(
        "--kustomize", metavar="DIR", help="Write a kustomize tree: a base, and overlays own, production and spot."
    ),
]


@dataclass(frozen=True, kw_only=True)
class ClusterFlags:
    """The flags of `manifests` and `schedule export` that shape the Kubernetes resources."""

    namespace: Annotated[str, typer.Option("--namespace", metavar="NAME", help="Namespace of all resources.")] = "htc"
    workers: Annotated[str, typer.Option("--workers", metavar="MIN:MAX", help="Worker pods.")] = "1:4"
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", help="GPUs of one worker pod.")] = 1
    cpus: Annotated[
        int | None, typer.Option("--cpus", metavar="N", min=1, help="CPU cores of one worker pod. [default: 6 per GPU]")
    ] = None
    memory_gib: Annotated[
        int | None,
        typer.Option("--memory-gib", metavar="N", min=1, help="Memory of one worker pod. [default: 24 per GPU]"),
    ] = None
    spot: Annotated[Spot | None, typer.Option("--spot", help="Workers on spot nodes.", show_default=False)] = None
    node_selector: Annotated[
        list[str] | None,
        typer.Option("--node-selector", metavar="KEY=VALUE", help="A label of the workers' nodes; repeatable."),
    ] = None
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="NAME", help="A Secret whose keys become environment variables; repeatable."),
    ] = None
    service_account: Annotated[
        str | None,
        typer.Option("--service-account", metavar="NAME", help="Service account of all pods; for a cloud identity."),
    ] = None
    token_secret: Annotated[
        str | None,
        typer.Option(
            "--token-secret", metavar="NAME", help="Secret with the token, key auth_token. [default: KubeRay's]"
        ),
    ] = None
    ray_version: Annotated[
        str | None,
        typer.Option(
            "--ray-version", metavar="X.Y.Z", help="Ray version of the image. [default: the one installed here]"
        ),
    ] = None
    pod_monitor: Annotated[bool, typer.Option("--pod-monitor", help="Add a PodMonitor, for Prometheus' operator.")] = (
        False
    )
    create_namespace: Annotated[
        bool, typer.Option("--create-namespace", help="Write the namespace too. [default: it exists]")
    ] = False
    quota: Annotated[
        bool, typer.Option("--quota", help="Write a quota of the namespace, for one such run at a time.")
    ] = False
    retries: Annotated[
        int | None,
        typer.Option(
            "--retries",
            metavar="N",
            min=0,
            max=8,
            help="New clusters after lost ones, never after a failed run; for a Job and a CronJob. [default: 2]",
        ),
    ] = None
    ttl: Annotated[
        str | None,
        typer.Option("--ttl", metavar="DURATION", help="How long a finished job's pods are kept. [default: 10m]"),
    ] = None
    pull_secret: Annotated[
        list[str] | None,
        typer.Option("--pull-secret", metavar="NAME", help="A Secret for the image's registry; repeatable."),
    ] = None
    toleration: Annotated[
        list[str] | None,
        typer.Option("--toleration", metavar="KEY=VALUE:EFFECT", help="A taint of the workers' nodes; repeatable."),
    ] = None
    priority_class: Annotated[
        str | None, typer.Option("--priority-class", metavar="NAME", help="Priority class of all pods.")
    ] = None
    queue: Annotated[
        str | None, typer.Option("--queue", metavar="NAME", help="The Kueue queue that admits the job.")
    ] = None
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label of all pods; repeatable.")
    ] = None
    annotation: Annotated[
        list[str] | None,
        typer.Option("--annotation", metavar="KEY=VALUE", help="An annotation of all pods; repeatable."),
    ] = None
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="KEY=VALUE", help="A variable of head and workers; repeatable."),
    ] = None
    env_from_secret: Annotated[
        list[str] | None,
        typer.Option(
            "--env-from-secret", metavar="VARIABLE=SECRET/KEY", help="A variable from one key of a Secret; repeatable."
        ),
    ] = None
    volume: Annotated[
        list[str] | None,
        typer.Option(
            "--volume",
            metavar="KIND:SOURCE:PATH[:ro]",
            help="A pvc, secret, configmap or hostpath mounted into head and workers; repeatable.",
        ),
    ] = None
    ephemeral_storage_gib: Annotated[
        int | None,
        typer.Option("--ephemeral-storage-gib", metavar="N", min=1, help="Local disk of head and worker pods."),
    ] = None

    def shape_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `jobs.manifests.cluster_shape.build_shape` that these flags give."""
        from jobs.cluster.submit_command import read_env_vars
        from jobs.manifests.pod_options import parse_pod_options
        from jobs.scheduling.durations import parse_duration

        return {
            "namespace": self.namespace,
            "workers": self.workers,
            "gpus": self.gpus,
            "cpus": self.cpus,
            "memory_gib": self.memory_gib,
            "spot": self.spot.value if self.spot else None,
            "node_selector": self.node_selector or (),
            "secrets": self.secret or (),
            "service_account": self.service_account,
            "token_secret": self.token_secret,
            "ray_version": self.ray_version,
            "has_namespace": self.create_namespace,
            "has_quota": self.quota,
            "retries": self.retries,
            "keep_s": parse_duration(self.ttl, "--ttl"),
            "queue": self.queue,
            "pods": parse_pod_options(
                pull_secrets=self.pull_secret or (),
                tolerations=self.toleration or (),
                priority_class=self.priority_class,
                labels=self.label or (),
                annotations=self.annotation or (),
                environment=[f"{name}={value}" for name, value in read_env_vars(self.env or (), os.environ).items()],
                secret_environment=self.env_from_secret or (),
                volumes=self.volume or (),
                ephemeral_storage_gib=self.ephemeral_storage_gib,
            ),
        }


@app.command("manifests")
@with_flag_groups
def write_manifests(
    spec: Annotated[
        str | None, typer.Argument(metavar="SPEC", help="Job spec (YAML); flags override it."), AlsoFlag("--spec")
    ] = None,
    *,
    input_uri: Annotated[
        str | None, typer.Option("--input", metavar="INPUT", help="Images, as for `htc run`.", show_default=False)
    ] = None,
    output_uri: Annotated[
        str | None, typer.Option("--output", metavar="OUTPUT", help="Where the tables go.", show_default=False)
    ] = None,
    kind: Annotated[ManifestKind, typer.Option("--kind", help="Kind of resource to write.")] = ManifestKind.RAYJOB,
    image: Image = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the job. [default: the spec's]")
    ] = None,
    cluster: ClusterFlags,
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="CRON", help="When a RayCronJob runs: five fields.")
    ] = None,
    time_zone: Annotated[str, typer.Option("--time-zone", metavar="ZONE", help="Time zone of --cron.")] = "UTC",
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="DURATION", help="KubeRay ends the job after this time.")
    ] = None,
    to: ToFolder = None,
    kustomize: KustomizeFolder = None,
    helm: Annotated[Path | None, typer.Option("--helm", metavar="DIR", help="Write a Helm chart of the job.")] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check-tree",
            metavar="DIR",
            help="Check a kustomize tree instead: patches for objects that are not there.",
        ),
    ] = None,
) -> None:
    """Write a job spec as Kubernetes manifests.

    For KubeRay 1.6 or later. With --to: DIR/base/ holds what every kind needs, DIR/rayjob.yaml and so on the kinds
    themselves. --kind job is a RayJob that is started again on a new cluster where the old one was lost.
    """
    from jobs.manifests.cluster_shape import build_shape
    from jobs.manifests.command import check_job_tree, write_job_chart, write_job_manifests, write_job_tree
    from jobs.scheduling.durations import parse_duration
    from pipeline.errors import SpecError

    if check is not None:
        if spec is not None:
            raise SpecError("--check-tree takes a folder that is there; give the spec without it.")
        check_job_tree(check)
        return
    if spec is None and input_uri is None:
        raise SpecError("Name the job spec: htc manifests job.yaml --image REGISTRY/htc-batch:TAG")
    if [to, kustomize, helm].count(None) < 2:
        raise SpecError("--to, --kustomize and --helm are layouts of the same manifests; give one of them.")
    job_spec = options.load_job_spec(spec, input_uri=input_uri, output_uri=output_uri)
    deadline_s = parse_duration(deadline, "--deadline")
    shape = build_shape(job_spec, image=image, name=name, deadline_s=deadline_s, **cluster.shape_options())
    if kustomize is not None:
        write_job_tree(job_spec, shape, kind=kind.value, cron=cron, time_zone=time_zone, folder=kustomize)
        return
    if helm is not None:
        write_job_chart(
            job_spec,
            shape,
            kind=kind.value,
            cron=cron,
            time_zone=time_zone,
            has_pod_monitor=cluster.pod_monitor,
            folder=helm,
        )
        return
    write_job_manifests(
        job_spec,
        shape,
        kind=kind.value,
        cron=cron,
        time_zone=time_zone,
        has_pod_monitor=cluster.pod_monitor,
        folder=to,
    )
