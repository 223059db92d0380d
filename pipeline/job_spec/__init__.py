"""The job spec: its model, and reading it from YAML and options."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.job_spec.job import (
        ComputeSection,
        ImagesSection,
        InputSection,
        JobSpec,
        OutputSection,
        RetrySection,
        SelectSection,
        load_spec,
    )
    from pipeline.job_spec.model import ModelSection

__all__ = [
    "ComputeSection",
    "ImagesSection",
    "InputSection",
    "JobSpec",
    "ModelSection",
    "OutputSection",
    "RetrySection",
    "SelectSection",
    "load_spec",
]

__getattr__ = attach(
    __name__,
    {
        "job": [
            "ComputeSection",
            "ImagesSection",
            "InputSection",
            "JobSpec",
            "OutputSection",
            "RetrySection",
            "SelectSection",
            "load_spec",
        ],
        "model": ["ModelSection"],
    },
)
