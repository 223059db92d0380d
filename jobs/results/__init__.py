"""Commands that read an output: SQL, overlays, average precision, status."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.evaluation import Evaluation, evaluate_run, report_evaluation
    from jobs.results.query import query_output
    from jobs.results.show import ShowRequest, show_overlays
    from jobs.results.status import RunStatus, read_status

__all__ = [
    "Evaluation",
    "RunStatus",
    "ShowRequest",
    "evaluate_run",
    "query_output",
    "read_status",
    "report_evaluation",
    "show_overlays",
]

__getattr__ = attach(
    __name__,
    {
        "evaluation": ["Evaluation", "evaluate_run", "report_evaluation"],
        "query": ["query_output"],
        "show": ["ShowRequest", "show_overlays"],
        "status": ["RunStatus", "read_status"],
    },
)
