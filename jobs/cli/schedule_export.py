"""`htc schedule export`: a schedule for another scheduler."""

from typing import Annotated

import typer

from jobs.cli import manifests
from jobs.cli import schedule as schedules
from jobs.cli.flag_groups import with_flag_groups
from jobs.cli.schedule import schedule_app


@schedule_app.command()
@with_flag_groups
def export(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The schedule's name.", show_default=False)] = None,
    *,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="A schedule in YAML instead of a stored one.")
    ] = None,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="A RayCronJob (KubeRay 1.6 or later).")] = False,
    without_raycronjob: Annotated[
        bool, typer.Option("--without-raycronjob", help="With --kubernetes: a CronJob that creates RayJobs instead.")
    ] = False,
    systemd: Annotated[bool, typer.Option("--systemd", help="A timer and its service.")] = False,
    airflow: Annotated[bool, typer.Option("--airflow", help="An example DAG for Apache Airflow 3.")] = False,
    image: manifests.Image = None,
    cluster: manifests.ClusterFlags,
    to: manifests.ToFolder = None,
    kustomize: manifests.KustomizeFolder = None,
    home: schedules.Home = None,
) -> None:
    """Write a schedule for Kubernetes, systemd or Airflow, and report what these cannot express.

    The other system then runs it: remove or pause it here, or it runs twice. --image to --pod-monitor are for
    --kubernetes.
    """
    from jobs.manifests import schedule_export as exporting
    from jobs.scheduling.home import resolve_home
    from pipeline.errors import SpecError

    if [kubernetes, systemd, airflow].count(True) != 1:
        raise SpecError("Choose the target: one of --kubernetes, --systemd and --airflow.")
    if kustomize is not None and (to is not None or not kubernetes):
        raise SpecError("--kustomize is another layout of --kubernetes; give it without --to.")
    schedule = exporting.find_schedule(resolve_home(home), name, file)
    if systemd:
        exporting.export_to_systemd(schedule, to)
    elif airflow:
        exporting.export_to_airflow(schedule, to)
    else:
        exporting.export_to_kubernetes(
            schedule,
            has_ray_cron_job=not without_raycronjob,
            shape_options={"image": image, **cluster.shape_options()},
            has_pod_monitor=cluster.pod_monitor,
            folder=to,
            tree=kustomize,
        )
