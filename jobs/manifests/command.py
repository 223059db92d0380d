"""`htc manifests`: write the manifests, as files or as a kustomize tree, and print how to apply them; check a tree."""

from pathlib import Path
from typing import Literal

from jobs.manifests.bundle import Bundle, Kind, build_bundle, render, write_bundle
from jobs.manifests.cluster_shape import ClusterShape
from jobs.manifests.helm import write_chart
from jobs.manifests.kustomize import OVERLAYS, write_tree
from jobs.manifests.tree_check import check_tree
from jobs.terminal.console import say, write_line
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec

_OBJECTS = {"pvc": "PersistentVolumeClaim", "secret": "Secret", "configmap": "ConfigMap"}
KINDS: tuple[Kind, ...] = ("rayjob", "job", "raycluster", "raycronjob")

# Files of what runs once: applying a finished one changes nothing.
RUN_ONCE = ("rayjob.yaml", "batch-job.yaml")


def write_job_manifests(
    spec: JobSpec,
    shape: ClusterShape,
    *,
    kind: Kind | Literal["all"],
    cron: str | None,
    time_zone: str,
    has_pod_monitor: bool,
    folder: Path | None,
) -> None:
    """Write the manifests to stdout, or as files into a folder, and print how to apply them.

    Raises:
        SpecError: see `build_bundle`; or "all" kinds without a folder; or retries of a kind that has none.
    """
    _check_retries(shape, kind)
    if kind == "all" and folder is None:
        raise SpecError("--kind all writes four alternatives; give a folder for them with --to DIR.")
    kinds = KINDS if kind == "all" else (kind,)
    bundle = build_bundle(spec, shape, kinds, cron=cron, time_zone=time_zone, has_pod_monitor=has_pod_monitor)
    write_out(bundle, folder, shape=shape)


def write_job_tree(
    spec: JobSpec,
    shape: ClusterShape,
    *,
    kind: Kind | Literal["all"],
    cron: str | None,
    time_zone: str,
    folder: Path,
) -> None:
    """Write the manifests as a tree for kustomize, and print how to apply its overlays.

    Raises:
        SpecError: see `write_tree`; or "all" kinds, or retries of a kind that has none.
    """
    _check_retries(shape, kind)
    if kind == "all":
        raise SpecError("--kind all has four alternatives, and a kustomize tree holds one; choose it with --kind.")
    written, kept = write_tree(spec, shape, kind, folder, cron=cron, time_zone=time_zone)
    for path in written:
        say(f"{path}")
    if kept:
        overlays = sorted({str(path.parent) for path in kept})
        say(f"Left as they are: {', '.join(overlays)}; to have an overlay written anew, delete its folder.")
    say(f"Apply one with: kubectl apply -k {folder}/overlays/{{{','.join(OVERLAYS)}}}")
    say(f"Check your changes with: htc manifests --check-tree {folder}")
    for sentence in _requirements(shape):
        say(sentence)


def write_job_chart(
    spec: JobSpec,
    shape: ClusterShape,
    *,
    kind: Kind | Literal["all"],
    cron: str | None,
    time_zone: str,
    has_pod_monitor: bool,
    folder: Path,
) -> None:
    """Write the manifests as a Helm chart, and print how to install it.

    Raises:
        SpecError: see `write_chart`; or "all" kinds, or retries of a kind that has none.
    """
    _check_retries(shape, kind)
    if kind == "all":
        raise SpecError("--kind all has four alternatives, and a chart holds one; choose it with --kind.")
    written = write_chart(spec, shape, kind, folder, cron=cron, time_zone=time_zone, has_monitor=has_pod_monitor)
    for path in written:
        say(f"{path}")
    say(f"Install with: helm install {shape.name} {folder} --namespace {shape.namespace}")
    for sentence in _requirements(shape):
        say(sentence)


def check_job_tree(folder: Path) -> None:
    """Check a kustomize tree, and print what was checked.

    Raises:
        SpecError: a patch is for an object that is not there, or kustomize cannot build it.
    """
    report = check_tree(folder)
    for problem in report.problems:
        say(problem)
    if report.problems:
        raise SpecError(f"{folder} would be built without these patches, or not at all; repair them first.")
    how = f"built by {report.built_by}" if report.built_by else "not built, as neither kubectl nor kustomize is here"
    write_line(f"{folder}: {len(report.kustomizations)} kustomizations are sound, {how}.")


def _check_retries(shape: ClusterShape, kind: str) -> None:
    if shape.retries is not None and kind not in ("job", "all"):
        raise SpecError(
            f"--retries is for --kind job, whose pod repeats lost clusters only; with {kind} KubeRay would repeat "
            "every failure, also a wrong spec and a run over its error budget."
        )


def write_out(bundle: Bundle, folder: Path | None, *, shape: ClusterShape, comment: str = "") -> None:
    """Write a bundle, and with a folder print the commands that apply it."""
    if folder is None:
        import sys

        sys.stdout.write(render(bundle, comment=comment))
        return
    for path in write_bundle(bundle, folder, comment=comment):
        say(f"{path}")
    for name in bundle:
        if "/" not in name:
            say(f"Apply with: kubectl apply -f {folder}/base && kubectl apply -f {folder}/{name}")
        if name in RUN_ONCE:
            say(f"Applying it again does nothing; to run again, first: kubectl delete -f {folder}/{name}")
    for sentence in _requirements(shape):
        say(sentence)


def _requirements(shape: ClusterShape) -> list[str]:
    """Return what must exist in the cluster, a sentence each."""
    namespace = shape.namespace
    needed = []
    if not shape.has_namespace:
        needed.append(f"The namespace {namespace} must exist: kubectl create namespace {namespace}")
    needed += [
        f"The Secret {secret} must exist: kubectl -n {namespace} create secret generic {secret} ..."
        for secret in (*shape.secrets, *shape.pods.pull_secrets)
    ]
    others = {f"Secret {secret}" for _, secret, _ in shape.pods.secret_environment if secret not in shape.secrets}
    others |= {f"{_OBJECTS[each.kind]} {each.source}" for each in shape.pods.volumes if each.kind != "hostpath"}
    if shape.service_account:
        others.add(f"ServiceAccount {shape.service_account}")
    return needed + [f"The {other} must exist in the namespace {namespace}." for other in sorted(others)]
