"""A job spec or a schedule in the words of Kubernetes, systemd and Airflow."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.manifests.command import write_job_manifests
    from jobs.manifests.schedule_export import export_to_airflow, export_to_kubernetes, export_to_systemd

__all__ = ["export_to_airflow", "export_to_kubernetes", "export_to_systemd", "write_job_manifests"]

__getattr__ = attach(
    __name__,
    {
        "command": ["write_job_manifests"],
        "schedule_export": ["export_to_airflow", "export_to_kubernetes", "export_to_systemd"],
    },
)
