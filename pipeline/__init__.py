"""The run: shards in, committed Parquet out."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.driver.run_job import run
    from pipeline.errors import HtcError
    from pipeline.job_spec.job import JobSpec, load_spec
    from pipeline.output.results import Results, open_results
    from pipeline.runs.summary import RunSummary

__all__ = ["HtcError", "JobSpec", "Results", "RunSummary", "load_spec", "open_results", "run"]

__getattr__ = attach(
    __name__,
    {
        "pipeline.driver.run_job": ["run"],
        "pipeline.job_spec.job": ["JobSpec", "load_spec"],
        "pipeline.output.results": ["Results", "open_results"],
        "pipeline.runs.summary": ["RunSummary"],
        "errors": ["HtcError"],
    },
)
