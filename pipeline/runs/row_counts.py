"""Counts of a run's rows: by status, by reason, and how many failures are new."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ImageStatus
from pipeline.messages import ImageFailure, ShardResult

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

    def _add_reason(self, reason: str, count: int = 1) -> None:
        self._reasons[reason if reason in self._reasons or len(self._reasons) < MAX_REASONS else "other"] += count

    def _add_failure(self, failure: ImageFailure) -> None:
        self._add_reason(failure.reason)
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(failure)

    def add_counts(self, counts: pa.Table) -> None:
        """Add the counts of shards, in the form of `shard_counts.COUNTS_SCHEMA`."""
        by_status = pc.list_flatten(counts.column("statuses")).combine_chunks()
        for status, images in zip(*(by_status.field(name).to_pylist() for name in ("status", "images")), strict=True):
            self._statuses[status] += images
        self.repeats += pc.sum(counts.column("repeats")).as_py() or 0
        self.instances += pc.sum(counts.column("instances")).as_py() or 0
        failures = pc.list_flatten(counts.column("failures")).combine_chunks()
        for each in pc.value_counts(failures.field("reason")):
            self._add_reason(each["values"].as_py(), each["counts"].as_py())
        for each in failures.slice(0, MAX_EXAMPLES - len(self.examples)).to_pylist():
            self.examples.append(ImageFailure(each["uri"], each["status"], each["reason"]))
