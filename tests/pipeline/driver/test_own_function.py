"""Runs of the caller's own `load_model`: what is recorded of it, and when it counts as another model."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import pipeline.driver.shard_queue
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import ModelError, RunMismatchError
from pipeline.job_spec.job import load_spec
from pipeline.output.run_record import list_records
from pipeline.runs.summary import RunSummary
from pipeline.storage.storage import Storage
from tests.support.fakes.in_process_pool import InProcessPool, in_process
from tests.support.fakes.models import write_images
from tests.support.fakes.own_models import Regions

NAME = f"{__name__}:with_batches.<locals>.load"


@pytest.fixture(autouse=True)
def _without_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    InProcessPool.forget()
    monkeypatch.setattr(pipeline.driver.shard_queue, "FIRST_BACKOFF_S", 0.0)


def with_batches(most: int) -> Callable[[], Regions]:
    def load() -> Regions:
        return Regions(max_batch=most)

    return load


class Notes(SilentProgress):
    """Keeps the sentences."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def note(self, sentence: str) -> None:
        self.sentences.append(sentence)


def segment(folder: Path, load_model: object, notes: Notes | None = None, **overrides: object) -> RunSummary:
    values = {"input.uri": str(folder / "in"), "output.uri": str(folder / "out"), "model.weights": "demo", **overrides}
    progress = notes or Notes()
    return run(load_spec(None, values), progress=progress, load_model=load_model, open_pool=in_process())  # type: ignore[arg-type]


def test_its_name_and_code_are_recorded_and_not_the_demo_network(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    notes = Notes()
    summary = segment(tmp_path, with_batches(4), notes)
    assert (summary.exit_code, summary.model, summary.statuses) == (0, NAME, {"ok": 2})
    (record,) = list_records(Storage(), str(tmp_path / "out"))
    assert (record.model_name, record.fingerprint["preset"]) == (NAME, NAME)
    parts = [*(tmp_path / "out" / "images").rglob("*.parquet"), *(tmp_path / "out" / "instances").rglob("*.parquet")]
    assert {name for part in parts for name in pq.read_table(part)["model"].to_pylist()} == {NAME}
    assert not any("demo" in sentence for sentence in notes.sentences)


def test_only_the_same_function_resumes_and_another_is_another_model(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    first = segment(tmp_path, with_batches(4))
    again = segment(tmp_path, with_batches(4))
    assert (again.run, again.session_images) == (first.run, 0)
    with pytest.raises(RunMismatchError, match=r"model fingerprint, weights_sha256: \w+… then, \w+… now"):
        segment(tmp_path, with_batches(2))
    with pytest.raises(RunMismatchError, match=rf"model fingerprint, preset: {NAME} then, \S+:Regions now"):
        segment(tmp_path, Regions)
    later = segment(tmp_path, with_batches(2), **{"select.mode": "incremental"})
    assert (later.run != first.run, later.session_images) == (True, 2)


def test_what_is_no_function_leaves_no_run_behind(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    with pytest.raises(ModelError, match=r"^load_model is of type Regions, which cannot be called"):
        segment(tmp_path, Regions())
    assert not (tmp_path / "out").exists()
