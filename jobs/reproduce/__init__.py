"""`htc reproduce`: the rows of the paper's table, run on COCO val2017 and set beside the published figures."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.reproduce.command import ReproduceRequest, report_table1

__all__ = ["ReproduceRequest", "report_table1"]

__getattr__ = attach(__name__, {"command": ["ReproduceRequest", "report_table1"]})
