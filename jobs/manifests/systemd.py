"""A schedule as a systemd timer and the service that it starts."""

import shlex
import sys
from pathlib import Path

from jobs.manifests.cron_fields import is_shifted_by_the_clock
from jobs.scheduling.cron_values import split_cron
from jobs.scheduling.schedule import Schedule

WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
# Time for a driver to write its summary after it is asked to stop.
STOP_TIMEOUT_S = 120
# Restarts of an interrupted or failed run: three in a day, ten minutes apart; exit code 2 (bad usage) is not restarted.
RESTARTS, RESTART_EVERY_S, RESTART_WINDOW_S = 3, 600, 86_400


def build_timer(schedule: Schedule) -> str:
    """Return the .timer unit; disabling and enabling it pauses and resumes the schedule."""
    lines = ["[Unit]", f"Description=When htc runs {schedule.name}", "", "[Timer]"]
    lines += [f"OnCalendar={moment}" for moment in calendar_of(schedule)]
    lines.append("AccuracySec=1s")
    if schedule.jitter_s:
        lines.append(f"RandomizedDelaySec={schedule.jitter_s:g}")
    lines.append(f"Persistent={'false' if schedule.catch_up == 'none' else 'true'}")
    return "\n".join([*lines, "", "[Install]", "WantedBy=timers.target", ""])


def build_service(schedule: Schedule, spec_path: Path) -> str:
    """Return the .service unit.

    Args:
        spec_path: path of the job spec on that machine.
    """
    command = [str(Path(sys.executable).with_name("htc"))]
    if schedule.address is None:
        command += ["run", "--spec", str(spec_path)]
    else:
        command += [
            "submit",
            str(spec_path),
            "--address",
            schedule.address,
            "--runtime-env",
            schedule.runtime_env,
            "--wait",
        ]
    is_named = schedule.mode == "full"
    if is_named:
        # A new run each time: the same command would find the last run complete.
        script = f'exec {shlex.join(command)} --run "{schedule.name}-$(date -u +%Y%m%d-%H%M%S)"'
        command = ["/bin/sh", "-c", script]
    lines = [
        "[Unit]",
        f"Description=htc runs {schedule.name}",
        "Wants=network-online.target",
        "After=network-online.target",
        *([] if is_named else [f"StartLimitIntervalSec={RESTART_WINDOW_S}", f"StartLimitBurst={RESTARTS + 1}"]),
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={' '.join(map(_quoted, command))}",
        "# Credentials of the storage and the like, NAME=value a line; not needed where the machine has its own.",
        "EnvironmentFile=-%h/.config/htc/environment",
        f"TimeoutStartSec={_limit(schedule)}",
        "# The driver alone is asked to stop, and ends its workers itself.",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_TIMEOUT_S}",
        "NoNewPrivileges=true",
    ]
    if not is_named:
        lines += ["Restart=on-failure", f"RestartSec={RESTART_EVERY_S}", "RestartPreventExitStatus=2"]
    return "\n".join([*lines, ""])


def calendar_of(schedule: Schedule) -> list[str]:
    """Return the schedule's times in the syntax of systemd.time(7), two if cron accepts either of two days."""
    fields = split_cron(schedule.cron)
    clock = f"{_listed(fields.hours)}:{_listed(fields.minutes)}:00 {schedule.time_zone}"
    weekdays = "" if fields.weekdays is None else ",".join(WEEKDAYS[day] for day in fields.weekdays) + " "
    by_day = f"*-{_listed(fields.months)}-{_listed(fields.days)} {clock}"
    if fields.is_either_day and weekdays:
        return [by_day, f"{weekdays}*-{_listed(fields.months)}-* {clock}"]
    return [f"{weekdays}{by_day}"]


def unsupported_by_systemd(schedule: Schedule) -> list[str]:
    """Return the schedule's policies that a timer does not support, as text."""
    missing = []
    if schedule.overlap != "skip":
        missing.append(f"overlap: {schedule.overlap}; a service that still runs is not started again (skip)")
    if schedule.catch_up == "all":
        missing.append("catch_up: all; a timer makes up for the last missed time only")
    if schedule.catch_up != "none":
        missing.append("catch_up_window_s; a timer makes up for a missed time however long ago it was")
    if schedule.deadline_s is not None and schedule.on_deadline == "notify":
        missing.append("deadline_s with on_deadline: notify; a service can only be stopped at it")
    if schedule.notify.model_dump(exclude_defaults=True):
        missing.append("notify; use the job spec's own notify, or name a unit of yours with OnFailure= in the service")
    if schedule.mode == "full":
        missing.append("restarts after a failure; a full run's name holds the time at which it began")
    if is_shifted_by_the_clock(schedule.cron, schedule.time_zone):
        missing.append("a time that does not exist when summer time begins; systemd skips that day")
    if schedule.is_paused:
        missing.append("is_paused; do not enable the timer")
    return missing


def _limit(schedule: Schedule) -> str:
    is_stopped = schedule.deadline_s is not None and schedule.on_deadline == "stop"
    return f"{schedule.deadline_s:g}" if is_stopped else "infinity"


def _listed(values: tuple[int, ...] | None) -> str:
    return "*" if values is None else ",".join(f"{value:02d}" for value in values)


def _quoted(word: str) -> str:
    # systemd.service(5): % and $ begin specifiers and variables, and a backslash an escape.
    escaped = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{escaped}"' if not word or set(word) & set(" \t'\"\\;") else escaped
