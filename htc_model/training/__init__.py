"""Training: data, targets, losses and the loop. Inference does not import it."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from htc_model.training.annotations import AnnotationError, CocoAnnotations
    from htc_model.training.coco_eval import coco_document, score_results
    from htc_model.training.coco_reader import read_annotations
    from htc_model.training.evaluate import evaluate_model
    from htc_model.training.run import EvaluationSet, run_training
    from htc_model.training.spec import TrainingSpec

__all__ = [
    "AnnotationError",
    "CocoAnnotations",
    "EvaluationSet",
    "TrainingSpec",
    "coco_document",
    "evaluate_model",
    "read_annotations",
    "run_training",
    "score_results",
]

__getattr__ = attach(
    __name__,
    {
        "annotations": ["AnnotationError", "CocoAnnotations"],
        "coco_eval": ["coco_document", "score_results"],
        "coco_reader": ["read_annotations"],
        "evaluate": ["evaluate_model"],
        "run": ["EvaluationSet", "run_training"],
        "spec": ["TrainingSpec"],
    },
)
