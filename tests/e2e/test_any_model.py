"""A model of torchvision through the whole job, on Ray, killed and resumed; a factory in the current folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.driver import run_job as driver
from pipeline.errors import RunError
from pipeline.output.results import open_results
from tests.support.builders.e2e_specs import spec_with
from tests.support.paths import ROOT

IMAGES = 16
PATIENCE_S = 120.0
MODEL = ("--model", "torchvision:maskrcnn_resnet50_fpn", "--weights", "untrained")
OPTIONS = ("min_size=64", "max_size=96", "box_detections_per_img=5", "rpn_post_nms_top_n_test=50")

pytestmark = pytest.mark.slow


def command(*arguments: str) -> list[str]:
    flags = [word for option in OPTIONS for word in ("--model-option", option)]
    return [sys.executable, "-m", "jobs", "run", "in", "out", *MODEL, *flags, "--workers", "1", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")


def committed(folder: Path) -> dict[Path, int]:
    """Return the committed parts with the time when they were written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "out" / "images").glob("run=*/part-*.parquet")}


def test_a_torchvision_model_is_killed_and_resumed(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "in", IMAGES)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command("--shard-images", "2"),
            cwd=tmp_path,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not committed(tmp_path) and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = committed(tmp_path)
    assert 0 < len(before) < IMAGES // 2
    options = {f"model__options__{key}": int(value) for key, value in (each.split("=") for each in OPTIONS)}
    values = {"model__preset": MODEL[1], "compute__workers": 1, "compute__shard_images": 2, **options}
    summary = driver.run(spec_with(tmp_path, **values))
    assert (summary.exit_code, summary.model) == (0, "torchvision:maskrcnn_resnet50_fpn")
    assert f" of {IMAGES // 2} shards to go" in capsys.readouterr().err
    after = committed(tmp_path)
    assert {path: after[path] for path in before} == before
    results = open_results(str(tmp_path / "out"))
    assert results.images().column("status").to_pylist() == ["ok"] * IMAGES
    instances = results.instances()
    assert set(instances.column("model").to_pylist()) == {"torchvision:maskrcnn_resnet50_fpn"}
    assert instances.num_rows == 5 * IMAGES
    (record,) = (tmp_path / "out" / "runs").glob("*/run.json")
    fingerprint = json.loads(record.read_text())["fingerprint"]
    assert fingerprint["preset"] == "torchvision:maskrcnn_resnet50_fpn"
    assert fingerprint["code"].startswith("torchvision ")


SOURCE = """
from tests.support.fakes.own_models import Regions

def load(fault=""):
    return Regions(fault)

def fail():
    raise RuntimeError("no licence")
"""


def test_a_factory_in_the_current_folder_reaches_the_workers_and_its_faults_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    write_photos(tmp_path / "in", 6)
    Image.new("RGB", (48, 48)).save(tmp_path / "in" / "spoilt.png")
    (tmp_path / "my_models_of_e2e.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    values = {"model__preset": "my_models_of_e2e:load", "model__weights": "default", "compute__workers": 1}
    summary = driver.run(spec_with(tmp_path, **values, model__options={"fault": "label"}))
    assert summary.model == "my_models_of_e2e:load"
    rows = {Path(row["uri"]).stem: row for row in open_results(str(tmp_path / "out")).images().to_pylist()}
    assert rows.pop("spoilt")["error"] == "the model regions returned the label 91, and has 2 classes, 0 to 1"
    assert {row["status"] for row in rows.values()} == {"ok"}
    # Other options are another model: an incremental run does all images again.
    again = driver.run(spec_with(tmp_path, **values, select__mode="incremental"))
    assert again.statuses == {"ok": 7}
    values["model__preset"] = "my_models_of_e2e:fail"
    with pytest.raises(RunError, match="my_models_of_e2e:fail raised RuntimeError: no licence, in ") as caught:
        driver.run(spec_with(tmp_path, **values), fresh=True)
    assert caught.value.exit_code == 2
