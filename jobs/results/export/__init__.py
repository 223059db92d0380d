"""`htc export`: instances in the formats of annotation tools, trainers and viewers."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.export.command import ExportRequest, export_output

__all__ = ["ExportRequest", "export_output"]

__getattr__ = attach(__name__, {"command": ["ExportRequest", "export_output"]})
