"""The driver's loop over workers in this process: retries, bisection, early stop, and the tables afterwards."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import pipeline.driver.shard_queue
import pipeline.planning.manifest
from jobs.results.live_run import LivePart
from pipeline.driver.bisection import CONFIRMING_DEATHS
from pipeline.driver.live_workers import LiveWorkers
from pipeline.driver.progress import RunProgress, SilentProgress
from pipeline.driver.run_job import run
from pipeline.driver.shard_queue import DEATHS_BEFORE_BISECTION
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.messages import CAUSES
from pipeline.runs.bottleneck import find_bottleneck
from pipeline.runs.summary import RunSummary
from pipeline.storage import local as local_files
from tests.support.fakes.in_process_pool import InProcessPool, in_process
from tests.support.fakes.models import LoadFake, write_image, write_images

POISON = (32, 47)


@pytest.fixture(autouse=True)
def _without_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    InProcessPool.forget()
    monkeypatch.setattr(pipeline.driver.shard_queue, "FIRST_BACKOFF_S", 0.0)


def segment(
    spec: JobSpec, load_model: LoadFake | None = None, *, notes: "Notes | None" = None, fresh: bool = False
) -> RunSummary:
    return run(
        spec, fresh=fresh, progress=notes or Notes(), load_model=load_model or LoadFake(), open_pool=in_process()
    )


class Notes(SilentProgress):
    """Keeps the sentences."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.when: Callable[[str], None] = lambda sentence: None

    def note(self, sentence: str) -> None:
        self.sentences.append(sentence)
        self.when(sentence)


def spec_for(folder: Path, **overrides: object) -> JobSpec:
    values: dict[str, object] = {
        "input.uri": str(folder / "in"),
        "output.uri": str(folder / "out"),
        "model.preset": "htc_lite0_fpn",
        "model.weights": "untrained",
        "compute.shard_images": 32,
    }
    values.update({key.replace("__", "."): value for key, value in overrides.items()})
    return load_spec(None, values)


