"""One run: begin, resume, lease, outcome, summary."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.runs.lease import Lease, RunHeldError, take_lease
    from pipeline.runs.open import find_run, open_run
    from pipeline.runs.outcomes import Outcome
    from pipeline.runs.run import RunHandle
    from pipeline.runs.state import RunState, find_run_state
    from pipeline.runs.summary import RunSummary, load_summary

__all__ = [
    "Lease",
    "Outcome",
    "RunHandle",
    "RunHeldError",
    "RunState",
    "RunSummary",
    "find_run",
    "find_run_state",
    "load_summary",
    "open_run",
    "take_lease",
]

__getattr__ = attach(
    __name__,
    {
        "lease": ["Lease", "RunHeldError", "take_lease"],
        "open": ["find_run", "open_run"],
        "outcomes": ["Outcome"],
        "run": ["RunHandle"],
        "state": ["RunState", "find_run_state"],
        "summary": ["RunSummary", "load_summary"],
    },
)
