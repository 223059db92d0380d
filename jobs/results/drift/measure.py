"""Measures the runs of an output, and compares each with those before it."""

from jobs.results.drift.result import Drift
from pipeline.storage.storage import Storage


def measure_drift(
    output_uri: str,
    *,
    baseline: str | None = None,
    window: int = 7,
    last: int = 30,
    min_score: float = 0.5,
    storage: Storage | None = None,
) -> Drift:
    """Measure the newest runs of an output, and compare each with those before it.

    Args:
        baseline: compare every run with this one; None compares each with up to `window` runs of the same model before
            it, taken together.
        last: so many of the newest runs that have images.
        min_score: instances that score less are left out of counts, areas and categories.

    Raises:
        InputError: there is no run, or none of the baseline's name.
        DamagedFileError: a part is damaged or missing.
    """
    raise NotImplementedError
