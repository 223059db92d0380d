"""`htc weights`: list, fetch, verify, convert."""

from pathlib import Path

import pytest
import torch

from htc_model.config import load_preset
from htc_model.network.detector import build_model
from htc_model.weights.openmmlab import WeightsError
from jobs.running import weights as weights_report
from pipeline.errors import SpecError


@pytest.fixture
def lite_file(tmp_path: Path) -> Path:
    """A checkpoint of the smallest preset, in MMDetection's format."""
    path = tmp_path / "mine.pth"
    torch.manual_seed(0)
    torch.save({"meta": {}, "state_dict": build_model("htc_lite0_fpn").state_dict()}, path)
    return path


def test_the_list_of_jobs_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTC_CACHE", str(tmp_path))
    weights_report.report_published()
    before = capsys.readouterr().out
    assert "here" not in before.replace("Files are kept", "")
    file = tmp_path / "weights" / "htc_r50_fpn_1x_coco_20200317-7332cf16.pth"
    file.parent.mkdir()
    file.write_bytes(b"")
    weights_report.report_published()
    after = capsys.readouterr().out
    (line,) = [line for line in after.splitlines() if "7332cf16" in line]
    assert " here " in line
    assert "42.3" in line
    assert "37.4" in line


def test_fetch_prints_the_path_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def fetch(name: str, folder: Path | None, **_: object) -> Path:
        seen.append((name, folder))
        return tmp_path / "file.pth"

    weights_report.report_fetch("htc_r50_fpn", tmp_path, fetch=fetch)
    assert capsys.readouterr().out == f"{tmp_path / 'file.pth'}\n"
    assert seen == [("htc_r50_fpn", tmp_path)]


def test_verify_names_the_preset_and_a_wrong_hash(lite_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights_report.report_verify(lite_file, None) == 0
    assert "htc_lite0_fpn" in capsys.readouterr().out
    renamed = lite_file.rename(lite_file.with_name("mine-00000000.pth"))
    assert weights_report.report_verify(renamed, "htc_lite0_fpn") == 1
    assert "does not begin with 00000000" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="These are weights of htc_lite0_fpn"):
        weights_report.report_verify(renamed, "htc_r50_fpn")


def test_a_file_of_another_kind_is_one_own_sentence(tmp_path: Path) -> None:
    other = tmp_path / "afile"
    other.write_text("no weights")
    with pytest.raises(WeightsError, match=r"afile is not a readable checkpoint: .*\.safetensors file\.$") as caught:
        weights_report.report_verify(other, None)
    assert "torch." not in str(caught.value)


def test_convert_keeps_every_value(lite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from htc_model.weights.load import load_weights, state_sha256

    target = tmp_path / "mine.safetensors"
    weights_report.report_convert(lite_file, target)
    assert str(target) in capsys.readouterr().out
    assert state_sha256(load_weights(target).state) == state_sha256(load_weights(lite_file).state)
    assert load_weights(target).metadata["classes"] == list(load_preset("htc_lite0_fpn").classes)
    with pytest.raises(SpecError, match="into itself"):
        weights_report.report_convert(target, target)
