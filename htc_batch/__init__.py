"""Instance masks for large image collections, from Python: `import htc_batch as htc`.

    summary = htc.run("photos/", "masks/")
    masks = htc.open("masks/")
    masks.instances(category="person", min_score=0.5)  # a pyarrow Table of committed rows
    masks.masks("street/0001.jpg")[0]  # the most confident mask, [H, W] bool
    masks.sql("SELECT category, sum(mask_area(mask)) FROM instances GROUP BY 1").df()

docs/python.md shows the rest. These names are stable; those of the packages below (`pipeline`, `jobs`, `htc_model`)
may change.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from htc_batch.commands import diff, evaluate, evaluate_panoptic, run
    from htc_batch.image_dataset import ImageDataset
    from htc_batch.label_map import LabelMap
    from htc_batch.masks import Masks
    from htc_batch.results import Results
    from htc_model.structures import FrameDetections, ImageBatch, RawDetections
    from pipeline.datasets.check import check_dataset
    from pipeline.datasets.layout import find_splits
    from pipeline.errors import HtcError
    from pipeline.job_spec.job import JobSpec, load_spec
    from pipeline.models import InstanceModel, PixelFormat, check_model
    from pipeline.output.views import connect
    from pipeline.runs.summary import RunSummary
    from pipeline.training.run import train
    from pipeline.training.spec import load_training_spec

__all__ = [
    "FrameDetections",
    "HtcError",
    "ImageBatch",
    "ImageDataset",
    "InstanceModel",
    "JobSpec",
    "LabelMap",
    "Masks",
    "PixelFormat",
    "RawDetections",
    "Results",
    "RunSummary",
    "check_dataset",
    "check_model",
    "connect",
    "diff",
    "evaluate",
    "evaluate_panoptic",
    "find_splits",
    "load_spec",
    "load_training_spec",
    "open",
    "run",
    "train",
]

__getattr__ = attach(
    __name__,
    {
        "commands": ["diff", "evaluate", "evaluate_panoptic", "run"],
        "image_dataset": ["ImageDataset"],
        "label_map": ["LabelMap"],
        "masks": ["Masks"],
        "results": ["Results"],
        "pipeline.datasets": ["check_dataset", "find_splits"],
        "pipeline.errors": ["HtcError"],
        "pipeline.job_spec": ["JobSpec", "load_spec"],
        "htc_model.structures": ["FrameDetections", "ImageBatch", "RawDetections"],
        "pipeline.models": ["InstanceModel", "PixelFormat", "check_model"],
        "pipeline.output": ["connect"],
        "pipeline.runs": ["RunSummary"],
        "pipeline.training": ["load_training_spec", "train"],
    },
)


def open(output_uri: str, storage: "Mapping[str, Any] | None" = None) -> "Results":
    """Open the output of runs, finished or not, for reading.

    Args:
        output_uri: the output folder, a local path or a URL.
        storage: how a store is reached, by the keys of the job spec's section `storage`, such as {"anonymous": True};
            None for the defaults.

    Raises:
        InputError: the folder holds no run.
        SpecError: `storage` has an unknown key.
    """
    from htc_batch.results import open_results

    return open_results(output_uri, storage)
