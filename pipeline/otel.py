"""Traces and metrics through OpenTelemetry: switched on by its own environment variables, absent otherwise.

The SDK is imported only when it is asked for. Everything is sent from threads of its own, over OTLP/HTTP: a collector
that does not answer costs the run nothing but what could not be sent, and at its end a wait of `FLUSH_S`.
"""

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import SpecError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

Telemetry = Literal["auto", "otel", "off"]
SERVICE = "htc-batch"
FLUSH_S = 3.0
# A worker's process is ended as soon as its shards are done: its spans wait for at most this long.
SPAN_DELAY_MS = 500
# One request; the SDK's ten seconds would keep the threads busy with a collector that hangs.
REQUEST_TIMEOUT_S = 5.0
_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
_EXPORTERS = ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER")
_KNOWN_EXPORTERS = ("otlp", "console", "none")
# Headers hold keys, and certificates lie in files of one machine: the nodes have their own.
_OF_THIS_MACHINE = ("HEADERS", "CERTIFICATE", "CLIENT_KEY", "RESOURCE_ATTRIBUTES")
INSTALL = "pip install 'htc-batch[otel]'"


@dataclass(frozen=True)
class OtelSettings:
    """What a process of a run needs to send its spans and metrics.

    run, output: resource attributes, without secrets. variables: the driver's OTEL_ variables, for other machines.
    """

    run: str
    output: str
    variables: Mapping[str, str] = field(default_factory=dict)


def is_wanted(telemetry: Telemetry) -> bool:
    """Return whether a run is to send telemetry, by its spec or the environment.

    Raises:
        SpecError: an exporter or a protocol that this program does not have.
    """
    if telemetry == "off" or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    chosen = [os.environ.get(name, "").strip().lower() for name in _EXPORTERS]
    for name, value in zip(_EXPORTERS, chosen, strict=True):
        if value and value not in _KNOWN_EXPORTERS:
            raise SpecError(f"{name} is {value}; htc sends to one of: {', '.join(_KNOWN_EXPORTERS)}.")
    if chosen == ["none", "none"]:
        return False
    has_endpoint = any(os.environ.get(name, "").strip() for name in _ENDPOINTS)
    is_on = telemetry == "otel" or has_endpoint or any(value in ("otlp", "console") for value in chosen)
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip().lower()
    if is_on and protocol not in ("", "http/protobuf"):
        raise SpecError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}; htc sends http/protobuf only, to the collector's port for it, "
            "usually 4318."
        )
    return is_on


def is_installed() -> bool:
    """Return whether the extra `otel` is there; imports nothing of it."""
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        return False
    return found is not None


def check_telemetry(telemetry: Telemetry, *, report: Callable[[str], None]) -> bool:
    """Return whether a run sends telemetry.

    Args:
        report: takes the sentence that the environment asks for telemetry and the extra is missing; the environment
            may be that of every process of a machine, and the run works without.

    Raises:
        SpecError: the spec asks for telemetry and the extra is missing, or see `is_wanted`.
    """
    if not is_wanted(telemetry):
        return False
    if not is_installed():
        way = f"install it with: {INSTALL}"
        if telemetry == "otel":
            raise SpecError(f"telemetry is otel, and OpenTelemetry is not installed; {way}.")
        report(f"The environment asks for OpenTelemetry, which is not installed here: nothing is sent; {way}.")
        return False
    return True


