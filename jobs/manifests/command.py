"""`htc manifests`: write the manifests, and print how to apply them."""

from pathlib import Path
from typing import Literal

from jobs.manifests.bundle import Bundle, Kind, build_bundle, render, write_bundle
from jobs.manifests.cluster_shape import ClusterShape
from jobs.terminal.console import say
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec

KINDS: tuple[Kind, ...] = ("rayjob", "raycluster", "raycronjob")


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
        SpecError: see `build_bundle`; or "all" kinds without a folder.
    """
    if kind == "all" and folder is None:
        raise SpecError("--kind all writes three alternatives; give a folder for them with --to DIR.")
    kinds = KINDS if kind == "all" else (kind,)
    bundle = build_bundle(spec, shape, kinds, cron=cron, time_zone=time_zone, has_pod_monitor=has_pod_monitor)
    write_out(bundle, folder, shape=shape)


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
    if not shape.has_namespace:
        say(f"The namespace {shape.namespace} must exist: kubectl create namespace {shape.namespace}")
    for secret in (*shape.secrets, *shape.pods.pull_secrets):
        say(f"The Secret {secret} must exist: kubectl -n {shape.namespace} create secret generic {secret} ...")
    if shape.service_account:
        say(f"The ServiceAccount {shape.service_account} must exist in the namespace {shape.namespace}.")
