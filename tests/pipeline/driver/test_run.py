"""What the driver refuses before it fetches weights or starts Ray, and signals at that time."""

import json
import os
import shutil
import signal
import threading
from datetime import datetime
from pathlib import Path

import pytest

from pipeline.cluster.connection import RayStarter
from pipeline.driver.progress import SilentProgress
from pipeline.driver.run_job import run
from pipeline.errors import InputError, StoppedError
from pipeline.job_spec.job import load_spec
from pipeline.job_spec.model import ModelSection
from pipeline.planning.background import BackgroundPlanner
from pipeline.runs.run import RunHandle
from pipeline.storage.storage import Storage
from tests.support.paths import PHOTOS


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    # It starts in another thread once images are planned, which tests/pipeline/cluster/test_connection.py tests.
    monkeypatch.setattr(RayStarter, "begin", lambda starter: None)


@pytest.mark.parametrize("is_there", [True, False], ids=["empty", "absent"])
def test_an_input_without_images_is_refused_before_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    # Fetching would end in WeightsUnavailableError here: nothing is cached, and the address refuses.
    monkeypatch.setenv("HTC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    folder = tmp_path / "photos"
    if is_there:
        folder.mkdir()
    spec = load_spec(None, {"input.uri": str(folder), "output.uri": str(tmp_path / "out"), "model.weights": "coco"})
    with pytest.raises(InputError, match="photos"):
        run(spec)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_driver_that_is_stopped_while_it_lists_releases_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    photos = PHOTOS
    shutil.copytree(photos, tmp_path / "in")
    held: list[bool] = []

    wait = BackgroundPlanner.wait

    def ended(planning: BackgroundPlanner, patience_s: float) -> None:
        wait(planning, patience_s)
        if not held:
            held.append(any(tmp_path.glob("out/runs/*/lease.json")))
            os.kill(os.getpid(), number)

    monkeypatch.setattr(BackgroundPlanner, "wait", ended)
    former = signal.getsignal(number)
    spec = load_spec(
        None, {"input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out"), "model.weights": "untrained"}
    )
    summary = run(spec, progress=SilentProgress())
    assert (summary.status, summary.exit_code) == ("interrupted", 1)
    (written,) = tmp_path.glob("out/runs/*/summary.json")
    assert json.loads(written.read_text())["status"] == "interrupted"
    assert held == [True]
    assert not list(tmp_path.glob("out/runs/*/lease.json"))
    assert signal.getsignal(number) is former


def test_the_beginning_of_work_is_reported_with_the_open_run(tmp_path: Path) -> None:
    shutil.copytree(PHOTOS, tmp_path / "in")
    begun: list[str] = []

    def note(opened: RunHandle) -> None:
        begun.append(opened.name)
        os.kill(os.getpid(), signal.SIGTERM)

    spec = load_spec(
        None, {"input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out"), "model.weights": "untrained"}
    )
    summary = run(spec, progress=SilentProgress(), on_begin=note)
    assert begun == [summary.run]
    (written,) = tmp_path.glob("out/runs/*/summary.json")
    content = json.loads(written.read_text())
    assert content["status"] == "interrupted"
    assert datetime.fromisoformat(content["began"]) <= datetime.fromisoformat(content["ended"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_before_there_is_a_run_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def hang(section: ModelSection, storage: Storage) -> None:
        os.kill(os.getpid(), number)
        threading.Event().wait(60)

    monkeypatch.setattr("pipeline.driver.run_job.identify_model", hang)
    spec = load_spec(
        None, {"input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out"), "model.weights": "untrained"}
    )
    with pytest.raises(StoppedError, match=number.name) as stopped:
        run(spec, progress=SilentProgress())
    assert stopped.value.exit_code == 1
    assert not (tmp_path / "out").exists()
