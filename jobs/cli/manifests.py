"""Manifests: the same spec for Kubernetes."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import options
from jobs.cli.app import app


class ManifestKind(enum.StrEnum):
    """What the run becomes."""

    RAYJOB = "rayjob"
    RAYCRONJOB = "raycronjob"
    RAYCLUSTER = "raycluster"
    ALL = "all"


class Spot(enum.StrEnum):
    """Whose spot nodes."""

    GKE = "gke"
    EKS = "eks"
    KARPENTER = "karpenter"
    AKS = "aks"


Image = Annotated[
    str | None, typer.Option("--image", metavar="IMAGE", help="What the pods run; infra/docker builds it.")
]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of the job. [default: the spec's]")]
Namespace = Annotated[str, typer.Option("--namespace", metavar="NAME", help="Where it all goes.")]
WorkerPods = Annotated[str, typer.Option("--workers", metavar="MIN:MAX", help="Worker pods.")]
Gpus = Annotated[int, typer.Option("--gpus", metavar="N", help="Of one worker pod.")]
Cpus = Annotated[int | None, typer.Option("--cpus", metavar="N", min=1, help="Of one worker pod. [default: 6 per GPU]")]
Memory = Annotated[
    int | None, typer.Option("--memory-gib", metavar="N", min=1, help="Of one worker pod. [default: 24 per GPU]")
]
SpotNodes = Annotated[Spot | None, typer.Option("--spot", help="Workers on spot nodes.", show_default=False)]
NodeSelector = Annotated[
    list[str] | None,
    typer.Option("--node-selector", metavar="KEY=VALUE", help="A label of the workers' nodes; repeatable."),
]
Secrets = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="NAME", help="A Secret whose keys become environment variables; repeatable."),
]
ServiceAccount = Annotated[
    str | None, typer.Option("--service-account", metavar="NAME", help="Of all pods; for a cloud identity.")
]
TokenSecret = Annotated[
    str | None,
    typer.Option("--token-secret", metavar="NAME", help="Holds the token, key auth_token. [default: KubeRay's]"),
]
RayVersion = Annotated[
    str | None, typer.Option("--ray-version", metavar="X.Y.Z", help="The image's. [default: the one installed here]")
]
PodMonitor = Annotated[bool, typer.Option("--pod-monitor", help="Add a PodMonitor, for Prometheus' operator.")]
ToFolder = Annotated[
    Path | None, typer.Option("--to", metavar="DIR", help="Write files there. [default: all to stdout]")
]


@app.command("manifests")
def write_manifests(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Job spec (YAML).")],
    *,
    kind: Annotated[ManifestKind, typer.Option("--kind", help="What to make of the spec.")] = ManifestKind.RAYJOB,
    image: Image = None,
    name: Name = None,
    namespace: Namespace = "htc",
    workers: WorkerPods = "1:4",
    gpus: Gpus = 1,
    cpus: Cpus = None,
    memory_gib: Memory = None,
    spot: SpotNodes = None,
    node_selector: NodeSelector = None,
    secret: Secrets = None,
    service_account: ServiceAccount = None,
    token_secret: TokenSecret = None,
    ray_version: RayVersion = None,
    pod_monitor: PodMonitor = False,
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="CRON", help="When a RayCronJob runs: five fields.")
    ] = None,
    time_zone: Annotated[str, typer.Option("--time-zone", metavar="ZONE", help="Whose clock --cron means.")] = "UTC",
    to: ToFolder = None,
) -> None:
    """Write a job spec as Kubernetes manifests (KubeRay 1.6 or later).

    With --to: DIR/base/ holds what every kind needs, DIR/rayjob.yaml and so on the kinds themselves.
    """
    from jobs.manifests.cluster_shape import build_shape
    from jobs.manifests.command import write_job_manifests

    job_spec = options.load_job_spec({"spec": spec})
    shape = build_shape(
        job_spec,
        image=image,
        name=name,
        namespace=namespace,
        workers=workers,
        gpus=gpus,
        cpus=cpus,
        memory_gib=memory_gib,
        spot=spot.value if spot else None,
        node_selector=node_selector or (),
        secrets=secret or (),
        service_account=service_account,
        token_secret=token_secret,
        ray_version=ray_version,
    )
    write_job_manifests(
        job_spec,
        shape,
        kind=kind.value,
        cron=cron,
        time_zone=time_zone,
        has_pod_monitor=pod_monitor,
        folder=to,
    )
