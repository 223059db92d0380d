"""Every command but `run` works without torch and Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.builders.outputs import Output
from tests.support.without_torch import BLOCKER, run_without_torch


def test_the_blocker_blocks() -> None:
    done = subprocess.run([sys.executable, "-c", f"{BLOCKER}\nimport torch"], capture_output=True, check=False)
    assert done.returncode == 1


def test_query(output: Output) -> None:
    done = run_without_torch("query", output.uri, "SELECT count(*) AS n FROM images", "--format", "csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "n\n6\n", "")


def test_show(output: Output, tmp_path: Path) -> None:
    done = run_without_torch("show", output.uri, "--to", str(tmp_path / "png"), "--sample", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "png").glob("*.png"))) == 2


def test_metrics(output: Output) -> None:
    done = run_without_torch("metrics", output.uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert f'htc_output_readable{{output="{output.uri}"}} 1.0' in done.stdout


def test_plan_without_the_model(output: Output, tmp_path: Path) -> None:
    done = run_without_torch("plan", str(output.photos), str(tmp_path / "new"), "--weights", "untrained", "--no-model")
    assert done.returncode == 0, done.stderr
    assert "7 images" in done.stdout


def test_weights_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HTC_CACHE", str(tmp_path))
    done = run_without_torch("weights", "list")
    assert done.returncode == 0, done.stderr
    assert "htc_x101_64x4d_fpn_dcn" in done.stdout
    assert "50.4" in done.stdout
