"""One session of a run: the loop between the ledger of shards and the fleet of workers."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cluster.connection import ray_cluster
from pipeline.driver.commit import ShardCommitter
from pipeline.driver.error_log import ErrorLog
from pipeline.driver.events import (
    Event,
    ShardAbandoned,
    ShardEnded,
    WorkerDied,
    WorkerNotStarted,
    WorkerRetired,
    WorkerStarted,
)
from pipeline.driver.progress import ProgressDisplay, RunProgress
from pipeline.driver.run_totals import RunTotals
from pipeline.driver.shard_queue import SHARDS_IN_FLIGHT, ShardQueue
from pipeline.driver.throughput import Throughput
from pipeline.errors import RunError, StorageError
from pipeline.job_spec.job import JobSpec
from pipeline.messages import (
    Assignment,
    CommitRequest,
    PartialResult,
    ShardFailure,
    ShardOutcome,
    ShardResult,
    WorkerFailure,
)
from pipeline.planning.worker_plan import WorkerPlan
from pipeline.runs.error_budget import ErrorBudget
from pipeline.runs.outcomes import exit_code_of
from pipeline.runs.run import RunHandle
from pipeline.runs.summary import RunSummary
from pipeline.signals import StopRequest
from pipeline.storage.storage import Storage
from pipeline.telemetry import DriverMetrics
from pipeline.worker.worker import WorkerSettings

if TYPE_CHECKING:
    # Imports Ray, which must see the environment that pipeline.cluster.connection prepares.
    from pipeline.driver.worker_pool import WorkerPool
    from pipeline.worker.segmenter import LoadModel

log = logging.getLogger(__name__)

# How late a signal, a due retry or the display may be.
TICK_S = 0.25
# A worker that cannot start three times in a row will not the fourth time either.
MAX_START_FAILURES = 3


class Session:
    """Everything the driver does between opening a run and its summary."""

    def __init__(
        self,
        spec: JobSpec,
        run: RunHandle,
        storage: Storage,
        display: ProgressDisplay,
        *,
        is_trained: bool,
        load_model: "LoadModel | None" = None,
        stop: StopRequest | None = None,
    ) -> None:
        """`stop`: has its handlers in place already; by default a new one, in place while `work` does."""
        self._spec = spec
        self._run = run
        self._storage = storage
        self._display = display
        self._load_model = load_model
        self._is_trained = is_trained
        self._metrics = DriverMetrics(run.name)
        self._totals = RunTotals(run, storage, self._metrics)
        self._committer = ShardCommitter(storage, spec.output.uri, run.name, model=spec.model.preset)
        self._error_log = ErrorLog(storage, spec.output.uri, run.name)
        self._throughput = Throughput()
        self._stop = stop or StopRequest()
        self._catching: AbstractContextManager[object] = nullcontext() if stop else self._stop
        self._start_failures = 0
        self._budget = ErrorBudget(spec.retry.max_error_rate, spec.retry.max_errors)
        self._stop_reason = ""
        self._ledger = ShardQueue(
            max_attempts=spec.retry.max_attempts,
            count_images=lambda index: len(run.read_shard(index).images),
        )

    def work(self) -> None:
        """Do the shards that are left, until none is or somebody asks to stop.

        Raises:
            RunError: it cannot go on.
            InputError, StorageError: the input cannot be listed to its end.
        """
        is_planned = self._run.is_planned
        self._ledger.add(self._run.take_new_shards())
        shards = self._ledger.left if is_planned else None
        self._judge()
        if self._stop_reason or self._stop.is_set:
            # An earlier session stopped for it, and nothing has changed; or a signal came while the run was opened.
            return
        with self._catching:
            try:
                with ray_cluster(self._spec.compute, shards=shards) as plan:
                    self._stop.install()
                    self._work_on(plan)
            except RunError:
                # A signal to the whole process group takes Ray down as well; that is no failure of the run.
                if not self._stop.is_set:
                    raise

    def _work_on(self, plan: WorkerPlan) -> None:
        from pipeline.driver.worker_pool import WorkerPool

        fleet = WorkerPool(self._settings(plan), plan)
        try:
            while self._has_work() and not self._stop.is_set and not self._stop_reason:
                fleet.scale_to(min(plan.workers, self._ledger.left))
                self._hand_out(fleet)
                for event in fleet.events(TICK_S):
                    self._handle(fleet, event)
                self._judge()
                self._show(fleet)
            if not self._stop.is_set:
                for death in fleet.final_check():
                    self._note_death(death)
        finally:
            fleet.shut_down()

    def _has_work(self) -> bool:
        """Take the shards planned meanwhile; False when all are done."""
        # Asked first: planning may end between the two questions.
        is_planned = self._run.is_planned
        self._ledger.add(self._run.take_new_shards())
        return self._ledger.left > 0 or not is_planned

    def _judge(self) -> None:
        """Stop when the run cannot end within its error budget; while images are still being listed, only warn."""
        if self._stop_reason:
            return
        rows = self._totals.rows
        done, errors, reasons = rows.images, rows.fresh_errors, rows.reasons
        if self._run.is_planned:
            images = self._run.image_count
            note = self._budget.verdict(images=images, images_done=done, errors=errors, reasons=reasons)
            self._stop_reason = note
        else:
            note = self._budget.warning(images_done=done, errors=errors, reasons=reasons)
        if note:
            self._display.note(note)

    def end(self, *, cut_short: str = "") -> RunSummary:
        """Judge, write summary.json and return it.

        Args:
            cut_short: why the run could not go on, when it could not.
        """
        summary = self._totals.summary(
            self._spec.retry,
            self._throughput,
            model=self._spec.model.preset,
            is_trained=self._is_trained,
            error_log=self._error_log.uri,
            signal_name=self._stop.signal_name,
            stop_reason=self._stop_reason,
        )
        if cut_short and summary.status == "incomplete":
            summary = replace(summary, reason=cut_short)
        if self._run.state == "complete" and (self._run.read_summary() or {}).get("status") == summary.status:
            # Nothing was done: the session that did the work has told more.
            return summary
        try:
            self._run.write_summary(summary.to_dict())
        except StorageError as error:
            self._display.note(f"summary.json could not be written: {error}")
            if summary.status == "complete":
                # Whoever waits for exit code 0 reads the summary next; the same command writes it.
                reason = f"Every image has its row, but summary.json could not be written: {error}"
                return replace(summary, status="incomplete", exit_code=exit_code_of("incomplete"), reason=reason)
        return summary

    def _settings(self, plan: WorkerPlan) -> WorkerSettings:
        return WorkerSettings(
            spec=self._spec,
            run=self._run.name,
            model_label=self._spec.model.preset,
            cpus=plan.cpus,
            gpus=plan.gpus,
            load_model=self._load_model,
        )

    def _hand_out(self, fleet: "WorkerPool") -> None:
        ready = fleet.ready_workers()
        # Workers that still begin do not count: with no cores left for them they never will, and a shard that
        # failed on the only other worker would wait forever.
        has_peers = len(ready) > 1
        held = {worker: list(shards) for worker, shards in ready.items()}
        # Before an idle worker copies a late shard.
        self._reclaim(fleet, held)
        # Breadth first: a second shard, whose reads overlap the first one's compute, is for a worker only when there
        # are shards enough for those that hold none yet, or still load their model.
        for depth in range(SHARDS_IN_FLIGHT):
            for worker, shards in held.items():
                idle = fleet.size - sum(bool(each) for each in held.values())
                if len(shards) != depth or (depth > 0 and self._ledger.waiting <= idle):
                    continue
                assignment = self._next_for(fleet, worker, shards, has_peers=has_peers)
                if assignment is not None:
                    fleet.submit(worker, self._run.read_shard(assignment.index), assignment)
                    shards.append(assignment.index)

    def _reclaim(self, fleet: "WorkerPool", held: dict[int, list[int]]) -> None:
        """Ask for shards back that are queued behind others, while workers are idle."""
        idle = sum(not shards and fleet.may_take(worker) for worker, shards in held.items())
        queued = [(worker, index) for worker, shards in held.items() for index in shards[1:]]
        while (found := self._ledger.reclaim(queued, idle_workers=idle)) is not None:
            fleet.abandon(*found, is_queued=True)

    def _next_for(self, fleet: "WorkerPool", worker: int, held: list[int], *, has_peers: bool) -> Assignment | None:
        if not fleet.may_take(worker):
            return None
        is_planned = self._run.is_planned
        is_sample = is_planned and self._budget.wants_sample(
            images_done=self._totals.rows.images, errors=self._totals.rows.fresh_errors
        )
        waiting = self._ledger.untouched
        assignment = self._ledger.next_for(worker, held, has_peers=has_peers, is_sample=is_sample)
        if assignment is not None and assignment.is_sample:
            self._budget.sampled(
                assignment.index,
                shards=waiting,
                shard_images=self._run.manifest.shard_images,
                images=self._run.image_count,
                errors=self._totals.rows.fresh_errors,
            )
        if assignment is None and is_planned and not held and not self._ledger.is_reclaiming:
            assignment = self._ledger.copy_for(worker)
            if assignment is not None:
                self._display.note(f"Shard {assignment.index} takes long; an idle worker does it as well.")
        return assignment

    def _handle(self, fleet: "WorkerPool", event: Event) -> None:
        match event:
            case WorkerStarted(ready=ready):
                self._start_failures = 0
                self._totals.worker_started(ready)
            case WorkerNotStarted(failure=failure):
                self._not_started(failure)
            case ShardEnded(outcome=ShardResult() as report):
                self._committed(fleet, report)
            case ShardEnded(worker=worker, outcome=PartialResult() as piece):
                self._survived(fleet, worker, piece)
            case ShardEnded(worker=worker, outcome=ShardFailure() as shard_failure):
                self._failed(worker, shard_failure)
            case ShardAbandoned(index=index):
                self._settle(self._ledger.abandoned(index))
            case WorkerDied():
                self._died(event)
            case WorkerRetired(worker=worker, reason=reason):
                log.info("worker %d is replaced: %s", worker, reason)

    def _committed(self, fleet: "WorkerPool", report: ShardResult) -> None:
        if self._ledger.is_running(report.index):
            self._count(report)
            copier = self._ledger.committed(report.index)
            if copier is not None:
                fleet.abandon(copier, report.index)

    def _survived(self, fleet: "WorkerPool", worker: int, piece: PartialResult) -> None:
        result = self._ledger.survived(worker, piece)
        if isinstance(result, CommitRequest):
            fleet.abandon(result.worker, result.index)
        else:
            self._settle(result)

    def _not_started(self, failure: WorkerFailure) -> None:
        self._error_log.add("worker start", failure.traceback)
        self._start_failures += 1
        if failure.is_permanent or self._start_failures >= MAX_START_FAILURES:
            error = RunError(failure.reason)
            error.exit_code = failure.exit_code
            raise error
        self._display.note(f"A worker could not load the model, trying again: {failure.reason}")

    def _note_death(self, death: WorkerDied) -> None:
        self._totals.worker_lost()
        lost = ", ".join(map(str, death.lost_shards)) or "none"
        self._display.note(f"Worker {death.worker}: {death.reason}. Shards to be done again: {lost}.")

    def _died(self, death: WorkerDied) -> None:
        self._note_death(death)
        if not death.was_ready:
            self._start_failures += 1
            if self._start_failures >= MAX_START_FAILURES:
                raise RunError(f"Workers keep dying while they load the model; the last: {death.reason}.")
        for index in death.lost_shards:
            self._failed(death.worker, death.failure_of(index), is_told=True)

    def _failed(self, worker: int, failure: ShardFailure, *, is_told: bool = False) -> None:
        if failure.kind != "abandoned":
            self._totals.attempt_failed(failure)
            self._error_log.add(f"shard {failure.index}", failure.traceback)
            if not is_told:
                self._display.note(f"Shard {failure.index}, an attempt failed: {failure.reason}")
        self._settle(self._ledger.failed(worker, failure))

    def _settle(self, settled: ShardOutcome | None) -> None:
        """Commit a shard that no worker commits."""
        if settled is None:
            return
        if settled.rest is not None:
            self._totals.has_bug = self._totals.has_bug or settled.rest.kind == "bug"
            if settled.rest.kind == "commit":
                raise RunError(
                    f"The tables cannot be written: {settled.rest.reason} "
                    "What is committed stays; the same command resumes."
                )
            self._display.note(
                f"Shard {settled.index} is given up after {settled.attempts} attempts: {settled.rest.reason}"
            )
        shard = self._run.read_shard(settled.index)
        for position, reason in sorted(settled.verdicts.items()):
            self._display.note(f"{shard.images[position].uri} is left out: {reason}")
        done = self._committer.commit(shard, settled)
        self._count(done.report, is_exact=not done.was_committed)

    def _count(self, report: ShardResult, *, is_exact: bool = True) -> None:
        """Count a shard that was committed."""
        self._totals.committed(report, is_exact=is_exact)
        self._budget.ended(report)
        for failure in report.failures:
            self._error_log.add(failure.uri, failure.traceback)

    def _show(self, fleet: "WorkerPool") -> None:
        in_flight = fleet.images_in_flight
        self._throughput.record(self._totals.session_images + in_flight)
        done = min(self._run.image_count, self._totals.rows.images + in_flight)
        ready = len(fleet.ready_workers())
        self._metrics.stands(
            workers=fleet.size,
            workers_ready=ready,
            shards_left=self._ledger.left,
            images=self._run.image_count,
            images_done=done,
        )
        self._display.update(
            RunProgress(
                images_total=self._run.image_count,
                images_done=done,
                images_failed=self._totals.rows.errors,
                images_per_s=self._throughput.window_images_per_s(),
                eta_s=self._throughput.eta_s(self._run.image_count - done),
                workers=ready,
                is_listing=not self._run.is_planned,
                statuses=self._totals.rows.statuses,
                failure_reasons=self._totals.rows.reasons,
            )
        )
