"""Counts of a run's rows: by status, by reason, and how many failures are new."""

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageStatus
from pipeline.messages import ImageFailure, ShardResult
from pipeline.output.results import Results

# Reasons often name their image, so that there may be as many reasons as failures.
MAX_REASONS = 1000
MAX_REASONS_SHOWN = 20
# Enough to see what is wrong; the `images` table has them all.
MAX_EXAMPLES = 50


class RowCounts:
    """Counts of a run's rows.

    Attributes:
        instances: rows of the table `instances`.
        repeats: rows that are not ok and whose images were not ok before this run either.
        examples: the first failures that were counted, at most MAX_EXAMPLES.
    """

    def __init__(self) -> None:
        self._statuses: Counter[ImageStatus] = Counter()
        self._reasons: Counter[str] = Counter()
        self.instances = 0
        self.repeats = 0
        self.examples: list[ImageFailure] = []

    @property
    def images(self) -> int:
        """Images that have their row."""
        return self._statuses.total()

    @property
    def errors(self) -> int:
        """Rows that are not ok."""
        return self.images - self._statuses["ok"]

    @property
    def new_errors(self) -> int:
        """Rows that are not ok, without those whose images were not ok before either.

        These count against the error budget: an incremental run that retries three known failures, and nothing else,
        is not over it.
        """
        return self.errors - self.repeats

    @property
    def is_any_ok(self) -> bool:
        """Whether any row is ok."""
        return self._statuses["ok"] > 0

    @property
    def statuses(self) -> dict[str, int]:
        """Rows by status."""
        return {str(status): count for status, count in self._statuses.items()}

    @property
    def reasons(self) -> dict[str, int]:
        """Rows that are not ok by reason, the most frequent first, at most MAX_REASONS_SHOWN."""
        return dict(self._reasons.most_common(MAX_REASONS_SHOWN))

    def add(self, report: ShardResult) -> None:
        """Count a shard that was committed."""
        self._statuses.update(report.statuses)
        self.repeats += report.repeats
        self.instances += report.instances
        for failure in report.failures:
            self._add_failure(failure)

    def _add_failure(self, failure: ImageFailure) -> None:
        key = failure.reason
        self._reasons[key if key in self._reasons or len(self._reasons) < MAX_REASONS else "other"] += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(failure)

    @classmethod
    def from_tables(cls, results: Results, run: str, find_repeats: Callable[[], NDArray[np.int64]]) -> "RowCounts":
        """Count the rows that a run has committed.

        Args:
            find_repeats: returns the ids, [N] int64, of the images that were not ok before the run; called only when
                a row is not ok.

        Raises:
            StorageError: the tables cannot be read.
        """
        counts = cls()
        repeats: NDArray[np.int64] | None = None
        for batch in results.images(run, ["image_id", "uri", "status", "error", "instances"]).to_batches():
            statuses = batch.column("status").to_pylist()
            counts._statuses.update(statuses)
            counts.instances += sum(batch.column("instances").to_pylist())
            failed = [position for position, status in enumerate(statuses) if status != "ok"]
            if not failed:
                continue
            repeats = find_repeats() if repeats is None else repeats
            counts.repeats += int(np.isin(np.asarray(batch.column("image_id"))[failed], repeats).sum())
            for position in failed:
                uri, reason = batch.column("uri")[position].as_py(), batch.column("error")[position].as_py()
                counts._add_failure(ImageFailure(uri, statuses[position], reason or ""))
        return counts
