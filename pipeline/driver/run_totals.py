"""The counts of a run: its committed rows, earlier sessions included, and the work of the current session."""

from pipeline.driver.throughput import Throughput
from pipeline.job_spec.job import RetrySection
from pipeline.messages import ShardFailure, ShardResult, WorkerReady
from pipeline.output.results import open_results
from pipeline.runs.row_counts import RowCounts
from pipeline.runs.run import RunHandle
from pipeline.runs.summary import RunSummary, SessionNumbers, summarise
from pipeline.storage.storage import Storage
from pipeline.telemetry import DriverMetrics, StageClock


class RunTotals:
    """Counts committed rows, failed attempts, and workers started and lost.

    Attributes:
        rows: the run's rows; begins with what earlier sessions committed.
        session_images: images that this session committed.
        has_bug: whether a shard was given up because of an unforeseen exception, in any session.
    """

    def __init__(self, run: RunHandle, storage: Storage, metrics: DriverMetrics) -> None:
        self._run = run
        self._storage = storage
        self._metrics = metrics
        self._stages = StageClock()
        self._retries = 0
        self._workers_lost = 0
        self._workers_started = 0
        self._device = ""
        self._precision = ""
        self._must_recount = False
        self.session_images = 0
        is_new = run.state == "new"
        self.has_bug = not is_new and bool((run.read_summary() or {}).get("has_bug"))
        self.rows = RowCounts() if is_new else self._count_tables()

    def _count_tables(self) -> RowCounts:
        results = open_results(self._run.output_uri, self._storage)
        return RowCounts.from_tables(results, self._run.name, self._run.repeats)

    def worker_started(self, ready: WorkerReady) -> None:
        """Count a worker that has loaded its model."""
        self._workers_started += 1
        self._device = ready.device
        self._precision = ready.precision

    def worker_lost(self) -> None:
        """Count a worker that died."""
        self._workers_lost += 1
        self._metrics.worker_lost()

    def attempt_failed(self, failure: ShardFailure) -> None:
        """Count an attempt that ended without a commit."""
        self._retries += 1
        self._metrics.attempt_failed(failure)

    def committed(self, report: ShardResult, *, is_exact: bool = True) -> None:
        """Count a shard that was committed.

        Args:
            is_exact: whether the rows are those of the report; otherwise the tables are counted at the end.
        """
        self._must_recount = self._must_recount or not is_exact
        self.rows.add(report)
        self.session_images += report.images
        self._stages.add(report.stage_s)
        self._metrics.committed(report)

    def summary(
        self,
        retry: RetrySection,
        throughput: Throughput,
        *,
        model: str,
        is_trained: bool,
        error_log: str | None,
        signal_name: str | None,
        stop_reason: str = "",
    ) -> RunSummary:
        """Judge the run and return its summary.

        Args:
            retry: the error budget.
            model: the preset's name.
            error_log: the folder of this session's tracebacks, None without any.
            signal_name: the signal that ended the session, None without one.
            stop_reason: why the run was stopped early, see `summary.judge`.
        """
        if self._must_recount:
            self.rows = self._count_tables()
        seconds = throughput.seconds
        session = SessionNumbers(
            session_images=self.session_images,
            seconds=seconds,
            images_per_s=self.session_images / seconds if seconds > 0 else 0.0,
            stage_shares={str(stage): share for stage, share in self._stages.shares().items()},
            retries=self._retries,
            workers_lost=self._workers_lost,
            workers_started=self._workers_started,
            device=self._device,
            precision=self._precision,
            error_log=error_log,
        )
        return summarise(
            self._run.name,
            self.rows,
            retry,
            images=self._run.image_count,
            is_planned=self._run.is_planned,
            model=model,
            is_trained=is_trained,
            has_bug=self.has_bug,
            is_interrupted=signal_name is not None,
            stop_reason=stop_reason,
            session=session,
        )
