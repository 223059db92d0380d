"""Compares the tables of two runs, image by image."""

from collections.abc import Sequence
from pathlib import Path

from jobs.results.diff.result import Diff
from jobs.results.diff.rules import DiffRules
from pipeline.storage.storage import Storage


def diff_runs(
    output_a: str,
    run_a: str | None = None,
    output_b: str | None = None,
    run_b: str | None = None,
    *,
    rules: DiffRules | None = None,
    uris: Sequence[str] | None = None,
    largest: int = 20,
    tables: Path | None = None,
    storage: Storage | None = None,
) -> Diff:
    """Compare run A with run B.

    Args:
        output_a, output_b: their outputs; None for B takes A's.
        run_a, run_b: their names, or "current". None for B takes the newest run with images; None for A the one before
            it in the same output, or the newest of another output.
        rules: what counts as a change.
        uris: compare these images only.
        largest: how many of the most changed images are returned.
        tables: a folder into which images.parquet and instances.parquet are written, with each compared one.

    Raises:
        InputError: there is no such run, both are the same one, they have no image in common, or a mask is damaged.
        SpecError: the tables cannot be written.
        DamagedFileError: a part is damaged or missing.
        StorageError: an output was compacted or pruned at each of several attempts.
    """
    raise NotImplementedError
