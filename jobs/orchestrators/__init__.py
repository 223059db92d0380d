"""Runs as steps of Airflow and Dagster; the modules `airflow` and `dagster` need these programs' own libraries."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.orchestrators.htc_command import HtcCommand, HtcRunFailed, RunResult

__all__ = ["HtcCommand", "HtcRunFailed", "RunResult"]

__getattr__ = attach(
    __name__,
    {
        "htc_command": ["HtcCommand", "HtcRunFailed", "RunResult"],
    },
)
