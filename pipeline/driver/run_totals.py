"""The counts of a run: its committed rows, earlier sessions included, and the work of the current session."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from pipeline.driver.run_limits import LimitReached, RunLimits
from pipeline.driver.throughput import Throughput
from pipeline.driver.worker_time import WorkerTime
from pipeline.errors import NotFoundError
from pipeline.job_spec.job import RetrySection
from pipeline.messages import ShardFailure, ShardResult, WorkerReady
from pipeline.output.parts import CommittedShards
from pipeline.runs.bottleneck import Bottleneck
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
        failed_attempts: attempts that failed, by what ended them.
        has_bug: whether a shard was given up because of an unforeseen exception, in any session.
    """

    def __init__(self, run: RunHandle, storage: Storage, metrics: DriverMetrics) -> None:
        self._run = run
        self._storage = storage
        self._metrics = metrics
        self._stages = StageClock()
        self.failed_attempts: Counter[str] = Counter()
        self._workers_lost = 0
        self._workers_started = 0
        self._device = ""
        self._precision = ""
        self._fast_path = ""
        self._machines: Counter[str] = Counter()
        self._shards_counted = 0
        self._must_recount = False
        self._began = datetime.now(UTC)
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
        self._machines[ready.machine] += 1
        # One worker whose fast path is off matters more than the others.
        if ready.fast_path.startswith("off") or not self._fast_path:
            self._fast_path = ready.fast_path

    @property
    def workers_started(self) -> int:
        """Workers that loaded their model."""
        return self._workers_started

    @property
    def workers_lost(self) -> int:
        """Workers that died."""
        return self._workers_lost

    @property
    def stage_shares(self) -> dict[str, float]:
        """Shares of the busy seconds of committed shards, by stage."""
        return {str(stage): share for stage, share in self._stages.shares().items()}

    def worker_lost(self) -> None:
        """Count a worker that died."""
        self._workers_lost += 1
        self._metrics.worker_lost()

    def attempt_failed(self, failure: ShardFailure) -> None:
        """Count an attempt that ended without a commit."""
        self.failed_attempts[failure.kind] += 1
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
        self._shards_counted += 1
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
        limits: RunLimits,
        worker_time_s: Mapping[str, float] | None = None,
        bottleneck: Bottleneck | None = None,
        limit_reached: LimitReached | None = None,
    ) -> RunSummary:
        """Judge the run and return its summary.

        Args:
            retry: the error budget.
            model: its name in the tables.
            error_log: the folder of this session's tracebacks, None without any.
            signal_name: the signal that ended the session, None without one.
            stop_reason: why the run was stopped early, see `summary.judge`.
            worker_time_s, bottleneck: of this session, see `RunSummary`.
            limits: the workers' time and the run's cost. limit_reached: the limit at which the session stopped.
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
            stage_shares=self.stage_shares,
            worker_time_s=worker_time_s or {},
            bottleneck=bottleneck,
            start_up_s=self._run.start_up.seconds(),
            retries=self.failed_attempts.total(),
            workers_lost=self._workers_lost,
            workers_started=self._workers_started,
            device=self._device,
            precision=self._precision,
            fast_path=self._fast_path,
            error_log=error_log,
            machine=_machines_text(self._machines),
            worker_use=self._worker_time(limits.time),
            cost=_cost_values(limits),
            deadline=limits.deadline.isoformat() if limits.deadline else None,
            is_late=limits.is_late(),
            stopped_by=limit_reached.limit if limit_reached else "",
            began=self._began.isoformat(),
            ended=datetime.now(UTC).isoformat(),
        )
        summary = summarise(
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
            limit=(limit_reached.reason, limit_reached.way_out) if limit_reached else None,
            session=session,
        )
        # A limit that was reached with the last image stopped nothing.
        return replace(summary, stopped_by="") if summary.status != "interrupted" else summary

    def _worker_time(self, time: WorkerTime) -> dict[str, object]:
        write_s = self._stages.seconds()["write"] / self._shards_counted if self._shards_counted else 0.0
        return {
            "running_s": round(time.running_s, 3),
            "ready_s": round(time.ready_s, 3),
            "busy_s": round(time.busy_s, 3),
            "write_s_per_shard": round(write_s, 4),
            "images_per_s": [float(f"{rate:.4g}") for rate in time.images_per_s()],
        }


def _machines_text(machines: Counter[str]) -> str:
    """Return the machine that most workers ran on, and how many other kinds there were."""
    known = [name for name, _ in machines.most_common() if name]
    return f"{known[0]} and {len(known) - 1} other" if len(known) > 1 else "".join(known)


def _cost_values(limits: RunLimits) -> dict[str, object]:
    cost, budget = limits.cost(), limits.budget
    return {
        "worker_hours": cost.worker_s / 3600,
        "amount": cost.amount,
        "currency": budget.currency,
        "price_per_worker_hour": budget.worker_price,
        "max_cost": budget.max_cost,
    }
