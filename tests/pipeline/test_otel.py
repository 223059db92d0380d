"""OpenTelemetry: spans that nest from the run to the stage, metrics, and a collector that is not there."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pipeline import otel
from pipeline.driver import run_job
from pipeline.driver.progress import SilentProgress
from pipeline.errors import SpecError
from pipeline.job_spec.job import load_spec
from tests.support.fakes.in_process_pool import in_process
from tests.support.fakes.models import Deed, LoadFake, Size, write_image, write_images
from tests.support.paths import PROGRAMS, ROOT
from tests.support.programs.local_run import Notes
from tests.support.servers.otlp_receiver import otlp_receiver

STAGES = {"htc.read", "htc.decode", "htc.infer", "htc.encode", "htc.write"}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.startswith("OTEL_") or each == "TRACEPARENT"]:
        monkeypatch.delenv(name)


class Traced:
    """Runs jobs whose spans and metrics stay in memory."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        sending = otel.sending

        def in_memory(settings: otel.OtelSettings | None, **keywords: Any) -> Any:
            # Each serves one provider.
            self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
            return sending(settings, spans=self.exporter, reader=self.reader, **keywords)

        monkeypatch.setattr(run_job, "sending", in_memory)

    def run(self, deeds: dict[Size, Deed] | None = None, **given: object) -> int:
        overrides = {
            "input.uri": str(self.folder / "in"),
            "output.uri": str(self.folder / "out"),
            "model.preset": "htc_lite0_fpn",
            "model.weights": "untrained",
            "compute.shard_images": 3,
            "compute.workers": 1,
            "telemetry": "otel",
            **{name.replace("__", "."): value for name, value in given.items()},
        }
        summary = run_job.run(
            load_spec(None, overrides),
            progress=SilentProgress(),
            load_model=LoadFake(deeds or {}, marks=str(self.folder)),
            open_pool=in_process(),
        )
        return summary.exit_code

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def metrics(self) -> dict[str, float]:
        """Return the sum of each metric's points."""
        data = self.reader.get_metrics_data()
        scopes = [scope for group in data.resource_metrics for scope in group.scope_metrics] if data else []
        return {
            each.name: sum(point.value for point in each.data.data_points) for scope in scopes for each in scope.metrics
        }


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Traced:
    write_images(tmp_path / "in", 6)
    return Traced(tmp_path, monkeypatch)


def test_spans_nest_from_the_run_to_the_stages(traced: Traced) -> None:
    (traced.folder / "in" / "bad.jpg").write_bytes(b"nothing")
    assert traced.run(retry__max_errors=5) == 0
    [run] = traced.named("htc.run")
    assert run.parent is None
    assert run.attributes is not None
    assert (run.attributes["htc.images"], run.attributes["htc.status"]) == (7, "complete")
    assert run.resource.attributes["service.name"] == "htc-batch"
    assert run.resource.attributes["htc.run"] == run.attributes["htc.run"]
    shards = traced.named("htc.shard")
    assert sorted(span.attributes["htc.shard"] for span in shards) == [0, 1, 2]  # type: ignore[index]
    for shard in shards:
        assert shard.parent is not None
        assert shard.parent.span_id == run.context.span_id
        inside = [span for span in traced.spans if span.parent and span.parent.span_id == shard.context.span_id]
        assert STAGES >= {span.name for span in inside} - {"htc.wait"} >= {"htc.read", "htc.write"}
        for stage in inside:
            assert stage.start_time <= stage.end_time  # type: ignore[operator]
            assert stage.context.trace_id == run.context.trace_id
    assert {span.name for span in traced.spans} >= STAGES


def test_a_lost_worker_and_a_run_that_fails(traced: Traced) -> None:
    write_image(traced.folder / "in" / "kills.png", (33, 48))
    assert traced.run({(33, 48): "die_once"}) == 0
    outcomes = [span.attributes["htc.outcome"] for span in traced.named("htc.shard")]  # type: ignore[index]
    assert outcomes.count("death") >= 1
    lost = next(span for span in traced.named("htc.shard") if span.attributes["htc.outcome"] == "death")  # type: ignore[index]
    assert not lost.status.is_ok
    [run] = traced.named("htc.run")
    assert [event.name for event in run.events] == ["worker_lost"]
    (traced.folder / "in" / "bad.jpg").write_bytes(b"nothing")
    assert traced.run(output__uri=str(traced.folder / "other"), retry__max_errors=0, retry__max_error_rate=0.0) == 1
    [failed] = traced.named("htc.run")
    assert not failed.status.is_ok


