"""Training from files, by one process or by several under Ray Train."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.training.run import train
    from pipeline.training.spec import StoredTrainingSpec, load_training_spec

__all__ = ["StoredTrainingSpec", "load_training_spec", "train"]

__getattr__ = attach(
    __name__,
    {
        "run": ["train"],
        "spec": ["StoredTrainingSpec", "load_training_spec"],
    },
)
