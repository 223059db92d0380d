"""A job spec or a schedule in the words of Kubernetes, systemd and Airflow."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.manifests.command import check_job_tree, write_job_chart, write_job_manifests, write_job_tree
    from jobs.manifests.schedule_export import export_to_airflow, export_to_kubernetes, export_to_systemd

__all__ = [
    "check_job_tree",
    "export_to_airflow",
    "export_to_kubernetes",
    "export_to_systemd",
    "write_job_chart",
    "write_job_manifests",
    "write_job_tree",
]

__getattr__ = attach(
    __name__,
    {
        "command": ["check_job_tree", "write_job_chart", "write_job_manifests", "write_job_tree"],
        "schedule_export": ["export_to_airflow", "export_to_kubernetes", "export_to_systemd"],
    },
)