def test_metrics_are_counted_beside_those_of_prometheus(traced: Traced) -> None:
    (traced.folder / "in" / "bad.jpg").write_bytes(b"nothing")
    seen: dict[str, float] = {}
    close = otel.Otel.close

    def read_first(self: otel.Otel) -> None:
        seen.update(traced.metrics())
        close(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(otel.Otel, "close", read_first)
        assert traced.run(retry__max_errors=5) == 0
    assert seen["htc.images"] == 7
    assert seen["htc.instances"] == 6
    assert seen["htc.image_failures"] == 1
    assert seen["htc.worker_images"] == 7
    assert seen["htc.read_bytes"] > 0
    assert seen["htc.stage_seconds"] > 0


def test_a_traceparent_makes_the_run_a_child(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert traced.run() == 0
    [run] = traced.named("htc.run")
    assert run.parent is not None
    assert f"{run.parent.span_id:x}" == "b7ad6b7169203331"


def test_secrets_are_not_sent(traced: Traced) -> None:
    assert otel.settings_for("r", "https://me:hidden-word@host/out").output == "https://***@host/out"
    assert otel.attributes_of({"reason": "https://me:hidden-word@host/"}) == {"htc.reason": "https://***@host/"}


def test_credentials_are_not_given_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=very-secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert otel.settings_for("r", "out").variables == {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("telemetry", "environment", "wanted"),
    [
        ("auto", {}, False),
        ("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ("auto", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ("auto", {"OTEL_TRACES_EXPORTER": "console"}, True),
        ("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        (
            "auto",
            {
                "OTEL_TRACES_EXPORTER": "none",
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c",
            },
            False,
        ),
        ("off", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ("otel", {}, True),
    ],
)
def test_when_telemetry_is_sent(
    telemetry: otel.Telemetry, environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert otel.is_wanted(telemetry) is wanted


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
def test_an_exporter_or_protocol_that_is_not_there(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match=f"{name} is {value}"):
        otel.is_wanted("otel")


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "is_installed", lambda: False)
    with pytest.raises(SpecError, match=r"htc-batch\[otel\]"):
        otel.check_telemetry("otel", report=print)
    # The environment is often that of every process of a machine: the run goes on, and says so.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
    said: list[str] = []
    assert not otel.check_telemetry("auto", report=said.append)
    assert len(said) == 1
    assert "htc-batch[otel]" in said[0]


def test_nothing_is_imported_when_it_is_off() -> None:
    program = (
        "import sys\n"
        "from pipeline import otel, telemetry\n"
        "import pipeline.worker.shard_processor\n"
        "assert not otel.check_telemetry('auto', report=print)\n"
        "with otel.sending(None), telemetry.traced_stages(telemetry.StageClock(), ''):\n    pass\n"
        "telemetry.DriverMetrics('r').worker_lost()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@contextmanager
def _collector_that_hangs() -> Iterator[str]:
    """A server whose system accepts connections, and that never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hangs", "refuses"])
def test_a_collector_that_is_not_there_fails_no_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "in", 3)
    monkeypatch.setattr(otel, "FLUSH_S", 0.5)
    monkeypatch.setattr(otel.Otel.flush, "__defaults__", (0.5,))
    notes = Notes()
    with _collector_that_hangs() as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url if kind == "hangs" else "http://127.0.0.1:9")
        given = {"input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out"), "model.weights": "untrained"}
        given |= {"model.preset": "htc_lite0_fpn", "compute.workers": "1"}
        summary = run_job.run(load_spec(None, given), progress=notes, load_model=LoadFake({}), open_pool=in_process())
    assert summary.exit_code == 0
    assert any("The run is not affected" in sentence for sentence in notes.sentences)


@pytest.mark.slow
def test_a_real_run_reaches_a_real_collector(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 5)
    write_image(tmp_path / "in" / "kills.png", (33, 48))
    (tmp_path / "marks").mkdir()
    command = [sys.executable, str(PROGRAMS / "htc_with_a_fake_model.py"), str(tmp_path / "marks"), "run"]
    command += [str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1", "--shard-images", "3", "--json"]
    with otlp_receiver() as collector:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"}
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        spans = [span for _, span in collector.spans]
    run = next(span for span in spans if span.name == "htc.run")
    shards = {span.span_id: span for span in spans if span.name == "htc.shard"}
    assert {span.parent_span_id for span in shards.values()} == {run.span_id}
    # The stages come from the workers' processes.
    stages = [span for span in spans if span.name in STAGES]
    assert {span.name for span in stages} == STAGES
    assert {span.parent_span_id for span in stages} <= shards.keys()
    assert {resource["htc.run"] for resource, _ in collector.spans} == {json.loads(done.stdout)["run"]}
    assert {"htc.images", "htc.instances", "htc.workers_lost", "htc.stage_seconds"} <= collector.metrics.keys()
