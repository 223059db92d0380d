"""`htc evaluate`: a run judged against the truth; COCO's metrics, where AP is lost, the worst images."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.evaluation.command import report_evaluation
    from jobs.results.evaluation.result import Evaluation
    from jobs.results.evaluation.score import evaluate, evaluate_run

__all__ = ["Evaluation", "evaluate", "evaluate_run", "report_evaluation"]

__getattr__ = attach(
    __name__,
    {
        "command": ["report_evaluation"],
        "result": ["Evaluation"],
        "score": ["evaluate", "evaluate_run"],
    },
)
