"""`htc drift`: counts, scores, areas and categories, run by run."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.drift.measure import measure_drift
    from jobs.results.drift.result import Drift, Level, MeasureDrift, MeasuredRun

__all__ = ["Drift", "Level", "MeasureDrift", "MeasuredRun", "measure_drift"]

__getattr__ = attach(
    __name__,
    {"measure": ["measure_drift"], "result": ["Drift", "Level", "MeasureDrift", "MeasuredRun"]},
)
