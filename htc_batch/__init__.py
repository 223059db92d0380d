"""Instance masks for large image collections, from Python: `import htc_batch as htc`.

    summary = htc.run(htc.load_spec("job.yaml"))
    instances = htc.open("out/").instances()  # a pyarrow Table of committed rows
    htc.connect("out/").sql("SELECT category, sum(mask_area(mask)) FROM instances GROUP BY 1")  # DuckDB

These names are stable; those of the packages below (`pipeline`, `jobs`, `htc_model`) may change.
"""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.datasets.check import check_dataset
    from pipeline.datasets.layout import find_splits
    from pipeline.driver.run_job import run
    from pipeline.errors import HtcError
    from pipeline.job_spec.job import JobSpec, load_spec
    from pipeline.output.results import Results
    from pipeline.output.views import connect
    from pipeline.runs.summary import RunSummary
    from pipeline.training.run import train
    from pipeline.training.spec import load_training_spec

__all__ = [
    "HtcError",
    "JobSpec",
    "Results",
    "RunSummary",
    "check_dataset",
    "connect",
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
        "pipeline.datasets": ["check_dataset", "find_splits"],
        "pipeline.driver": ["run"],
        "pipeline.errors": ["HtcError"],
        "pipeline.job_spec": ["JobSpec", "load_spec"],
        "pipeline.output": ["Results", "connect"],
        "pipeline.runs": ["RunSummary"],
        "pipeline.training": ["load_training_spec", "train"],
    },
)


def open(output_uri: str) -> "Results":
    """Open the output of a run, finished or not, for reading.

    Args:
        output_uri: the output folder, a local path or a URL.

    Nothing is read before a method of `Results` is called: `instances()` of a folder that holds no run raises an
    InputError then.
    """
    from pipeline.output import open_results

    return open_results(output_uri)
