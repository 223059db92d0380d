"""`htc dataset`: convert, check and split data sets to train on."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.datasets.check_command import check_splits, report_check
    from jobs.datasets.convert_command import report_conversion
    from jobs.datasets.split_command import report_split

__all__ = ["check_splits", "report_check", "report_conversion", "report_split"]

__getattr__ = attach(
    __name__,
    {
        "check_command": ["check_splits", "report_check"],
        "convert_command": ["report_conversion"],
        "split_command": ["report_split"],
    },
)
