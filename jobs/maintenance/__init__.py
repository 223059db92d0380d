"""Runs of an output: listed, removed, compacted, published, examined."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.maintenance.compact import compact_output
    from jobs.maintenance.doctor import examine_and_report
    from jobs.maintenance.list_runs import report_runs
    from jobs.maintenance.prune import prune_output
    from jobs.maintenance.publish import publish_output, withdraw_run

__all__ = ["compact_output", "examine_and_report", "prune_output", "publish_output", "report_runs", "withdraw_run"]

__getattr__ = attach(
    __name__,
    {
        "compact": ["compact_output"],
        "doctor": ["examine_and_report"],
        "list_runs": ["report_runs"],
        "prune": ["prune_output"],
        "publish": ["publish_output", "withdraw_run"],
    },
)
