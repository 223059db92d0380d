"""A run's metrics, exported through Ray: each node's agent serves them to Prometheus, with `ray_` before the name.

The driver reports what is committed, what failed and how much is left; each worker reports its work so far, discarded
attempts included. Where Ray does not run, as in most tests, nothing happens. Labels have few values: a run has one
name, and reasons are reduced to their words and capped; no label names an image or a shard.
"""

import itertools
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from pipeline.messages import STAGES, ShardFailure, ShardResult, Stage
from pipeline.otel import active, attributes_of, context_of

# Per process; further ones become "other". Ray's agent keeps every combination of labels while the process lives.
MAX_REASON_LABELS = 20
MAX_LABEL_LENGTH = 80


class Metric(NamedTuple):
    """One metric as registered with Ray; every one has the label `run` besides its own."""

    kind: Literal["counter", "gauge"]
    description: str
    labels: tuple[str, ...] = ()

    def exported(self, name: str) -> str:
        """Return the name that Prometheus sees."""
        return f"ray_{name}_total" if self.kind == "counter" else f"ray_{name}"


METRICS: Mapping[str, Metric] = {
    # Of the driver.
    "htc_images": Metric("counter", "Images committed by this driver, by the status of their rows.", ("status",)),
    "htc_instances": Metric("counter", "Instances committed by this driver."),
    "htc_image_failures": Metric("counter", "Rows committed that are not ok, by reason.", ("status", "reason")),
    "htc_retries": Metric("counter", "Attempts at shards that ended without a commit, by what ended them.", ("kind",)),
    "htc_workers_lost": Metric("counter", "Workers that died or were ended because they hung."),
    "htc_workers": Metric("gauge", "Workers alive, by whether they hold their model yet.", ("state",)),
    "htc_queue_depth": Metric("gauge", "Shards that are planned and not committed, those under way among them."),
    "htc_run_images": Metric("gauge", "Images of the run: listed so far, and done (those under way too).", ("state",)),
    # Of each worker.
    "htc_worker_images": Metric("counter", "Images a worker is done with, attempts that are thrown away included."),
    "htc_stage_seconds": Metric("counter", "Seconds by stage, summed over threads; wait: the model idle.", ("stage",)),
    "htc_read_bytes": Metric("counter", "Encoded bytes of images read."),
    "htc_batch_size": Metric("gauge", "Images per inference, as far as memory allows."),
}


def exported_names() -> frozenset[str]:
    """Return the names that Prometheus sees."""
    return frozenset(metric.exported(name) for name, metric in METRICS.items())


class Exporter(Protocol):
    """Takes the values of metrics by their names in `METRICS`."""

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Add to a counter."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""


@dataclass(frozen=True)
class WorkerTotals:
    """The work of a worker since its start; every number only grows, except the batch size."""

    images: int = 0
    bytes_read: int = 0
    stage_s: Mapping[Stage, float] = field(default_factory=dict)
    batch_size: int = 0


class WorkerMetrics:
    """One worker's metrics; exported from any thread, from time to time, so that no image costs time."""

    def __init__(self, run: str, exporter: Exporter | None = None) -> None:
        self._exporter = exporter or choose_exporter(run)
        self._exported = WorkerTotals()
        self._lock = threading.Lock()

    def export(self, totals: WorkerTotals) -> None:
        """Export the increase since the last call."""
        with self._lock:
            before, self._exported = self._exported, totals
            self._exporter.add("htc_worker_images", totals.images - before.images)
            self._exporter.add("htc_read_bytes", totals.bytes_read - before.bytes_read)
            for stage in STAGES:
                more = totals.stage_s.get(stage, 0.0) - before.stage_s.get(stage, 0.0)
                self._exporter.add("htc_stage_seconds", more, stage=stage)
            self._exporter.set("htc_batch_size", totals.batch_size)


class DriverMetrics:
    """The driver's metrics; called from one thread."""

    def __init__(self, run: str, exporter: Exporter | None = None) -> None:
        self._exporter = exporter or choose_exporter(run)
        self._reasons: set[str] = set()

    def committed(self, report: ShardResult) -> None:
        """Count a shard's rows."""
        for status, count in report.statuses.items():
            self._exporter.add("htc_images", count, status=status)
        self._exporter.add("htc_instances", report.instances)
        for failure in report.failures:
            reason = self._label(failure.reason)
            self._exporter.add("htc_image_failures", 1, status=failure.status, reason=reason)

    def attempt_failed(self, failure: ShardFailure) -> None:
        """Count an attempt that ended without a commit."""
        self._exporter.add("htc_retries", 1, kind=failure.kind)

    def worker_lost(self) -> None:
        """Count a worker that is gone."""
        self._exporter.add("htc_workers_lost", 1)

    def set_state(self, *, workers: int, workers_ready: int, shards_left: int, images: int, images_done: int) -> None:
        """Export the workers, shards and images of the run as they are now."""
        self._exporter.set("htc_workers", workers_ready, state="ready")
        self._exporter.set("htc_workers", workers - workers_ready, state="starting")
        self._exporter.set("htc_queue_depth", shards_left)
        self._exporter.set("htc_run_images", images, state="listed")
        self._exporter.set("htc_run_images", images_done, state="done")

    def _label(self, reason: str) -> str:
        words = reason_words(reason)
        if words in self._reasons or len(self._reasons) < MAX_REASON_LABELS:
            self._reasons.add(words)
            return words
        return "other"


