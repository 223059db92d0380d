"""What the driver refuses before it asks for weights or starts Ray."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.config import load_spec
from pipeline.driver import run
from pipeline.errors import InputError
from pipeline.planning import Planning


@pytest.mark.parametrize("is_there", [True, False], ids=["empty", "absent"])
def test_an_input_without_images_is_told_before_weights_are_fetched(
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


def test_a_driver_that_is_ended_while_it_lists_lets_go_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Path(__file__).parents[2] / "examples" / "photos"
    shutil.copytree(photos, tmp_path / "in")
    held: list[bool] = []

    def ended(planning: Planning, patience_s: float) -> None:
        if not held:
            held.append(any(tmp_path.glob("out/runs/*/lease.json")))
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Planning, "wait", ended)
    former = signal.getsignal(signal.SIGTERM)
    spec = load_spec(
        None, {"input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out"), "model.weights": "untrained"}
    )
    with pytest.raises(KeyboardInterrupt):
        run(spec)
    assert held == [True]
    assert not list(tmp_path.glob("out/runs/*/lease.json"))
    assert signal.getsignal(signal.SIGTERM) is former
