"""Metrics as Prometheus gets them from a real run, and the bound on their labels."""

import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.messages import ImageFailure, ShardResult
from pipeline.telemetry import (
    MAX_REASON_LABELS,
    DriverMetrics,
    RayExporter,
    StageClock,
    WorkerMetrics,
    WorkerTotals,
    exported_names,
    reason_words,
)
from pipeline.worker.byte_budget import ByteGauge
from pipeline.worker.totals import WorkCounter
from tests.support.fakes.models import write_image, write_images
from tests.support.paths import PROGRAMS, ROOT

# By name and labels, without those of Ray's own.
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
OWN_LABELS = {"run", "status", "reason", "kind", "state", "stage"}


def scrape(port: str) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    samples: Samples = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_htc_"):
                labels = frozenset((name, value) for name, value in sample.labels.items() if name in OWN_LABELS)
                samples[sample.name, labels] += sample.value
    return samples


def value_of(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset({"run": "metered", **labels}.items())), 0.0)


@pytest.mark.slow
def test_a_real_run_is_scraped(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 10)
    write_image(tmp_path / "in" / "z-kills.png", (33, 48))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"nonsense 1")
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "marks").mkdir()
    command = [sys.executable, str(PROGRAMS / "metered_run.py")]
    command += [str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "marks")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    seen: set[str] = set()
    try:
        assert run.stdout is not None
        port = run.stdout.readline().strip()
        samples: Samples = {}
        deadline = time.monotonic() + 240
        while value_of(samples, "ray_htc_images_total", status="ok") < 11 or value_of(samples, "ray_htc_queue_depth"):
            assert time.monotonic() < deadline, samples
            time.sleep(0.5)
            samples = scrape(port)
            seen |= {name for name, _ in samples}
        run.communicate("\n", timeout=60)
    finally:
        run.kill()
    assert run.returncode == 0
    assert seen == exported_names()
    assert value_of(samples, "ray_htc_images_total", status="unreadable") == 2
    reason = {"status": "unreadable", "reason": "not an image starts with"}
    assert value_of(samples, "ray_htc_image_failures_total", **reason) == 1
    assert value_of(samples, "ray_htc_retries_total", kind="death") >= 1
    assert value_of(samples, "ray_htc_workers_lost_total") == 1
    assert value_of(samples, "ray_htc_run_images", state="listed") == 13
    assert value_of(samples, "ray_htc_stage_seconds_total", stage="infer") > 0
    # The images of the discarded attempt may be counted twice.
    assert value_of(samples, "ray_htc_worker_images_total") >= 9


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("not an image: starts with 'nonsense 1'", "not an image starts with"),
        ("the file is empty (0 bytes)", "the file is empty"),
        ("JPEG: image file is truncated (12 bytes not processed)", "JPEG image file is truncated"),
        ("12000 x 13000 is 156000000 pixels; the limit is 9", "x is pixels the limit is"),
        ("s3://bucket/photos/0001.jpg", "unnamed"),
        ("", "unnamed"),
        ("word " * 100, ("word " * 16).strip()),
    ],
)
def test_reasons_are_reduced_to_what_images_share(reason: str, words: str) -> None:
    assert reason_words(reason) == words


class Recorder:
    """Keeps the values by metric and labels, instead of exporting them."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)

    def add(self, name: str, amount: float, **labels: str) -> None:
        self.values[name, tuple(sorted(labels.items()))] += amount

    def set(self, name: str, value: float, **labels: str) -> None:
        self.values[name, tuple(sorted(labels.items()))] = value


def test_however_many_reasons_there_are_the_labels_stay_few() -> None:
    recorder = Recorder()
    metrics = DriverMetrics("r", recorder)
    for number in range(500):
        word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        failure = ImageFailure(f"s3://b/{number}.jpg", "unreadable", f"broken {word}")
        metrics.committed(ShardResult(0, {"unreadable": 1}, 0, {}, 0, 0.0, failures=(failure,)))
    reasons = {dict(labels)["reason"] for name, labels in recorder.values if name == "htc_image_failures"}
    assert len(reasons) == MAX_REASON_LABELS + 1
    counted = [value for (name, _), value in recorder.values.items() if name == "htc_image_failures"]
    assert sum(counted) == 500


def test_a_worker_exports_the_increase() -> None:
    recorder = Recorder()
    metrics = WorkerMetrics("r", recorder)
    metrics.export(WorkerTotals(10, 1000, {"read": 1.0}, 8))
    metrics.export(WorkerTotals(12, 1500, {"read": 1.5, "infer": 2.0}, 4))
    values = recorder.values
    assert values["htc_worker_images", ()] == 12
    assert values["htc_read_bytes", ()] == 1500
    assert values["htc_stage_seconds", (("stage", "read"),)] == pytest.approx(1.5)
    assert values["htc_stage_seconds", (("stage", "infer"),)] == pytest.approx(2.0)
    assert values["htc_batch_size", ()] == 4


def test_a_worker_counts_the_shards_in_flight_and_never_twice() -> None:
    counter = WorkCounter()
    passed_on: list[int] = []
    clock, gauge = StageClock(), ByteGauge()
    with counter.track(clock, gauge):
        counter.counted(passed_on.append)(3)
        clock.add({"infer": 2.0})
        gauge.add(500)
        during = counter.totals(batch_size=8)
    after = counter.totals(batch_size=8)
    assert during == after
    assert (after.images, after.bytes_read, after.stage_s["infer"], passed_on) == (3, 500, 2.0, [3])


def test_without_ray_no_metric_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    exporter = RayExporter("r")
    DriverMetrics("r", exporter).worker_lost()
    assert exporter.metrics == {}
