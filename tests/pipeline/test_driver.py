"""What the driver refuses before it asks for weights or starts Ray."""

from pathlib import Path

import pytest

from pipeline.config import load_spec
from pipeline.driver import run
from pipeline.errors import InputError


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
