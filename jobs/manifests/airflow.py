"""A schedule as an example DAG of Apache Airflow 3, which starts `htc run` as a command."""

import shlex

from jobs.manifests.cron_fields import is_shifted_by_the_clock, portable_cron
from jobs.scheduling.schedule import Schedule

_DAG = '''"""{title}. Written by `htc schedule export --airflow`; edit it freely.

Airflow's workers need htc on the PATH, the job spec at {spec}, and the storage's credentials in the environment.
"""

from datetime import timedelta

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.timetables.trigger import CronTriggerTimetable

TIME_ZONE = {time_zone!r}

with DAG(
    dag_id={dag_id!r},
    schedule=CronTriggerTimetable({cron!r}, timezone=TIME_ZONE),
    start_date=pendulum.datetime(2026, 1, 1, tz=TIME_ZONE),
    # One run at a time; runs that are due meanwhile wait.
    max_active_runs=1,
    catchup={is_caught_up},
    dagrun_timeout={timeout},
    is_paused_upon_creation={is_paused},
    tags=["htc"],
):
    BashOperator(
        task_id="segment",
        # The run is named after its time, so that a retry resumes it.
        bash_command={command!r},
        retries=3,
        retry_delay=timedelta(minutes=10),
    )
'''


def build_dag(schedule: Schedule, spec_path: str) -> str:
    """Return the DAG's source.

    Args:
        spec_path: path of the job spec on Airflow's workers.
    """
    wait = f"sleep $((RANDOM * {schedule.jitter_s:.0f} / 32768)); " if schedule.jitter_s else ""
    run = f"{schedule.name}-{{{{ ts_nodash }}}}"  # Airflow fills it in.
    if schedule.address is None:
        words = ["htc", "run", "--spec", spec_path]
    else:
        words = [
            "htc",
            "submit",
            spec_path,
            "--address",
            schedule.address,
            "--runtime-env",
            schedule.runtime_env,
            "--wait",
        ]
    is_stopped = schedule.deadline_s is not None and schedule.on_deadline == "stop"
    return _DAG.format(
        title=f"htc runs {schedule.name}",
        dag_id=f"htc-{schedule.name}",
        spec=spec_path,
        time_zone=schedule.time_zone,
        cron=portable_cron(schedule.cron, "Airflow"),
        is_caught_up=schedule.catch_up == "all",
        timeout=f"timedelta(seconds={schedule.deadline_s:g})" if is_stopped else None,
        is_paused=schedule.is_paused,
        command=f"{wait}exec {shlex.join(words)} --run {run}",
    )


def unsupported_by_airflow(schedule: Schedule) -> list[str]:
    """Return the schedule's policies that the DAG does not support, as text."""
    missing = []
    if schedule.overlap != "queue":
        missing.append(f"overlap: {schedule.overlap}; a DAG run that is due meanwhile waits (queue)")
    if schedule.catch_up == "last":
        missing.append("catch_up: last; Airflow makes up for all missed times or none (here: none)")
    if schedule.catch_up == "all":
        missing.append("catch_up_window_s; Airflow goes back to the DAG's start_date, so set that")
    if schedule.deadline_s is not None and schedule.on_deadline == "notify":
        missing.append("deadline_s with on_deadline: notify; a DAG run can only be stopped at it")
    if schedule.notify.model_dump(exclude_defaults=True):
        missing.append("notify; use Airflow's callbacks and notifiers, or the job spec's own notify")
    if is_shifted_by_the_clock(schedule.cron, schedule.time_zone):
        missing.append("what happens to a time that does not exist when summer time begins; Airflow decides")
    return missing
