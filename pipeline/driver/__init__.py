"""The driver: hands shards to workers, retries what fails, and ends the run with a summary."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.driver.progress import ProgressDisplay, RunProgress
    from pipeline.driver.progress_file import load_progress
    from pipeline.driver.run_job import run

__all__ = ["ProgressDisplay", "RunProgress", "load_progress", "run"]

__getattr__ = attach(
    __name__,
    {
        "progress": ["ProgressDisplay", "RunProgress"],
        "progress_file": ["load_progress"],
        "run_job": ["run"],
    },
)
