"""`htc diff`: what changed between two runs, instance by instance."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.diff.compare import diff_runs
    from jobs.results.diff.result import CategoryChanges, ChangedImage, Diff, InstanceChange, OutcomeChange, RunSide
    from jobs.results.diff.rules import DiffRules, Kind

__all__ = [
    "CategoryChanges",
    "ChangedImage",
    "Diff",
    "DiffRules",
    "InstanceChange",
    "Kind",
    "OutcomeChange",
    "RunSide",
    "diff_runs",
]

__getattr__ = attach(
    __name__,
    {
        "compare": ["diff_runs"],
        "result": ["CategoryChanges", "ChangedImage", "Diff", "InstanceChange", "OutcomeChange", "RunSide"],
        "rules": ["DiffRules", "Kind"],
    },
)
