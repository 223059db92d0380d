"""`htc report`: what a run did and what it found, as one page for a browser."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.report.command import ReportRequest, write_report

__all__ = ["ReportRequest", "write_report"]

__getattr__ = attach(__name__, {"command": ["ReportRequest", "write_report"]})
