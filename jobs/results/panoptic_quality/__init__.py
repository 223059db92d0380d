"""`htc evaluate --panoptic`: a run's panoptic segments judged against COCO's panoptic format by panoptic quality."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.panoptic_quality.command import report_panoptic_quality
    from jobs.results.panoptic_quality.result import PanopticEvaluation
    from jobs.results.panoptic_quality.score import evaluate_panoptic

__all__ = ["PanopticEvaluation", "evaluate_panoptic", "report_panoptic_quality"]

__getattr__ = attach(
    __name__,
    {
        "command": ["report_panoptic_quality"],
        "result": ["PanopticEvaluation"],
        "score": ["evaluate_panoptic"],
    },
)