def settings_for(run: str, output_uri: str) -> OtelSettings:
    """Return what the processes of a run need to send telemetry."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("OTEL_") and not any(part in name for part in _OF_THIS_MACHINE)
    }
    return OtelSettings(run, redact(output_uri), variables)


class Otel:
    """The providers of one process, and what could not be sent."""

    def __init__(self, settings: OtelSettings, *, spans: "SpanExporter | None", reader: "MetricReader | None") -> None:
        """Begin to send; `spans` and `reader` take them instead of the exporters that the environment names."""
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # Its complaints about a collector would come with every attempt.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        self.failures: dict[str, str] = {}
        attributes = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or SERVICE,
            "service.version": metadata.version("htc-batch"),
            "htc.run": settings.run,
            "htc.output": settings.output,
        }
        # OTEL_RESOURCE_ATTRIBUTES are added by `create`.
        resource = Resource.create(attributes)
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = spans if spans is not None else self._span_exporter()
        if exporter is not None:
            delay_ms = float(os.environ.get("OTEL_BSP_SCHEDULE_DELAY") or SPAN_DELAY_MS)
            self._traces.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=delay_ms))
        readers = [reader] if reader is not None else self._metric_readers()
        self._metrics = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self.tracer = self._traces.get_tracer(SERVICE, attributes["service.version"])
        self.meter = self._metrics.get_meter(SERVICE, attributes["service.version"])

    def _span_exporter(self) -> "SpanExporter | None":
        kind = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
        if kind == "none":
            return None
        if kind == "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            return ConsoleSpanExporter(out=_stderr(), formatter=lambda span: span.to_json(indent=None) + "\n")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter: SpanExporter = self._noticing("traces", OTLPSpanExporter(timeout=_timeout_s("TRACES")))
        return exporter

    def _metric_readers(self) -> "list[MetricReader]":
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        kind = os.environ.get("OTEL_METRICS_EXPORTER", "").strip().lower() or "otlp"
        if kind == "none":
            return []
        if kind == "console":
            from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

            exporter: Any = ConsoleMetricExporter(
                out=_stderr(), formatter=lambda data: str(data.to_json(indent=None)) + "\n"
            )
        else:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

            exporter = self._noticing("metrics", OTLPMetricExporter(timeout=_timeout_s("METRICS")))
        return [PeriodicExportingMetricReader(exporter)]

    def _noticing(self, signal: str, exporter: Any) -> Any:
        """Have an exporter's failures counted: the SDK only logs them."""
        export = exporter.export

        def counted(*arguments: Any, **keywords: Any) -> Any:
            result = export(*arguments, **keywords)
            if result.name == "SUCCESS":
                self.failures.pop(signal, None)
            else:
                self.failures[signal] = redact(str(getattr(exporter, "_endpoint", "the collector")))
            return result

        exporter.export = counted
        return exporter

    def close(self) -> None:
        """Let the threads end, without waiting for them."""

        def end() -> None:
            self._traces.shutdown()
            self._metrics.shutdown()

        threading.Thread(target=end, name="telemetry", daemon=True).start()

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Send what waits, for at most `timeout_s`; return whether everything was sent in that time."""
        sent: list[bool] = []

        def send() -> None:
            sent.append(self._traces.force_flush(int(timeout_s * 1000)))
            sent.append(self._metrics.force_flush(timeout_s * 1000))

        # The SDK may wait longer than its limit for a connection that hangs.
        thread = threading.Thread(target=send, name="telemetry", daemon=True)
        thread.start()
        thread.join(timeout_s)
        return len(sent) == 2 and all(sent) and not self.failures


def _stderr() -> Any:
    import sys

    return sys.stderr


def _timeout_s(signal: str) -> float:
    names = (f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
    chosen = next((os.environ[name] for name in names if os.environ.get(name)), None)
    return float(chosen) if chosen else REQUEST_TIMEOUT_S


# One per process: a driver and workers that share one, as in tests, send from one.
_active: list[Otel] = []


def active() -> Otel | None:
    """Return what this process sends with; None where it sends nothing."""
    return _active[-1] if _active else None


@contextmanager
def sending(
    settings: OtelSettings | None,
    *,
    report: Callable[[str], None] = log.warning,
    spans: "SpanExporter | None" = None,
    reader: "MetricReader | None" = None,
) -> Iterator[Otel | None]:
    """Send this process's telemetry in the block, and what waits at its end.

    Args:
        settings: None sends nothing.
        report: takes one sentence at the end, if the collector did not take everything.
        spans, reader: see `Otel`.
    """
    if settings is None:
        yield None
        return
    otel = Otel(settings, spans=spans, reader=reader)
    _active.append(otel)
    try:
        yield otel
    finally:
        _active.remove(otel)
        if not otel.flush():
            where = ", ".join(sorted(set(otel.failures.values()))) or "the collector"
            what = " and ".join(sorted(otel.failures)) or "traces and metrics"
            report(f"Not all {what} were sent: {where} did not take them. The run is not affected.")
        otel.close()


def begin_in_worker(settings: OtelSettings | None) -> None:
    """Send this worker's telemetry until its process ends; logs why it cannot."""
    if settings is None or _active:
        return
    for name, value in settings.variables.items():
        os.environ.setdefault(name, value)
    if not is_installed():
        log.warning("OpenTelemetry is not installed on this node, and this worker sends nothing: %s", INSTALL)
        return
    _active.append(Otel(settings, spans=None, reader=None))


def flush_worker() -> None:
    """Send what waits in this worker."""
    otel = active()
    if otel is not None:
        otel.flush()


def context_of(traceparent: str) -> Any:
    """Return the context that a W3C traceparent names."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def traceparent_of(span: Any) -> str:
    """Return a span's context as W3C traceparent, for another process."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
    return carrier.get("traceparent", "")


def attributes_of(values: Mapping[str, object]) -> dict[str, Any]:
    """Return values as attributes of a span: texts without secrets, numbers, lists of these; None is left out."""
    return {f"htc.{name}": _attribute(value) for name, value in values.items() if value is not None}


def _attribute(value: object) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_attribute(each) for each in value]
    return redact(str(value))