def reason_words(reason: str) -> str:
    """Return a failure's reason without the parts that differ from image to image: numbers, names, bytes.

    That is its leading words, or all of its words where it begins with something else; images with the same kind of
    failure share one label.
    """
    pieces = [piece.strip("(),.:;") for piece in reason.split()]
    are_words = [bool(re.fullmatch(r"[A-Za-z]+(?:['-][A-Za-z]+)*", piece)) for piece in pieces]
    first = list(itertools.takewhile(lambda pair: pair[1], zip(pieces, are_words, strict=True)))
    chosen = first if len(first) > 1 else [pair for pair in zip(pieces, are_words, strict=True) if pair[1]]
    return " ".join(word for word, _ in chosen)[:MAX_LABEL_LENGTH].strip() or "unnamed"


class RayExporter:
    """Creates each of Ray's metrics at its first value; does nothing where Ray does not run.

    Attributes:
        metrics: Ray's own objects by name, of those that were created.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self.metrics: dict[str, Any] = {}

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Add to a counter; amounts of 0 and less are ignored."""
        metric = self._metric(name) if amount > 0 else None
        if metric is not None:
            metric.inc(amount, {"run": self._run, **labels})

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        metric = self._metric(name)
        if metric is not None:
            metric.set(value, {"run": self._run, **labels})

    def _metric(self, name: str) -> Any:
        # Not imported here: without a cluster nothing collects the numbers.
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        if name not in self.metrics:
            from ray.util import metrics

            kinds = {"counter": metrics.Counter, "gauge": metrics.Gauge}
            metric = METRICS[name]
            self.metrics[name] = kinds[metric.kind](name, metric.description, tag_keys=("run", *metric.labels))
        return self.metrics[name]


class OtelExporter:
    """Creates each metric at its first value, as OpenTelemetry names it: `htc.images` for `htc_images`."""

    def __init__(self, meter: Any, run: str) -> None:
        self._meter = meter
        self._run = run
        self._metrics: dict[str, Any] = {}

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Add to a counter; amounts of 0 and less are ignored."""
        if amount > 0:
            self._metric(name).add(amount, {"run": self._run, **labels})

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._metric(name).set(value, {"run": self._run, **labels})

    def _metric(self, name: str) -> Any:
        if name not in self._metrics:
            metric = METRICS[name]
            make = self._meter.create_counter if metric.kind == "counter" else self._meter.create_gauge
            unit = "s" if name.endswith("_seconds") else "By" if name.endswith("_bytes") else "1"
            self._metrics[name] = make(name.replace("_", ".", 1), unit=unit, description=metric.description)
        return self._metrics[name]


class BothExporters:
    """Exports through Ray, for Prometheus, and through OpenTelemetry where this process sends telemetry."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._ray = RayExporter(run)
        self._otel: OtelExporter | None = None

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Add to a counter."""
        self._ray.add(name, amount, **labels)
        if (otel := self._find_otel()) is not None:
            otel.add(name, amount, **labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._ray.set(name, value, **labels)
        if (otel := self._find_otel()) is not None:
            otel.set(name, value, **labels)

    def _find_otel(self) -> OtelExporter | None:
        # A worker begins to send after its metrics were made.
        if self._otel is None and (sender := active()) is not None:
            self._otel = OtelExporter(sender.meter, self._run)
        return self._otel


def choose_exporter(run: str) -> Exporter:
    """Return what exports a process's metrics."""
    return BothExporters(run)


@contextmanager
def traced_stages(clock: "StageClock", traceparent: str) -> Iterator[None]:
    """Send a span for each stage of the attempt in the block, below the attempt's, however it ends.

    Stages overlap, and each works on one image after the other: a span reaches from a stage's first image to its last,
    and its attribute `htc.busy_s` has the seconds in between that the stage worked, summed over threads.
    """
    try:
        yield
    finally:
        _send_stages(clock, traceparent)


def _send_stages(clock: "StageClock", traceparent: str) -> None:
    otel = active()
    if otel is None or not traceparent:
        return
    above, seconds = context_of(traceparent), clock.seconds()
    for stage, (began_ns, ended_ns) in clock.extents_ns().items():
        values = attributes_of({"stage": stage, "busy_s": round(seconds[stage], 6)})
        span = otel.tracer.start_span(f"htc.{stage}", context=above, start_time=began_ns, attributes=values)
        span.end(ended_ns)


class StageClock:
    """Seconds by stage, added up from any thread, and when each stage first began and last ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._extents_ns: dict[Stage, tuple[int, int]] = {}

    @contextmanager
    def time(self, stage: Stage) -> Iterator[None]:
        """Add the wall time of the block to `stage`, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({stage: time.perf_counter() - start})

    def add(self, seconds: Mapping[Stage, float]) -> None:
        """Add seconds by stage."""
        with self._lock:
            now = time.time_ns()
            for stage, value in seconds.items():
                self._seconds[stage] += value
                began = now - int(value * 1e9)
                self._extents_ns[stage] = min(began, self._extents_ns.get(stage, (began, 0))[0]), now

    def extents_ns(self) -> dict[Stage, tuple[int, int]]:
        """Return when each stage that was timed first began and last ended, in nanoseconds of the system's clock."""
        with self._lock:
            return dict(self._extents_ns)

    def seconds(self) -> dict[Stage, float]:
        """Return the seconds of every stage so far."""
        with self._lock:
            return dict(self._seconds)

    def shares(self) -> dict[Stage, float]:
        """Return every stage's share of all stage seconds, adding up to 1; all 0 before anything was timed."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return {stage: value / total if total else 0.0 for stage, value in seconds.items()}
