"""The counts of a run: its committed rows, earlier sessions included, and the work of the current session."""

from pipeline.driver.throughput import Throughput
from pipeline.errors import NotFoundError
from pipeline.job_spec.job import RetrySection
from pipeline.messages import ShardFailure, ShardResult, WorkerReady
from pipeline.output.parts import CommittedShards
from pipeline.runs.counting import CountsRecorder, RecordedCounts, count_recorded, count_run, count_shards, missing_part
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
        self._fast_path = ""
        self._must_recount = False
        self.session_images = 0
        self._recorder: CountsRecorder | None = None
        if run.state == "new":
            self.has_bug = False
            self.rows = RowCounts()
            self._recorder = self._new_recorder()
        else:
            self.has_bug = bool((run.read_summary() or {}).get("has_bug"))
            self.rows = self._count_anew(run.committed) if run.state == "complete" else self._count_and_record()

    def _new_recorder(self, recorded: RecordedCounts | None = None) -> CountsRecorder | None:
        # Without the lease the run is only read.
        if not self._run.has_lease:
            return None
        return CountsRecorder(
            self._storage,
            self._run.output_uri,
            self._run.name,
            check_lease=self._run.check_lease,
            next_number=recorded.next_number if recorded else 0,
            recorded=int(recorded.is_counted.sum()) if recorded else 0,
        )

    def _count_anew(self, committed: CommittedShards | None) -> RowCounts:
        run = self._run
        return count_run(
            self._storage,
            run.output_uri,
            run.name,
            shard_count=run.shard_count,
            find_repeats=run.repeats,
            committed=committed,
        )

    def _count_and_record(self) -> RowCounts:
        """Count what earlier sessions committed, and record what they did not."""
        run, storage = self._run, self._storage
        is_committed = run.committed.mask(run.shard_count)
        recorded = count_recorded(storage, run.output_uri, run.name, is_committed)
        self._recorder = self._new_recorder(recorded)
        if self._recorder is not None:
            self._recorder.void(recorded.voided)
        left = is_committed & ~recorded.is_counted
        try:
            for counts in count_shards(
                storage, run.output_uri, run.name, run.committed, is_wanted=left, find_repeats=run.repeats
            ):
                recorded.rows.add_counts(counts)
                if self._recorder is not None:
                    self._recorder.add_counts(counts)
        except NotFoundError as error:
            raise missing_part(error, run.output_uri) from error
        return recorded.rows

    def worker_started(self, ready: WorkerReady) -> None:
        """Count a worker that has loaded its model."""
        self._workers_started += 1
        self._run.start_up.mark("worker")
        self._device = ready.device
        self._precision = ready.precision
        # One worker whose fast path is off matters more than the others.
        if ready.fast_path.startswith("off") or not self._fast_path:
            self._fast_path = ready.fast_path

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
        self._run.start_up.mark("shard")
        if is_exact and self._recorder is not None:
            self._recorder.add(report)
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
            model: its name in the tables.
            error_log: the folder of this session's tracebacks, None without any.
            signal_name: the signal that ended the session, None without one.
            stop_reason: why the run was stopped early, see `summary.judge`.
        """
        if self._recorder is not None:
            self._recorder.flush()
        if self._must_recount:
            self.rows = self._count_anew(None)
        seconds = throughput.seconds
        session = SessionNumbers(
            session_images=self.session_images,
            seconds=seconds,
            images_per_s=self.session_images / seconds if seconds > 0 else 0.0,
            stage_shares={str(stage): share for stage, share in self._stages.shares().items()},
            start_up_s=self._run.start_up.seconds(),
            retries=self._retries,
            workers_lost=self._workers_lost,
            workers_started=self._workers_started,
            device=self._device,
            precision=self._precision,
            fast_path=self._fast_path,
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
