"""One session of a run: the loop between the shard queue and the worker pool."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any

from pipeline.cluster.connection import ray_cluster
from pipeline.driver.commit import ShardCommitter
from pipeline.driver.error_log import ErrorLog
from pipeline.driver.events import (
    Event,
    ShardAbandoned,
    ShardEnded,
    WorkerDied,
    WorkerLeaving,
    WorkerLeft,
    WorkerNotStarted,
    WorkerReported,
    WorkerRetired,
    WorkerStarted,
    WorkersWaiting,
)
from pipeline.driver.hand_out import ShardDispatcher
from pipeline.driver.live_view import LiveView
from pipeline.driver.live_workers import LiveWorkers
from pipeline.driver.pool import OpenPool, Pool
from pipeline.driver.progress import ProgressDisplay, RunProgress
from pipeline.driver.run_limits import LimitReached, RunLimits
from pipeline.driver.run_totals import RunTotals
from pipeline.driver.shard_queue import ShardQueue, Unsettled
from pipeline.driver.throughput import Throughput
from pipeline.errors import RunError, StorageError
from pipeline.job_spec.budget import BudgetSection
from pipeline.job_spec.job import ComputeSection, RetrySection
from pipeline.logs import log_event, note
from pipeline.maintenance.running_compaction import RunningCompaction
from pipeline.messages import CommitRequest, PartialResult, ShardFailure, ShardOutcome, ShardResult, WorkerFailure
from pipeline.runs.error_budget import ErrorBudget
from pipeline.runs.outcomes import exit_code_of
from pipeline.runs.run import RunHandle
from pipeline.runs.summary import RunSummary
from pipeline.signals import StopRequest
from pipeline.storage.storage import Storage
from pipeline.telemetry import DriverMetrics
from pipeline.worker.worker import WorkerSettings

log = logging.getLogger(__name__)

# How late a signal, a due retry or the display may be.
TICK_S = 0.25
# A worker that cannot start three times in a row is not expected to start the fourth time.
MAX_START_FAILURES = 3
# Lines of the log about single images, in a session.
MAX_IMAGES_LOGGED = 1000


@contextmanager
def ray_pool(
    settings: WorkerSettings, *, compute: ComputeSection, retry: RetrySection, shards: int | None
) -> Iterator[Pool]:
    """Connect to Ray, or start it on this machine, and open a pool of actors there for the time of the block.

    Raises:
        RunError: Ray cannot be reached or started, or has too little for one worker.
    """
    with ray_cluster(compute, shards=shards) as plan:
        # Imports Ray, which must see the environment that `ray_cluster` prepares.
        from pipeline.cluster.node_states import NodeStates
        from pipeline.driver.worker_pool import WorkerPool

        yield WorkerPool(settings, plan, compute=compute, retry=retry, nodes=NodeStates())


class Session:
    """Everything the driver does between opening a run and its summary."""

    def __init__(
        self,
        run: RunHandle,
        storage: Storage,
        display: ProgressDisplay,
        *,
        worker: WorkerSettings,
        compute: ComputeSection,
        retry: RetrySection,
        is_trained: bool,
        stop: StopRequest | None = None,
        open_pool: OpenPool = ray_pool,
        compaction: RunningCompaction | None = None,
        limits: RunLimits | None = None,
    ) -> None:
        """Prepare the bookkeeping; nothing is started yet.

        Args:
            worker: what every worker of the run gets.
            compute: how many workers, and when one is replaced.
            retry: the error budget, the attempts per shard and the time limits.
            is_trained: whether the model's weights are trained, for the summary.
            stop: has its handlers in place already; by default a new one, in place while `work` runs.
            open_pool: where the workers run.
            compaction: merges the parts of shards that are done; None for no compaction.
            limits: the deadline and the largest cost; None for none.
        """
        self._run = run
        self._compaction = compaction
        self._display = display
        self._worker = worker
        self._compute = compute
        self._retry = retry
        self._is_trained = is_trained
        self._open_pool = open_pool
        self._metrics = DriverMetrics(run.name)
        self._totals = RunTotals(run, storage, self._metrics)
        self._committer = ShardCommitter(
            storage, run.output_uri, run.name, model=worker.model_label, map_tables=worker.model.map_tables
        )
        self._error_log = ErrorLog(storage, run.output_uri, run.name)
        self._throughput = Throughput()
        self._stop = stop or StopRequest()
        self._handlers: AbstractContextManager[object] = nullcontext() if stop else self._stop
        self._start_failures = 0
        self._images_logged = 0
        self._budget = ErrorBudget(retry.max_error_rate, retry.max_errors)
        self._stop_reason = ""
        self._limits = limits or RunLimits(BudgetSection())
        self._limit_reached: LimitReached | None = None
        self._closing: LimitReached | None = None
        self._queue = ShardQueue(
            max_attempts=retry.max_attempts,
            count_images=lambda index: len(run.read_shard(index).images),
        )
        self._live = LiveWorkers()
        self._live_view = LiveView(self._live, self._queue)
        self._dispatcher = ShardDispatcher(run, self._queue, self._budget, display, on_assigned=self._live.assigned)

    def work(self) -> None:
        """Do the shards that are left, until all are done or a stop is requested.

        Raises:
            RunError: the run cannot continue.
            InputError, StorageError: the input cannot be listed to its end.
        """
        is_planned = self._run.is_planned
        self._queue.add(self._run.take_new_shards())
        shards = self._queue.left if is_planned else None
        self._check_error_budget()
        self._limit_reached = self._limits.reached()
        if self._stop_reason or self._stop.is_set or self._limit_reached:
            # An earlier session stopped for this reason and nothing has changed, or a signal came while the run was
            # opened.
            return
        with self._handlers:
            try:
                with self._open_pool(self._worker, compute=self._compute, retry=self._retry, shards=shards) as pool:
                    self._stop.install()
                    self._work_with(pool)
            except RunError:
                # A signal to the whole process group takes Ray down as well; that is no failure of the run.
                if not self._stop.is_set:
                    raise

    def _work_with(self, pool: Pool) -> None:
        try:
            while self._has_work() and not self._stop.is_set and not self._stop_reason and not self._limit_reached:
                if not self._closing:
                    pool.scale_to(min(pool.max_workers, self._queue.left), spare=self._spare_workers())
                    self._dispatcher.hand_out(pool, self._totals.rows)
                    self._live.set_tail(self._run.is_planned and not self._queue.waiting)
                for event in pool.events(TICK_S):
                    self._handle(pool, event)
                self._check_error_budget()
                self._check_limits(pool)
                self._show(pool)
            if not self._stop.is_set and not self._limit_reached:
                for event in pool.final_check():
                    if isinstance(event, WorkerDied):
                        self._note_death(event)
                    elif isinstance(event, WorkerReported):
                        self._live.reported(event.worker, event.report)
        finally:
            self._live_view.end()
            self._record_time(pool)
            pool.shut_down()
            self._limits.keep_record(is_last=True)
            if self._compaction is not None:
                self._compaction.close()

    def _spare_workers(self) -> int | None:
        """Return how many idle workers may still be of use; None when all may be.

        At the end of a run each shard in flight may need one for a speculative copy, and one that fails another worker.
        """
        if self._queue.waiting or not self._run.is_planned:
            return None
        return self._queue.copyable + 1

    def _has_work(self) -> bool:
        """Take the shards that were planned meanwhile; return whether any is left or may still come."""
        # Asked first: planning may end between the two questions.
        is_planned = self._run.is_planned
        self._queue.add(self._run.take_new_shards())
        return self._queue.left > 0 or not is_planned

    def _check_error_budget(self) -> None:
        """Stop when the run cannot end within its error budget; while images are still being listed, only warn."""
        if self._stop_reason:
            return
        rows = self._totals.rows
        done, errors, reasons = rows.images, rows.new_errors, rows.reasons
        if self._run.is_planned:
            images = self._run.image_count
            said = self._budget.verdict(images=images, images_done=done, errors=errors, reasons=reasons)
            self._stop_reason = said
        else:
            said = self._budget.warning(images_done=done, errors=errors, reasons=reasons)
        if said:
            event = "early_stop" if self._stop_reason else "error_budget"
            self._display.note(note(event, said, images_done=done, images_failed=errors))

    def _check_limits(self, pool: Pool) -> None:
        """Stop at the deadline or the largest cost; begin no shard that would not end before."""
        self._record_time(pool)
        self._limits.keep_record()
        self._limit_reached = self._limits.reached()
        if self._closing is None and (closing := self._limits.closing()):
            self._closing = closing
            sentence = self._limits.closing_note(closing)
            self._display.note(note("run_limit", sentence, limit=closing.limit))
        if self._closing and not any(pool.ready_workers().values()):
            # Waiting any longer would only cost.
            self._limit_reached = self._limit_reached or self._limits.at(self._closing.limit)

    def _record_time(self, pool: Pool) -> None:
        held = pool.ready_workers()
        self._limits.time.record(
            running=pool.running,
            ready=len(held),
            busy=sum(bool(shards) for shards in held.values()),
            images_done=self._totals.session_images + pool.images_in_flight,
        )

    def end(self, *, cut_short: str = "") -> RunSummary:
        """Judge the run, write summary.json and return it.

        Args:
            cut_short: why the run could not continue, when it could not.
        """
        summary = self._totals.summary(
            self._retry,
            self._throughput,
            model=self._worker.model_label,
            is_trained=self._is_trained,
            error_log=self._error_log.uri,
            signal_name=self._stop.signal_name,
            stop_reason=self._stop_reason,
            worker_time_s=self._live_view.time_s,
            bottleneck=self._live_view.bottleneck,
            limits=self._limits,
            limit_reached=self._limit_reached,
        )
        if cut_short and summary.status == "incomplete":
            summary = replace(summary, reason=cut_short)
        if self._run.state == "complete" and (self._run.read_summary() or {}).get("status") == summary.status:
            # Nothing was done: the summary of the session that did the work holds more.
            return summary
        try:
            self._run.write_summary(summary.to_dict())
        except StorageError as error:
            self._display.note(f"summary.json could not be written: {error}")
            if summary.status == "complete":
                # A caller that waits for exit code 0 reads the summary next; the same command writes it.
                reason = f"Every image has its row, but summary.json could not be written: {error}"
                return replace(summary, status="incomplete", exit_code=exit_code_of("incomplete"), reason=reason)
        return summary

    def _handle(self, pool: Pool, event: Event) -> None:
        match event:
            case WorkerStarted(worker=worker, ready=ready, start_s=start_s):
                self._start_failures = 0
                self._totals.worker_started(ready)
                self._live.started(worker, ready, start_s=start_s)
                log_event(log, "worker_started", f"Worker {worker} has its model.", worker=worker, **asdict(ready))
            case WorkerReported(worker=worker, report=worker_report):
                self._live.reported(worker, worker_report)
            case WorkerNotStarted(worker=worker, failure=failure):
                self._not_started(worker, failure)
            case ShardEnded():
                self._ended(pool, event)
            case ShardAbandoned(index=index):
                self._settle(self._queue.abandoned(index))
            case WorkerDied():
                self._died(event)
            case _:
                self._handle_comings_and_goings(pool, event)

    def _handle_comings_and_goings(self, pool: Pool, event: Event) -> None:
        match event:
            case WorkerRetired(worker=worker, reason=reason):
                self._live.left(worker)
                log_event(log, "worker_retired", f"worker {worker} is replaced: {reason}", worker=worker, reason=reason)
            case WorkerLeaving():
                self._leaving(pool, event)
            case WorkerLeft():
                self._left(event)
            case WorkersWaiting(reason=reason):
                self._display.note(note("workers_waiting", reason))

    def _ended(self, pool: Pool, event: ShardEnded) -> None:
        worker, outcome = event.worker, event.outcome
        if isinstance(outcome, ShardResult) and outcome.worker is not None:
            self._live.reported(worker, outcome.worker)
        self._live.ended(worker)
        match outcome:
            case ShardResult():
                self._live.done(worker, outcome)
                self._committed(pool, worker, outcome)
            case PartialResult():
                self._survived(pool, worker, outcome)
            case ShardFailure():
                self._failed(worker, outcome)

    def _committed(self, pool: Pool, worker: int, report: ShardResult) -> None:
        if self._queue.is_running(report.index):
            self._count(report, worker=worker)
            needless_worker = self._queue.committed(report.index)
            if needless_worker is not None:
                pool.abandon(needless_worker, report.index)

    def _survived(self, pool: Pool, worker: int, piece: PartialResult) -> None:
        result = self._queue.survived(worker, piece)
        if isinstance(result, CommitRequest):
            pool.abandon(result.worker, result.index)
        else:
            self._settle(result)

    def _not_started(self, worker: int, failure: WorkerFailure) -> None:
        self._error_log.add("worker start", failure.traceback)
        self._start_failures += 1
        if failure.is_permanent or self._start_failures >= MAX_START_FAILURES:
            error = RunError(failure.reason)
            error.exit_code = failure.exit_code
            raise error
        sentence = f"A worker could not load the model; another one is started: {failure.reason}"
        self._display.note(note("worker_not_started", sentence, worker=worker, reason=failure.reason))

    def _note_death(self, death: WorkerDied) -> None:
        self._totals.worker_lost()
        self._live.left(death.worker)
        lost = ", ".join(map(str, death.lost_shards)) or "none"
        sentence = f"Worker {death.worker}: {death.reason}. Shards to be done again: {lost}."
        lost_shards, was_preempted = death.lost_shards, death.was_preempted
        self._display.note(
            note(
                "worker_lost",
                sentence,
                worker=death.worker,
                reason=death.reason,
                lost_shards=lost_shards,
                was_preempted=was_preempted,
            )
        )

    def _leaving(self, pool: Pool, event: WorkerLeaving) -> None:
        """Take the shards of a worker on a drained node that it cannot do in time."""
        sentence = f"Worker {event.worker}: {event.reason}; it gets no further shard and is replaced."
        self._display.note(note("worker_leaving", sentence, worker=event.worker, reason=event.reason))
        first, *queued = event.shards
        for index in queued:
            if self._queue.give_back(event.worker, index):
                pool.abandon(event.worker, index, is_queued=True)
        if event.seconds_left is not None and not self._queue.may_end(first, within_s=event.seconds_left):
            self._left(pool.end(event.worker, f"shard {first} usually takes longer"))

    def _left(self, event: WorkerLeft) -> None:
        if not event.lost_shards:
            log.info("worker %d was ended: %s", event.worker, event.reason)
            return
        lost = ", ".join(map(str, event.lost_shards))
        sentence = f"Worker {event.worker}: ended before its node goes; {event.reason}. For others: {lost}."
        self._display.note(note("worker_leaving", sentence, worker=event.worker, lost_shards=event.lost_shards))
        for index in event.lost_shards:
            self._failed(event.worker, ShardFailure(index, "abandoned", event.reason, is_charged=False))

    def _died(self, death: WorkerDied) -> None:
        self._note_death(death)
        if not death.was_ready and not death.was_preempted:
            self._start_failures += 1
            if self._start_failures >= MAX_START_FAILURES:
                raise RunError(f"Workers keep dying while they load the model; the last: {death.reason}.")
        for index in death.lost_shards:
            self._failed(death.worker, death.failure_of(index), is_noted=True)

    def _failed(self, worker: int, failure: ShardFailure, *, is_noted: bool = False) -> None:
        if failure.kind != "abandoned":
            self._totals.attempt_failed(failure)
            self._error_log.add(f"shard {failure.index}", failure.traceback)
            sentence = f"Shard {failure.index}, an attempt failed: {failure.reason}"
            values: dict[str, Any] = {
                "shard": failure.index,
                "worker": worker,
                "attempt": self._queue.attempts(failure.index),
                "kind": failure.kind,
                "reason": failure.reason,
            }
            if is_noted:
                # People have read it with the worker's death; as an event it names its shard.
                log_event(log, "shard_retried", sentence, level="info", **values)
            else:
                self._display.note(note("shard_retried", sentence, **values))
        self._settle(self._queue.failed(worker, failure))

    def _settle(self, settled: ShardOutcome | Unsettled) -> None:
        """Commit a shard that no worker commits, once all of its images are settled."""
        if isinstance(settled, Unsettled):
            return
        if settled.rest is not None:
            self._totals.has_bug = self._totals.has_bug or settled.rest.kind == "bug"
            if settled.rest.kind == "commit":
                raise RunError(
                    f"The tables cannot be written: {settled.rest.reason} "
                    "What is committed stays. Run the same command again to resume."
                )
            sentence = f"Shard {settled.index} is given up after {settled.attempts} attempts: {settled.rest.reason}"
            rest: dict[str, Any] = {"shard": settled.index, "attempt": settled.attempts, "reason": settled.rest.reason}
            self._display.note(note("shard_given_up", sentence, **rest))
        shard = self._run.read_shard(settled.index)
        for position, reason in sorted(settled.verdicts.items()):
            uri = shard.images[position].uri
            self._display.note(note("note", f"{uri} is left out: {reason}", shard=settled.index, uri=uri))
        done = self._committer.commit(shard, settled)
        self._count(done.report, is_exact=not done.was_committed)

    def _count(self, report: ShardResult, *, is_exact: bool = True, worker: int | None = None) -> None:
        """Count a shard that was committed; `worker`: that committed it, None for the driver."""
        self._totals.committed(report, is_exact=is_exact)
        self._log_committed(report, worker)
        self._budget.ended(report)
        self._limits.shard_ended(report.seconds)
        for failure in report.failures:
            self._error_log.add(failure.uri, failure.traceback)
        if self._compaction is not None:
            self._compaction.committed(report.index)

    def _log_committed(self, report: ShardResult, worker: int | None) -> None:
        place: dict[str, Any] = {"shard": report.index, "worker": worker}
        if log.isEnabledFor(logging.DEBUG):
            counts: dict[str, Any] = {"images": report.images, "instances": report.instances, "seconds": report.seconds}
            log_event(log, "shard_committed", f"Shard {report.index} is committed.", **place, **counts)
        for failure in report.failures:
            self._images_logged += 1
            if self._images_logged > MAX_IMAGES_LOGGED + 1:
                return
            if self._images_logged > MAX_IMAGES_LOGGED:
                more = f"{MAX_IMAGES_LOGGED:,} failed images are logged; the table `images` has all of them."
                log_event(log, "images_failed", more)
                return
            said = f"{failure.uri} is {failure.status}: {failure.reason}"
            values: dict[str, Any] = {"uri": failure.uri, "status": failure.status, "reason": failure.reason}
            log_event(log, "image_failed", said, **place, **values)

    def _show(self, pool: Pool) -> None:
        in_flight = pool.images_in_flight
        self._throughput.record(self._totals.session_images + in_flight)
        done = min(self._run.image_count, self._totals.rows.images + in_flight)
        ready = pool.ready_workers()
        self._live_view.update(ready, starting=pool.size - len(ready), totals=self._totals)
        self._metrics.set_state(
            workers=pool.size,
            workers_ready=len(ready),
            shards_left=self._queue.left,
            images=self._run.image_count,
            images_done=done,
        )
        eta_s = self._throughput.eta_s(self._run.image_count - done)
        if self._run.is_planned and (late := self._limits.late_note(eta_s)):
            self._display.note(late)
        self._display.update(
            RunProgress(
                images_total=self._run.image_count,
                images_done=done,
                images_failed=self._totals.rows.errors,
                images_per_s=self._throughput.window_images_per_s(),
                eta_s=eta_s,
                workers=len(ready),
                is_listing=not self._run.is_planned,
                statuses=self._totals.rows.statuses,
                failure_reasons=self._totals.rows.reasons,
                bottleneck=self._live_view.recent_bottleneck,
                live=self._live_view.content,
                tiles=self._live_view.tiles,
            )
        )