def rows(folder: Path, table: str) -> list[dict[str, object]]:
    parts = sorted((folder / "out" / table).glob("run=*/part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()]


@pytest.mark.parametrize("lethal", [{0}, {31}, {5, 6}, {0, 13, 40}])
def test_images_that_kill_fail_alone_and_cheaply(tmp_path: Path, lethal: set[int]) -> None:
    paths = write_images(tmp_path / "in", 48)
    for number in lethal:
        write_image(paths[number], POISON)
    notes = Notes()
    spec = spec_for(tmp_path, retry__max_error_rate=0.1)
    summary = segment(spec, LoadFake({POISON: "die"}), notes=notes)
    images = rows(tmp_path, "images")
    assert [row["uri"] for row in images] == [str(path) for path in paths]
    assert [row["status"] == "failed" for row in images] == [number in lethal for number in range(48)]
    assert {row["error"] for row in images} == {None, "the worker died"}
    assert [row["uri"] for row in rows(tmp_path, "instances")] == [
        str(path) for number, path in enumerate(paths) if number not in lethal
    ]
    assert summary.statuses == {"ok": 48 - len(lethal), "failed": len(lethal)}
    assert summary.exit_code == 0
    shards = {number // 32 for number in lethal}
    price = len(lethal) * (math.log2(32) + CONFIRMING_DEATHS) + len(shards) * DEATHS_BEFORE_BISECTION
    assert summary.workers_lost <= price
    assert InProcessPool.starts <= 1 + summary.workers_lost
    assert sum("is left out" in sentence for sentence in notes.sentences) == len(lethal)


def test_a_worker_that_dies_once_costs_no_row(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 40)
    write_image(paths[3], POISON)
    load_model = LoadFake({POISON: "die_once"}, marks=str(tmp_path))
    summary = segment(spec_for(tmp_path), load_model)
    assert (summary.statuses, summary.workers_lost, summary.exit_code) == ({"ok": 40}, 1, 0)


def test_a_run_in_which_everything_fails_is_stopped_early_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number:03d}.jpg").touch()
    notes = Notes()
    spec = spec_for(tmp_path, compute__shard_images=10)
    summary = segment(spec, notes=notes)
    assert (summary.status, summary.exit_code) == ("over_error_budget", 1)
    assert 100 <= summary.images_done < 300
    assert "Stopped early" in summary.reason
    assert f"{summary.images_done} x the file is empty (0 bytes)" in summary.reason
    assert summary.reason in notes.sentences
    # Nothing has changed: the same command stops before it begins.
    InProcessPool.forget()
    again = segment(spec, notes=notes)
    assert (again.status, again.images_done) == ("over_error_budget", summary.images_done)
    assert InProcessPool.assignments == []
    # A larger budget lets it continue.
    wider = spec_for(tmp_path, compute__shard_images=10, retry__max_error_rate=1.0)
    ended = segment(wider, notes=notes)
    assert (ended.status, ended.images_done) == ("complete", 600)


def test_one_junk_file_among_four_is_no_failure_and_four_are_one(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 4)
    paths[0].write_text("junk")
    few = segment(spec_for(tmp_path))
    assert (few.status, few.exit_code, few.error_rate, few.max_errors) == ("complete", 0, 0.25, 5)
    strict = spec_for(tmp_path, retry__max_errors=0)
    again = segment(strict, fresh=True)
    assert (again.status, again.exit_code) == ("over_error_budget", 1)
    for path in paths:
        path.write_text("junk")
    junk = segment(spec_for(tmp_path), fresh=True)
    assert (junk.status, junk.exit_code) == ("over_error_budget", 1)


def test_a_sample_of_shards_stops_a_run_before_its_budget_is_spent(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number:03d}.jpg").touch()
    spec = spec_for(tmp_path, compute__shard_images=10, retry__max_error_rate=0.4)
    summary = segment(spec)
    assert summary.status == "over_error_budget"
    assert "sampled" in summary.reason
    # 240 may fail.
    assert 100 < summary.images_done < 240
    # The floor of half of the images is taken for the budget where that is less.
    lenient = spec_for(tmp_path, compute__shard_images=10, retry__max_errors=600, output__uri=str(tmp_path / "lenient"))
    later = segment(lenient)
    assert summary.images_done < later.images_done < 300


def test_bad_images_within_the_budget_stop_nothing(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 300, (8, 8))
    for number in range(120):
        (tmp_path / "in" / f"a-{number:03d}.jpg").touch()
    spec = spec_for(tmp_path, compute__shard_images=20, retry__max_error_rate=0.3)
    summary = segment(spec)
    assert (summary.status, summary.images_done) == ("complete", 420)
    assert any(assignment.is_sampled for assignment in InProcessPool.assignments)


def test_too_many_errors_are_reported_while_the_input_is_still_being_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(240):
        (folder / f"{number:03d}.jpg").touch()
    notes = Notes()
    walk_files, is_warned = local_files.walk_files, threading.Event()
    notes.when = lambda sentence: is_warned.set() if "while its input is still being listed" in sentence else None

    def walk_on_after_the_warning(*arguments: Any) -> Iterator[Any]:
        for number, found in enumerate(walk_files(*arguments)):
            if number == 220:
                assert is_warned.wait(60.0)
            yield found

    monkeypatch.setattr(local_files, "walk_files", walk_on_after_the_warning)
    monkeypatch.setattr(pipeline.planning.manifest, "FIRST_PART_IMAGES", 200)
    summary = segment(spec_for(tmp_path, compute__shard_images=20), notes=notes)
    assert (summary.status, summary.exit_code) == ("over_error_budget", 1)
    (warning,) = (sentence for sentence in notes.sentences if "failed so far, and 5.0% are allowed" in sentence)
    assert "100 x the file is empty (0 bytes)" in warning


class Seen(Notes):
    """Keeps the progress as well."""

    def __init__(self) -> None:
        super().__init__()
        self.progress: list[RunProgress] = []

    def update(self, progress: RunProgress) -> None:
        self.progress.append(progress)


def test_the_workers_time_and_the_bottleneck_are_in_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that takes all of the time, with workers whose start counts for nothing."""
    write_images(tmp_path / "in", 64)
    monkeypatch.setattr(LiveWorkers, "look_every_s", 0.0)
    seen = Seen()
    began = time.monotonic()
    summary = segment(spec_for(tmp_path), LoadFake(delay_s=0.01), notes=seen)
    elapsed_s = time.monotonic() - began
    times = summary.worker_time_s
    assert set(times) == set(CAUSES)
    assert 64 * 0.01 <= times["infer"] <= sum(times.values()) <= elapsed_s + 0.1
    assert summary.bottleneck == find_bottleneck(times)
    stored = json.loads((tmp_path / "out" / "runs" / summary.run / "summary.json").read_text())
    assert stored["worker_time_s"] == times
    assert stored["bottleneck"]["sentence"] == summary.bottleneck.sentence
    live = seen.progress[-1].live
    assert live["shards"]["slowest"][0]["images"] == 32
    assert live["workers"]["rows"][0]["images"] >= 32
    # As it is in progress.json, for every state of the run.
    for progress in seen.progress:
        assert LivePart.model_validate(json.loads(json.dumps(progress.live))).workers.alive <= 1


def test_a_run_that_was_complete_has_no_workers_time(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    spec = spec_for(tmp_path)
    assert segment(spec).bottleneck is not None
    again = segment(spec)
    assert (again.worker_time_s, again.bottleneck) == ({}, None)
