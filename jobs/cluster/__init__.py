"""Jobs on a Ray cluster: submit, status, logs, stop, list."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.cluster.client import JobsClient, connect
    from jobs.cluster.job_commands import report_list, report_logs, report_stop
    from jobs.cluster.status_command import report_status
    from jobs.cluster.submit import submit_job
    from jobs.cluster.submit_command import submit_and_report

__all__ = [
    "JobsClient",
    "connect",
    "report_list",
    "report_logs",
    "report_status",
    "report_stop",
    "submit_and_report",
    "submit_job",
]

__getattr__ = attach(
    __name__,
    {
        "client": ["JobsClient", "connect"],
        "job_commands": ["report_list", "report_logs", "report_stop"],
        "status_command": ["report_status"],
        "submit": ["submit_job"],
        "submit_command": ["submit_and_report"],
    },
)
