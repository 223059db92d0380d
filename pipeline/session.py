"""One session of a run: the loop between the ledger of shards and the fleet of workers."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cluster import WorkerPlan, ray_cluster
from pipeline.config import JobSpec
from pipeline.errors import RunError, StorageError
from pipeline.ledger import ShardLedger
from pipeline.metrics import Throughput
from pipeline.progress import ProgressDisplay, RunProgress
from pipeline.reports import ShardFailure, ShardReport, WorkerFailure
from pipeline.runs import Run
from pipeline.signals import StopRequest
from pipeline.storage import Storage
from pipeline.summary import RunSummary
from pipeline.tally import Tally
from pipeline.worker import WorkerSettings

if TYPE_CHECKING:
    # Imports Ray, which must see the environment that pipeline.cluster prepares.
    from pipeline.fleet import Event, Fleet, WorkerDied
    from pipeline.segmenter import LoadModel

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
        run: Run,
        storage: Storage,
        display: ProgressDisplay,
        *,
        is_trained: bool,
        load_model: "LoadModel | None" = None,
    ) -> None:
        self._spec = spec
        self._run = run
        self._storage = storage
        self._display = display
        self._load_model = load_model
        self._tally = Tally(spec, run, storage, is_trained=is_trained)
        self._throughput = Throughput()
        self._stop = StopRequest()
        self._start_failures = 0

    def work(self) -> None:
        """Do the shards that are left, until none is or somebody asks to stop.

        Raises:
            RunError: it cannot go on.
        """
        todo = self._run.todo()
        self._ledger = ShardLedger(todo, max_attempts=self._spec.retry.max_attempts)
        with self._stop:
            try:
                with ray_cluster(self._spec.compute, shards=len(todo)) as plan:
                    self._stop.install()
                    self._work_on(plan)
            except RunError:
                # A signal to the whole process group takes Ray down as well; that is no failure of the run.
                if not self._stop.is_set:
                    raise

    def _work_on(self, plan: WorkerPlan) -> None:
        from pipeline.fleet import Fleet

        fleet = Fleet(self._settings(plan), plan)
        try:
            while self._ledger.left and not self._stop.is_set:
                fleet.top_up(min(plan.workers, self._ledger.left))
                self._hand_out(fleet)
                for event in fleet.events(TICK_S):
                    self._handle(event)
                self._show(fleet)
        finally:
            fleet.shut_down()

    def end(self, *, cut_short: str = "") -> RunSummary:
        """Judge, write summary.json and return it.

        Args:
            cut_short: why the run could not go on, when it could not.
        """
        summary = self._tally.summary(self._throughput, signal_name=self._stop.signal_name)
        if cut_short and summary.status == "incomplete":
            summary = replace(summary, reason=cut_short)
        if self._run.state == "complete" and (self._run.read_summary() or {}).get("status") == summary.status:
            # Nothing was done: the session that did the work has told more.
            return summary
        try:
            self._run.write_summary(summary.to_dict())
        except StorageError as error:
            self._display.note(f"summary.json could not be written: {error}")
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

    def _hand_out(self, fleet: "Fleet") -> None:
        has_peers = fleet.size > 1
        for worker, held in fleet.ready_workers().items():
            shards = list(held)
            while (assignment := self._ledger.next_for(worker, shards, has_peers=has_peers)) is not None:
                fleet.submit(worker, self._run.read_shard(assignment.index), assignment)
                shards.append(assignment.index)

    def _handle(self, event: "Event") -> None:
        from pipeline import fleet

        match event:
            case fleet.WorkerStarted(ready=ready):
                self._start_failures = 0
                self._tally.worker_started(ready)
            case fleet.WorkerNotStarted(failure=failure):
                self._not_started(failure)
            case fleet.ShardEnded(outcome=ShardReport() as report):
                self._ledger.committed(report.index)
                self._tally.committed(report)
            case fleet.ShardEnded(outcome=ShardFailure() as shard_failure):
                self._failed(shard_failure)
            case fleet.WorkerDied():
                self._died(event)

    def _not_started(self, failure: WorkerFailure) -> None:
        self._tally.keep_traceback("worker start", failure.traceback)
        self._start_failures += 1
        if failure.is_permanent or self._start_failures >= MAX_START_FAILURES:
            error = RunError(failure.reason)
            error.exit_code = failure.exit_code
            raise error
        self._display.note(f"A worker could not load the model, trying again: {failure.reason}")

    def _died(self, death: "WorkerDied") -> None:
        self._tally.worker_lost()
        lost = ", ".join(map(str, death.lost_shards)) or "none"
        self._display.note(f"Worker {death.worker}: {death.reason}. Shards to be done again: {lost}.")
        if not death.was_ready:
            self._start_failures += 1
            if self._start_failures >= MAX_START_FAILURES:
                raise RunError(f"Workers keep dying while they load the model; the last: {death.reason}.")
        for index in death.lost_shards:
            self._failed(ShardFailure(index, "death", death.reason, is_charged=not death.was_preempted), is_told=True)

    def _failed(self, failure: ShardFailure, *, is_told: bool = False) -> None:
        self._tally.attempt_failed(failure)
        attempts = self._ledger.failed(failure)
        if attempts is not None:
            self._give_up(failure, attempts)
        elif not is_told:
            self._display.note(f"Shard {failure.index} will be tried again: {failure.reason}")

    def _give_up(self, failure: ShardFailure, attempts: int) -> None:
        if failure.kind == "commit":
            raise RunError(
                f"The tables cannot be written: {failure.reason} What is committed stays; the same command resumes."
            )
        self._display.note(f"Shard {failure.index} is given up after {attempts} attempts: {failure.reason}")
        self._tally.given_up(self._run.read_shard(failure.index), failure, attempts)

    def _show(self, fleet: "Fleet") -> None:
        in_flight = fleet.images_in_flight
        self._throughput.record(self._tally.session_images + in_flight)
        done = min(self._run.image_count, self._tally.images_done + in_flight)
        self._display.update(
            RunProgress(
                images_total=self._run.image_count,
                images_done=done,
                images_failed=self._tally.errors,
                images_per_s=self._throughput.window_images_per_s(),
                eta_s=self._throughput.eta_s(self._run.image_count - done),
                workers=len(fleet.ready_workers()),
            )
        )
