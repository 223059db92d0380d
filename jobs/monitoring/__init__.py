"""What monitoring asks of an output: how its last run ended and whether the next one is late; as Prometheus metrics."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.monitoring.exporter import export_metrics
    from jobs.monitoring.lateness import report_lateness
    from jobs.monitoring.output_status import OutputStatus, read_output_status

__all__ = ["OutputStatus", "export_metrics", "read_output_status", "report_lateness"]

__getattr__ = attach(
    __name__,
    {
        "exporter": ["export_metrics"],
        "lateness": ["report_lateness"],
        "output_status": ["OutputStatus", "read_output_status"],
    },
)
