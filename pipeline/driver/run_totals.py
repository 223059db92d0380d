"""Counts what a run's images came to, over all its sessions, and keeps what a person needs to find a fault."""

import logging
from collections import Counter

import numpy as np

from pipeline.assignments import Settled
from pipeline.driver.assemble import gather_rows, report_of
from pipeline.driver.throughput import StageClock, Throughput
from pipeline.errors import HtcError, ImageStatus, RunError, StorageError
from pipeline.job_spec.job import JobSpec
from pipeline.messages import ImageFailure, ShardFailure, ShardReport, WorkerReady
from pipeline.output.rows import commit_shard, images_part, open_results
from pipeline.output.run_record import run_folder
from pipeline.planning.planner import Shard
from pipeline.runs.open import Run
from pipeline.runs.outcomes import exit_code_of
from pipeline.runs.summary import MAX_EXAMPLES, RunSummary, judge
from pipeline.storage.storage import Storage, join
from pipeline.telemetry import DriverMetrics

log = logging.getLogger(__name__)

# Reasons often name their image, so that there may be as many as failures.
MAX_REASONS = 1000
MAX_REASONS_SHOWN = 20
MAX_TRACEBACKS = 20


class Tally:
    """The numbers of one run; begins with what earlier sessions committed."""

    def __init__(self, spec: JobSpec, run: Run, storage: Storage, *, is_trained: bool) -> None:
        self._spec = spec
        self._run = run
        self._storage = storage
        self._is_trained = is_trained
        self._stages = StageClock()
        self.metrics = DriverMetrics(run.name)
        self._tracebacks = 0
        self._retries = 0
        self._workers_lost = 0
        self._workers_started = 0
        self._device = ""
        self._has_bug = False
        self._must_recount = False
        self.session_images = 0
        self._forget()
        if run.state != "new":
            self._has_bug = bool((run.read_summary() or {}).get("has_bug"))
            self._count_tables()

    @property
    def images_done(self) -> int:
        """Images that have their row."""
        return self._statuses.total()

    @property
    def errors(self) -> int:
        """Rows that are not ok."""
        return self.images_done - self._statuses["ok"]

    @property
    def statuses(self) -> dict[str, int]:
        """Rows by status."""
        return {str(status): count for status, count in self._statuses.items()}

    @property
    def fresh_errors(self) -> int:
        """Rows that are not ok and whose images were ok, other or unknown before: what counts against the budget.

        That an image is not ok that was not ok before either is no news: an incremental run that tries three failures
        again, and nothing else, is not over its error budget.
        """
        return self.errors - self._repeats

    @property
    def reasons(self) -> dict[str, int]:
        """Rows by reason, the most frequent first, capped."""
        return dict(self._reasons.most_common(MAX_REASONS_SHOWN))

    def worker_started(self, ready: WorkerReady) -> None:
        """Note a worker that has its model."""
        self._workers_started += 1
        self._device = ready.device

    def worker_lost(self) -> None:
        """Note a worker that died."""
        self._workers_lost += 1
        self.metrics.worker_lost()

    def committed(self, report: ShardReport) -> None:
        """Note a shard that a worker committed."""
        self._statuses.update(report.statuses)
        self._repeats += report.repeats
        self._instances += report.instances
        self.session_images += report.images
        self._stages.add(report.stage_s)
        self.metrics.committed(report)
        for failure in report.failures:
            self._note_failure(failure)
            self.keep_traceback(failure.uri, failure.traceback)

    def attempt_failed(self, failure: ShardFailure) -> None:
        """Note an attempt that ended without a commit."""
        self._retries += 1
        self.metrics.attempt_failed(failure)
        self.keep_traceback(f"shard {failure.index}", failure.traceback)

    def settled(self, shard: Shard, settled: Settled) -> ShardReport:
        """Commit a shard whose rows no worker commits, count it and return its report.

        Raises:
            RunError: the rows cannot be written.
        """
        self._has_bug = self._has_bug or (settled.rest is not None and settled.rest.kind == "bug")
        rows = gather_rows(shard, settled, model=self._spec.model.preset)
        output_uri, name = self._spec.output.uri, self._run.name
        try:
            if self._storage.exists(images_part(output_uri, name, shard.index)):
                # The last worker died after its commit and before its report: what it wrote stands.
                self._must_recount = True
            else:
                commit_shard(self._storage, output_uri, name, shard.index, *rows)
        except HtcError as error:
            raise RunError(
                f"The tables cannot be written: {error} What is committed stays; the same command resumes."
            ) from error
        report = report_of(shard, settled, rows)
        self.committed(report)
        return report

    def keep_traceback(self, where: str, traceback: str | None) -> None:
        """Write an unforeseen exception's traceback into the run's folder; the first few, the rest is only logged."""
        if traceback is None:
            return
        log.error("%s:\n%s", where, traceback)
        self._tracebacks += 1
        if self._tracebacks > MAX_TRACEBACKS:
            return
        uri = join(self._error_folder, f"error-{self._tracebacks:02d}.txt")
        try:
            self._storage.write(uri, f"{where}\n\n{traceback}".encode("utf-8", "backslashreplace"))
        except StorageError:
            log.exception("the traceback could not be written to %s", uri)

    def summary(self, throughput: Throughput, *, signal_name: str | None, hopeless: str = "") -> RunSummary:
        """Judge the run as it stands; `hopeless`: why it was stopped early, see `summary.judge`."""
        if self._must_recount:
            self._forget()
            self._count_tables()
        images, seconds = self._run.image_count, throughput.seconds
        status, reason = judge(
            images=images,
            images_done=self.images_done,
            errors=self.fresh_errors,
            max_error_rate=self._spec.retry.max_error_rate,
            max_errors=self._spec.retry.max_errors,
            is_any_ok=self._statuses["ok"] > 0,
            has_bug=self._has_bug,
            is_interrupted=signal_name is not None,
            hopeless=hopeless,
            is_planned=self._run.is_planned,
        )
        return RunSummary(
            run=self._run.name,
            status=status,
            exit_code=exit_code_of(status),
            reason=reason,
            images=images,
            images_done=self.images_done,
            statuses=self.statuses,
            errors=self.fresh_errors,
            repeated_errors=self._repeats,
            error_rate=self.fresh_errors / images if images else 0.0,
            max_error_rate=self._spec.retry.max_error_rate,
            max_errors=self._spec.retry.max_errors,
            instances=self._instances,
            session_images=self.session_images,
            seconds=seconds,
            images_per_s=self.session_images / seconds if seconds > 0 else 0.0,
            stage_shares={str(stage): share for stage, share in self._stages.shares().items()},
            failure_reasons=self.reasons,
            failure_examples=tuple(self._examples),
            retries=self._retries,
            workers_lost=self._workers_lost,
            workers_started=self._workers_started,
            device=self._device,
            model=self._spec.model.preset,
            is_trained=self._is_trained,
            has_bug=self._has_bug,
            error_log=self._error_folder if self._tracebacks else None,
        )

    @property
    def _error_folder(self) -> str:
        return join(run_folder(self._spec.output.uri, self._run.name), "errors")

    def _forget(self) -> None:
        self._statuses: Counter[ImageStatus] = Counter()
        self._repeats = 0
        self._instances = 0
        self._reasons: Counter[str] = Counter()
        self._examples: list[ImageFailure] = []

    def _count_tables(self) -> None:
        columns = ["image_id", "uri", "status", "error", "instances"]
        table = open_results(self._spec.output.uri, self._storage).images(self._run.name, columns)
        repeats = None
        for batch in table.to_batches():
            statuses = batch.column("status").to_pylist()
            self._statuses.update(statuses)
            self._instances += sum(batch.column("instances").to_pylist())
            ids = np.asarray(batch.column("image_id"))[[status != "ok" for status in statuses]]
            if len(ids):
                repeats = self._run.repeats() if repeats is None else repeats
                self._repeats += int(np.isin(ids, repeats).sum())
            for position, status in enumerate(statuses):
                if status != "ok":
                    uri, reason = batch.column("uri")[position].as_py(), batch.column("error")[position].as_py()
                    self._note_failure(ImageFailure(uri, status, reason or ""))

    def _note_failure(self, failure: ImageFailure) -> None:
        key = failure.reason
        self._reasons[key if key in self._reasons or len(self._reasons) < MAX_REASONS else "other"] += 1
        if len(self._examples) < MAX_EXAMPLES:
            self._examples.append(failure)
