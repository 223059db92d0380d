"""A job's manifests as a tree for kustomize: a base, and overlays for one's own namespace, production and spot nodes.

The base is written anew each time; the overlays are their owner's from the moment they are written.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.manifests.bundle import Kind, build_bundle, check_same_job, entrypoint_of, write_file
from jobs.manifests.cluster_shape import ClusterShape, SpotMarket, check_own_namespace
from jobs.manifests.kuberay import build_ray_job
from jobs.manifests.pods import SPOT_LABELS, Manifest
from jobs.manifests.resources import build_namespace, build_pod_monitor, build_quota
from jobs.manifests.starter import build_template_map
from jobs.manifests.yaml_dump import dump_manifests, dump_operations
from pipeline.job_spec.job import JobSpec

KUSTOMIZATION = "kustomization.yaml"
OVERLAYS = ("own", "production", "spot")
# A day: long enough to be read the next morning.
PRODUCTION_KEEP_S = 86_400
# The market of the overlay spot, when the command line names none.
DEFAULT_MARKET: SpotMarket = "gke"
# Where each kind has the spec of its cluster, and that of its RayJob.
_CLUSTER_PATHS: dict[Kind, str] = {
    "rayjob": "/spec/rayClusterSpec",
    "raycronjob": "/spec/jobTemplate/rayClusterSpec",
    "raycluster": "/spec",
}
_KEEP_PATHS: dict[Kind, str] = {
    "rayjob": "/spec/ttlSecondsAfterFinished",
    "raycronjob": "/spec/jobTemplate/ttlSecondsAfterFinished",
}
_KIND_NAMES: dict[Kind, str] = {"rayjob": "RayJob", "raycronjob": "RayCronJob", "raycluster": "RayCluster"}
# What kustomize must know to rename objects together with those that name them: it knows Kubernetes' kinds only.
_NAMED_IN_PODS = {
    "ConfigMap": ("volumes/configMap/name",),
    "Secret": (
        "volumes/secret/secretName",
        "containers/envFrom/secretRef/name",
        "containers/env/valueFrom/secretKeyRef/name",
        "imagePullSecrets/name",
    ),
    "ServiceAccount": ("serviceAccountName",),
    "PersistentVolumeClaim": ("volumes/persistentVolumeClaim/claimName",),
}

Files = dict[str, str]


def write_tree(
    spec: JobSpec, shape: ClusterShape, kind: Kind, folder: Path, *, cron: str | None, time_zone: str
) -> tuple[list[Path], list[Path]]:
    """Write the tree and return the files written, and those of overlays that exist already and were left alone.

    Args:
        shape: `spot` is the market of the overlay spot; the base has none. cron, time_zone: see `build_bundle`.

    Raises:
        SpecError: see `build_bundle` and `write_bundle`; or the namespace is one that all share.
    """
    check_own_namespace(shape)
    base = replace(shape, spot=None, has_namespace=False, has_quota=False)
    bundle = build_bundle(spec, base, (kind,), cron=cron, time_zone=time_zone)
    check_same_job(bundle, folder)
    files: Files = {f"base/{name.rpartition('/')[2]}": dump_manifests(each) for name, each in bundle.items()}
    resources = [name.rpartition("/")[2] for name in files]
    files["base/kustomizeconfig.yaml"] = dump_manifests([_references()])
    files[f"base/{KUSTOMIZATION}"] = _kustomization(
        "Written by htc manifests, and written anew by it: put changes into an overlay.",
        resources=resources,
        configurations=["kustomizeconfig.yaml"],
    )
    written = [write_file(folder / name, text) for name, text in files.items()]
    kept = []
    for overlay, build in _BUILDERS.items():
        for name, text in build(base, kind, shape.spot or DEFAULT_MARKET).items():
            path = folder / "overlays" / overlay / name
            if path.exists():
                kept.append(path)
            else:
                written.append(write_file(path, text))
    return written, kept


def _build_own(shape: ClusterShape, _kind: Kind, _market: SpotMarket) -> Files:
    return {
        "namespace.yaml": dump_manifests([build_namespace(shape)]),
        "quota.yaml": dump_manifests([build_quota(shape)]),
        KUSTOMIZATION: _kustomization(
            "A namespace of this job's own, with a quota for one run at a time.",
            resources=["../../base", "namespace.yaml", "quota.yaml"],
        ),
    }


def _build_production(shape: ClusterShape, kind: Kind, _market: SpotMarket) -> Files:
    title = "A shared namespace that exists: scraped by Prometheus, finished pods kept for a day."
    files = {"monitor.yaml": dump_manifests([build_pod_monitor(shape)])}
    resources = ["../../base", "monitor.yaml"]
    if kind == "job":
        kept = replace(shape, keep_s=PRODUCTION_KEEP_S)
        return {**files, **_with_template(title, kept, resources)}
    operations: list[dict[str, Any]] = []
    if kind in _KEEP_PATHS:
        operations.append({"op": "replace", "path": _KEEP_PATHS[kind], "value": PRODUCTION_KEEP_S})
    return {**files, KUSTOMIZATION: _kustomization(title, resources=resources, patches=_patch(shape, kind, operations))}


def _build_spot(shape: ClusterShape, kind: Kind, market: SpotMarket) -> Files:
    title = f"Workers on spot nodes ({market}); the head stays on ordinary ones."
    if kind == "job":
        return _with_template(title, replace(shape, spot=market), ["../../base"])
    label, value = SPOT_LABELS[market]
    worker = f"{_CLUSTER_PATHS[kind]}/workerGroupSpecs/0/template/spec"
    toleration = {"key": label, "operator": "Equal", "value": value, "effect": "NoSchedule"}
    pod = build_ray_job(shape, entrypoint_of())["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    selector = (
        {"path": f"{worker}/nodeSelector/{label.replace('/', '~1')}", "value": value}
        if "nodeSelector" in pod
        else {"path": f"{worker}/nodeSelector", "value": {label: value}}
    )
    tolerated = (
        {"path": f"{worker}/tolerations/-", "value": toleration}
        if "tolerations" in pod
        else {"path": f"{worker}/tolerations", "value": [toleration]}
    )
    operations: list[dict[str, Any]] = [{"op": "add", **selector}, {"op": "add", **tolerated}]
    return {
        KUSTOMIZATION: _kustomization(title, resources=["../../base"], patches=_patch(shape, kind, operations)),
    }


_BUILDERS: dict[str, Callable[[ClusterShape, Kind, SpotMarket], Files]] = {
    "own": _build_own,
    "production": _build_production,
    "spot": _build_spot,
}


def _with_template(title: str, shape: ClusterShape, resources: list[str]) -> Files:
    """Return an overlay with another RayJob for the starter: a text in a ConfigMap, in which kustomize cannot patch."""
    return {
        "rayjob-map.yaml": dump_manifests([build_template_map(shape, entrypoint_of())]),
        KUSTOMIZATION: _kustomization(title, resources=resources, patches=[{"path": "rayjob-map.yaml"}]),
    }


def _patch(shape: ClusterShape, kind: Kind, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not operations:
        return []
    target = {"group": "ray.io", "version": "v1", "kind": _KIND_NAMES[kind], "name": shape.name}
    return [{"target": target, "patch": dump_operations(operations)}]


def _kustomization(title: str, **fields: list[Any]) -> str:
    manifest: Manifest = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    manifest |= {name: value for name, value in fields.items() if value}
    return f"# {title}\n{dump_manifests([manifest])}"


def _references() -> Manifest:
    pods = {
        "RayCluster": ("spec",),
        "RayJob": ("spec/rayClusterSpec", "spec/submitterPodTemplate"),
        "RayCronJob": ("spec/jobTemplate/rayClusterSpec", "spec/jobTemplate/submitterPodTemplate"),
    }
    groups = ("headGroupSpec/template/spec", "workerGroupSpecs/template/spec")
    specs = [
        (kind, f"{place}/{rest}" if rest else f"{place}/spec")
        for kind, places in pods.items()
        for place in places
        for rest in (("",) if place.endswith("submitterPodTemplate") else groups)
    ]
    return {
        "nameReference": [
            {
                "kind": named,
                "version": "v1",
                "fieldSpecs": [
                    {"group": "ray.io", "kind": kind, "path": f"{spec}/{field}"}
                    for kind, spec in specs
                    for field in fields
                ],
            }
            for named, fields in _NAMED_IN_PODS.items()
        ]
    }
