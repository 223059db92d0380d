"""Data sets to train on: convert annotations to COCO, check them, split them."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.datasets.check import CheckOptions, check_dataset
    from pipeline.datasets.convert import Conversion, ConvertOptions, convert_dataset
    from pipeline.datasets.findings import CheckReport, Finding
    from pipeline.datasets.layout import Split, find_splits
    from pipeline.datasets.split import SplitOptions, split_dataset

__all__ = [
    "CheckOptions",
    "CheckReport",
    "Conversion",
    "ConvertOptions",
    "Finding",
    "Split",
    "SplitOptions",
    "check_dataset",
    "convert_dataset",
    "find_splits",
    "split_dataset",
]

__getattr__ = attach(
    __name__,
    {
        "check": ["CheckOptions", "check_dataset"],
        "convert": ["Conversion", "ConvertOptions", "convert_dataset"],
        "findings": ["CheckReport", "Finding"],
        "layout": ["Split", "find_splits"],
        "split": ["SplitOptions", "split_dataset"],
    },
)
