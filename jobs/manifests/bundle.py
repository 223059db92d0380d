"""Bundles of manifests that belong together, and writing them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from jobs.cluster.package import build_entrypoint
from jobs.manifests.cluster_shape import ClusterShape
from jobs.manifests.kuberay import build_ray_cluster, build_ray_cron_job, build_ray_job
from jobs.manifests.pods import SPEC_PATH, Manifest
from jobs.manifests.resources import (
    build_disruption_budget,
    build_namespace,
    build_network_policy,
    build_pod_monitor,
    build_quota,
    build_spec_map,
)
from jobs.manifests.starter import build_start_job
from jobs.manifests.yaml_dump import dump_manifests
from jobs.terminal.output_file import atomic_output
from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec

Kind = Literal["rayjob", "job", "raycronjob", "raycluster"]
# Manifests by the path of their file.
Bundle = dict[str, list[Manifest]]
_SPEC_FILE = "base/spec.yaml"


def entrypoint_of(run: str | None = None) -> str:
    """Return the command that a job's driver runs on the head.

    Args:
        run: the run's name; by default the output's newest run is resumed, or a new one begins.
    """
    return build_entrypoint(SPEC_PATH, run=run, is_installed=True)


def build_common_resources(spec: JobSpec, shape: ClusterShape, *, has_pod_monitor: bool) -> Bundle:
    """Return the manifests that every kind needs, by file, in the order of applying."""
    bundle: Bundle = {}
    # Only when asked to: a namespace may hold other teams' work, and applying a quota replaces the one there.
    if shape.has_namespace:
        bundle["base/namespace.yaml"] = [build_namespace(shape)]
    if shape.has_quota:
        bundle["base/quota.yaml"] = [build_quota(shape)]
    bundle |= {
        _SPEC_FILE: [build_spec_map(spec, shape)],
        "base/network.yaml": [build_network_policy(spec, shape)],
        "base/disruption.yaml": [build_disruption_budget(shape)],
    }
    if has_pod_monitor:
        bundle["base/monitor.yaml"] = [build_pod_monitor(shape)]
    return bundle


def build_bundle(
    spec: JobSpec,
    shape: ClusterShape,
    kinds: tuple[Kind, ...],
    *,
    cron: str | None = None,
    time_zone: str = "UTC",
    has_pod_monitor: bool = False,
) -> Bundle:
    """Return the common resources and the requested kinds.

    Args:
        cron: five fields; required for "raycronjob". time_zone: IANA name of their time zone.

    Raises:
        SpecError: a RayCronJob without `cron`, or for a spec that can run only once.
    """
    bundle = build_common_resources(spec, shape, has_pod_monitor=has_pod_monitor)
    for kind in kinds:
        if kind == "rayjob":
            bundle["rayjob.yaml"] = [build_ray_job(shape, entrypoint_of())]
        elif kind == "job":
            bundle["batch-job.yaml"] = build_start_job(shape, entrypoint_of())
        elif kind == "raycluster":
            bundle["raycluster.yaml"] = [build_ray_cluster(shape)]
        else:
            bundle["raycronjob.yaml"] = [_ray_cron_job(spec, shape, cron, time_zone)]
    return bundle


def render(bundle: Mapping[str, list[Manifest]], *, comment: str = "") -> str:
    """Return all manifests as one YAML stream, with `comment` at the top."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    documents = [manifest for manifests in bundle.values() for manifest in manifests]
    return head + dump_manifests(documents)


def write_bundle(bundle: Bundle, folder: Path, *, comment: str = "") -> list[Path]:
    """Write the bundle's files and return their paths.

    Raises:
        SpecError: the folder cannot be created or written, or holds another job's manifests, whose spec would be lost.
    """
    check_same_job(bundle, folder)
    paths = []
    for name, manifests in bundle.items():
        paths.append(write_file(folder / name, render({name: manifests}, comment=comment)))
    return paths


def write_file(path: Path, text: str) -> Path:
    """Write a file, and its folder where there is none; return its path.

    Raises:
        SpecError: the folder cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"{path.parent} cannot be created: {error.strerror or error}.") from error
    with atomic_output(path) as sink:
        sink.write(text.encode())
    return path


def check_same_job(bundle: Bundle, folder: Path) -> None:
    """Refuse a folder that holds another job's manifests, whose spec would be lost.

    Raises:
        SpecError: it does.
    """
    there = folder / _SPEC_FILE
    if not there.exists():
        return
    (own,) = bundle[_SPEC_FILE]
    if f"\n  name: {own['metadata']['name']}\n" not in there.read_text(encoding="utf-8"):
        raise SpecError(f"{folder} holds the manifests of another job; give this one its own folder with --to.")


def _ray_cron_job(spec: JobSpec, shape: ClusterShape, cron: str | None, time_zone: str) -> Manifest:
    from jobs.scheduling.schedule import build_schedule

    if cron is None:
        raise SpecError('A RayCronJob needs its times: --cron "30 2 * * *" --time-zone Europe/Berlin.')
    times = build_schedule({"name": shape.name, "spec": SPEC_PATH, "cron": cron, "time_zone": time_zone})
    if spec.select.mode != "incremental":
        raise SpecError(
            "A RayCronJob starts the same command every time, and a full run that is complete is not done again; "
            "write select: {mode: incremental} into the spec, or use htc schedule export --without-raycronjob."
        )
    return build_ray_cron_job(shape, entrypoint_of(), cron=times.cron, time_zone=times.time_zone)
