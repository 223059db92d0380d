"""Schedules and the scheduler."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.scheduling.commands import (
        add_schedule,
        list_schedules,
        pause_schedule,
        remove_schedule,
        run_now,
        show_history,
        show_schedule,
        stop_runs,
    )
    from jobs.scheduling.schedule import Schedule
    from jobs.scheduling.service import run_scheduler

__all__ = [
    "Schedule",
    "add_schedule",
    "list_schedules",
    "pause_schedule",
    "remove_schedule",
    "run_now",
    "run_scheduler",
    "show_history",
    "show_schedule",
    "stop_runs",
]

__getattr__ = attach(
    __name__,
    {
        "commands": [
            "add_schedule",
            "list_schedules",
            "pause_schedule",
            "remove_schedule",
            "run_now",
            "show_history",
            "show_schedule",
            "stop_runs",
        ],
        "schedule": ["Schedule"],
        "service": ["run_scheduler"],
    },
)
