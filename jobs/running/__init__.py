"""Commands that run on this machine: run, plan, train, weights."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.running.plan import report_plan
    from jobs.running.run import run_and_report
    from jobs.running.train import train_and_report
    from jobs.running.weights import report_convert, report_fetch, report_published, report_verify

__all__ = [
    "report_convert",
    "report_fetch",
    "report_plan",
    "report_published",
    "report_verify",
    "run_and_report",
    "train_and_report",
]

__getattr__ = attach(
    __name__,
    {
        "plan": ["report_plan"],
        "run": ["run_and_report"],
        "train": ["train_and_report"],
        "weights": ["report_convert", "report_fetch", "report_published", "report_verify"],
    },
)
