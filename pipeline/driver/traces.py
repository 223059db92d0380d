"""A run's spans: one for the session, below it one for each attempt at a shard, whose context goes to the worker."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from pipeline.driver.events import Event, ShardEnded, WorkerDied, WorkerLeft
from pipeline.driver.pool import OpenPool, Pool
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import ComputeSection, RetrySection
from pipeline.messages import Assignment, PartialResult, ShardFailure, ShardResult
from pipeline.otel import Otel, attributes_of, context_of, traceparent_of
from pipeline.runs.outcomes import EXIT_COMPLETE
from pipeline.runs.summary import RunSummary
from pipeline.worker.worker import WorkerSettings


class RunTrace:
    """The span of a session of a run.

    TRACEPARENT in the environment, as schedulers such as Airflow set it, makes it a child of theirs.
    """

    def __init__(self, otel: Otel, *, traceparent: str, **values: object) -> None:
        """Begin the span, with `values` as attributes."""
        self._otel = otel
        parent = context_of(traceparent) if traceparent else None
        self.span = otel.tracer.start_span("htc.run", context=parent, attributes=attributes_of(values))

    def end(self, summary: RunSummary | None, error: BaseException | None = None) -> None:
        """End the span with the run's outcome, or the error that ended it."""
        from opentelemetry.trace import StatusCode

        if summary is not None:
            totals = {
                "status": summary.status,
                "exit_code": summary.exit_code,
                "images_done": summary.images_done,
                "instances": summary.instances,
                "errors": summary.errors,
                "retries": summary.retries,
                "workers_lost": summary.workers_lost,
            }
            self.span.set_attributes(attributes_of(totals))
        if error is not None or summary is None or summary.exit_code != EXIT_COMPLETE:
            reason = str(error) if error is not None else summary.reason if summary is not None else ""
            self.span.set_status(StatusCode.ERROR, attributes_of({"reason": reason})["htc.reason"])
        self.span.end()

    def traced(self, open_pool: OpenPool) -> OpenPool:
        """Return a way to open pools whose attempts are spans below this one."""

        @contextmanager
        def opened(
            settings: WorkerSettings, *, compute: ComputeSection, retry: RetrySection, shards: int | None
        ) -> Iterator[Pool]:
            with open_pool(settings, compute=compute, retry=retry, shards=shards) as pool:
                yield cast(Pool, TracedPool(pool, self._otel, self.span))

        return opened


class TracedPool:
    """A pool whose attempts are spans; everything else is the pool's own."""

    def __init__(self, pool: Pool, otel: Otel, run: Any) -> None:
        """`run`: the span above."""
        from opentelemetry import trace

        self._pool = pool
        self._otel = otel
        self._run = run
        self._above = trace.set_span_in_context(run)
        self._spans: dict[tuple[int, int], Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def submit(self, worker: int, shard: Shard, assignment: Assignment) -> None:
        """Give a ready worker a shard, and begin the attempt's span."""
        values = {
            "shard": shard.index,
            "attempt": assignment.attempt,
            "worker": worker,
            "images": len(assignment.positions) or len(shard.images),
            "is_speculative": assignment.is_speculative,
        }
        span = self._otel.tracer.start_span("htc.shard", context=self._above, attributes=attributes_of(values))
        self._spans[worker, shard.index] = span
        self._pool.submit(worker, shard, replace(assignment, traceparent=traceparent_of(span)))

    def events(self, timeout_s: float) -> list[Event]:
        """Wait until something happens; attempts that end have their spans ended."""
        events = self._pool.events(timeout_s)
        for event in events:
            self._see(event)
        return events

    def final_check(self) -> Sequence[Event]:
        """Ask every ready worker once more."""
        events = self._pool.final_check()
        for event in events:
            self._see(event)
        return events

    def end(self, worker: int, reason: str) -> WorkerLeft:
        """End a worker, and the spans of what it held."""
        event = self._pool.end(worker, reason)
        self._see(event)
        return event

    def shut_down(self) -> None:
        """Kill all workers; the spans of attempts that go on end as unfinished."""
        self._pool.shut_down()
        for worker, index in list(self._spans):
            self._end(worker, index, "the session ended", outcome="unfinished")

    def _see(self, event: Event) -> None:
        match event:
            case ShardEnded(worker=worker, outcome=ShardFailure() as failure):
                self._end(worker, failure.index, failure.reason, outcome=failure.kind)
            case ShardEnded(worker=worker, outcome=ShardResult() as report):
                self._end(worker, report.index, outcome="committed", **_counts(report))
            case ShardEnded(worker=worker, outcome=PartialResult() as piece):
                self._end(worker, piece.index, outcome="done", **_counts(piece.report))
            case WorkerDied(worker=worker, reason=reason):
                lost = {"worker": worker, "reason": reason, "lost_shards": event.lost_shards}
                self._run.add_event("worker_lost", attributes_of(lost))
                for index in event.lost_shards:
                    self._end(worker, index, reason, outcome="death")
            case WorkerLeft(worker=worker, reason=reason, lost_shards=lost_shards):
                for index in lost_shards:
                    self._end(worker, index, reason, outcome="abandoned")
            case _:
                pass

    def _end(self, worker: int, index: int, error: str = "", **values: Any) -> None:
        span = self._spans.pop((worker, index), None)
        if span is None:
            return
        span.set_attributes(attributes_of(values))
        if error and values["outcome"] not in ("abandoned", "unfinished"):
            from opentelemetry.trace import StatusCode

            span.set_status(StatusCode.ERROR, attributes_of({"reason": error})["htc.reason"])
        span.end()


def _counts(report: ShardResult) -> dict[str, Any]:
    return {"instances": report.instances, "bytes_read": report.bytes_read, "images_failed": len(report.failures)}
