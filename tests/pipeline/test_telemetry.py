"""Metrics as Prometheus gets them from a real run, and the labels that keep them few."""

import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline import telemetry as ray_metrics
from pipeline.messages import ImageFailure, ShardResult
from pipeline.telemetry import MAX_REASON_LABELS, DriverMetrics, StageClock, WorkerMetrics, WorkerTotals, reason_words
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
    assert seen == ray_metrics.exported_names()
    assert value_of(samples, "ray_htc_images_total", status="unreadable") == 2
    reason = {"status": "unreadable", "reason": "not an image starts with"}
    assert value_of(samples, "ray_htc_image_failures_total", **reason) == 1
    assert value_of(samples, "ray_htc_retries_total", kind="death") >= 1
    assert value_of(samples, "ray_htc_workers_lost_total") == 1
    assert value_of(samples, "ray_htc_run_images", state="listed") == 13
    assert value_of(samples, "ray_htc_stage_seconds_total", stage="infer") > 0
    # The images of the attempt that was thrown away may be counted twice.
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
def test_reasons_lose_what_differs_between_images(reason: str, words: str) -> None:
    assert reason_words(reason) == words


class _Recorder:
    """Stands where Ray's metrics are made."""

    def __init__(self, run: str) -> None:
        self.told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)

    def add(self, name: str, amount: float, **labels: str) -> None:
        self.told[name, tuple(sorted(labels.items()))] += amount

    def set(self, name: str, value: float, **labels: str) -> None:
        self.told[name, tuple(sorted(labels.items()))] = value


@pytest.fixture
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_metrics, "_Exporter", _Recorder)


def told_by(metrics: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = metrics._exporter.told
    return told


@pytest.mark.usefixtures("_recorded")
def test_however_many_reasons_there_are_the_labels_stay_few() -> None:
    metrics = DriverMetrics("r")
    for number in range(500):
        word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        failure = ImageFailure(f"s3://b/{number}.jpg", "unreadable", f"broken {word}")
        metrics.committed(ShardResult(0, {"unreadable": 1}, 0, {}, 0, 0.0, failures=(failure,)))
    reasons = {dict(labels)["reason"] for name, labels in told_by(metrics) if name == "htc_image_failures"}
    assert len(reasons) == MAX_REASON_LABELS + 1
    counted = [value for (name, _), value in told_by(metrics).items() if name == "htc_image_failures"]
    assert sum(counted) == 500


@pytest.mark.usefixtures("_recorded")
def test_a_worker_tells_what_was_added() -> None:
    metrics = WorkerMetrics("r")
    metrics.tell(WorkerTotals(10, 1000, {"read": 1.0}, 8))
    metrics.tell(WorkerTotals(12, 1500, {"read": 1.5, "infer": 2.0}, 4))
    told = told_by(metrics)
    assert told["htc_worker_images", ()] == 12
    assert told["htc_read_bytes", ()] == 1500
    assert told["htc_stage_seconds", (("stage", "read"),)] == pytest.approx(1.5)
    assert told["htc_stage_seconds", (("stage", "infer"),)] == pytest.approx(2.0)
    assert told["htc_batch_size", ()] == 4


def test_a_worker_counts_the_shards_under_way_and_never_twice() -> None:
    log = WorkCounter()
    passed_on: list[int] = []
    clock, gauge = StageClock(), ByteGauge()
    with log.following(clock, gauge):
        log.counting(passed_on.append)(3)
        clock.add({"infer": 2.0})
        gauge.add(500)
        during = log.totals(batch_size=8)
    after = log.totals(batch_size=8)
    assert during == after
    assert (after.images, after.bytes_read, after.stage_s["infer"], passed_on) == (3, 500, 2.0, [3])


def test_without_ray_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    metrics = DriverMetrics("r")
    metrics.worker_lost()
    assert metrics._exporter._made == {}
