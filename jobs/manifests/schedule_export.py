"""`htc schedule export`: a schedule for Kubernetes, systemd or Airflow, and which policies these do not support."""

import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs.cluster.package import spec_text
from jobs.manifests.airflow import build_dag, unsupported_by_airflow
from jobs.manifests.bundle import build_common_resources, entrypoint_of
from jobs.manifests.cluster_shape import build_shape, label_of
from jobs.manifests.command import write_out
from jobs.manifests.cron_fields import is_shifted_by_the_clock, portable_cron
from jobs.manifests.cron_job import build_cron_job, stop_deadline_s
from jobs.manifests.kuberay import build_ray_cron_job
from jobs.manifests.systemd import build_service, build_timer, unsupported_by_systemd
from jobs.scheduling.schedule import Schedule, load_job, load_schedule
from jobs.scheduling.store import ScheduleStore
from jobs.terminal.console import say
from jobs.terminal.output_file import atomic_output
from pipeline.errors import SpecError


def find_schedule(home: Path, name: str | None, file: str | None) -> Schedule:
    """Return a stored schedule by its name, or the schedule in a file.

    Raises:
        SpecError: there is no schedule of that name, or the file is wrong; or both are given, or neither.
    """
    if (name is None) == (file is None):
        raise SpecError("Name a schedule, or give one in a file with --file.")
    if file is not None:
        return load_schedule(file)
    with closing(ScheduleStore(home)) as store:
        schedule = store.find(str(name))
    if schedule is None:
        raise SpecError(f"There is no schedule {name} in {home}; htc schedule list shows the existing ones.")
    return schedule


def export_to_kubernetes(
    schedule: Schedule,
    *,
    has_ray_cron_job: bool,
    shape_options: Mapping[str, Any],
    has_pod_monitor: bool,
    folder: Path | None,
) -> None:
    """Write a RayCronJob, or a CronJob that creates RayJobs, with everything they need.

    Raises:
        SpecError: the schedule cannot be expressed at all, or see `build_shape`.
    """
    spec = load_job(schedule)
    own = {"name": shape_options.get("name") or label_of(schedule.name), "deadline_s": stop_deadline_s(schedule)}
    shape = build_shape(spec, **{**shape_options, **own})
    bundle = build_common_resources(spec, shape, has_pod_monitor=has_pod_monitor)
    if has_ray_cron_job:
        if shape.retries is not None:
            raise SpecError(
                "--retries is for --without-raycronjob, whose pod repeats lost clusters only; KubeRay would repeat "
                "every failure, also a wrong spec and a run over its error budget."
            )
        if schedule.mode == "full":
            raise SpecError(
                "A RayCronJob starts the same command every time, and a full run that is complete is not done again; "
                "use mode: incremental, or --without-raycronjob, which gives each run a name of its own."
            )
        manifest = build_ray_cron_job(
            shape,
            entrypoint_of(),
            cron=portable_cron(schedule.cron, "KubeRay"),
            time_zone=schedule.time_zone,
            is_paused=schedule.is_paused,
        )
        bundle["raycronjob.yaml"] = [manifest]
    else:
        bundle["cronjob.yaml"] = build_cron_job(schedule, shape, entrypoint_of())
    comment = _report_missing(
        schedule, unsupported_by_kubernetes(schedule, has_ray_cron_job=has_ray_cron_job), "Kubernetes"
    )
    write_out(bundle, folder, shape=shape, comment=comment)


def export_to_systemd(schedule: Schedule, folder: Path | None) -> None:
    """Write a timer, its service and the job spec that the service reads."""
    spec_path = (folder or Path("/etc/htc")).absolute() / f"htc-{schedule.name}.yaml"
    comment = _report_missing(schedule, unsupported_by_systemd(schedule), "systemd")
    files = {
        f"htc-{schedule.name}.timer": build_timer(schedule),
        f"htc-{schedule.name}.service": build_service(schedule, spec_path),
        spec_path.name: spec_text(load_job(schedule)),
    }
    _write_texts(files, folder, comment)


def export_to_airflow(schedule: Schedule, folder: Path | None) -> None:
    """Write a DAG and the job spec that it reads."""
    spec_path = (folder or Path("/etc/htc")).absolute() / f"htc-{schedule.name}.yaml"
    comment = _report_missing(schedule, unsupported_by_airflow(schedule), "Airflow")
    files = {
        f"htc_{schedule.name.replace('-', '_').replace('.', '_')}.py": build_dag(schedule, str(spec_path)),
        spec_path.name: spec_text(load_job(schedule)),
    }
    _write_texts(files, folder, comment)


def unsupported_by_kubernetes(schedule: Schedule, *, has_ray_cron_job: bool) -> list[str]:
    """Return the schedule's policies that Kubernetes does not support, as text."""
    missing = []
    if has_ray_cron_job:
        missing.append(
            f"overlap: {schedule.overlap}; a RayCronJob starts the job also while another is running, and the run's "
            "lease refuses it, so that it is shown as failed and nothing is done twice"
        )
        missing.append(f"catch_up: {schedule.catch_up}; KubeRay decides about a missed time")
        if schedule.jitter_s:
            missing.append("jitter_s")
    else:
        if schedule.overlap == "queue":
            missing.append("overlap: queue; a firing that is due while a run is in progress is skipped (Forbid)")
        if schedule.catch_up == "all":
            missing.append("catch_up: all; a CronJob makes up for the last missed time only")
    if schedule.deadline_s is not None and schedule.on_deadline == "notify":
        missing.append("deadline_s with on_deadline: notify; a job can only be stopped at it")
    if schedule.deadline_s is not None and schedule.on_deadline == "stop":
        missing.append("that deadline_s counts from the scheduled time; Kubernetes counts from the job's start")
    if schedule.notify.model_dump(exclude_defaults=True):
        missing.append("notify; give the job spec a notify of its own, by which the run reports its start and end")
    if schedule.address is not None:
        missing.append("address; each run gets a cluster of its own")
    if is_shifted_by_the_clock(schedule.cron, schedule.time_zone):
        missing.append(
            "a time that does not exist when summer time begins, or exists twice when it ends; Kubernetes skips "
            "the first and may run the second twice"
        )
    return missing


def _report_missing(schedule: Schedule, missing: list[str], where: str) -> str:
    """Print the policies that are not supported, and return the text as a comment for the files."""
    if not missing:
        return f"The schedule {schedule.name}, written by htc schedule export."
    lines = [f"Of the schedule {schedule.name}, {where} cannot express:", *(f"- {each}" for each in missing)]
    for line in lines:
        say(line)
    return "\n".join(lines)


def _write_texts(files: Mapping[str, str], folder: Path | None, comment: str) -> None:
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    if folder is None:
        for name, text in files.items():
            sys.stdout.write(f"# {name}\n{head}{text}\n")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"{folder} cannot be created: {error.strerror or error}.") from error
    for name, text in files.items():
        with atomic_output(folder / name) as sink:
            sink.write(f"{head}{text}".encode())
        say(f"{folder / name}")
