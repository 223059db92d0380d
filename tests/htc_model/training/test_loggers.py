"""Metrics reach TensorBoard, MLflow and Weights & Biases; each is read back with its own reader."""

import builtins
import importlib.util
import logging
import time

import numpy as np
import pytest
from PIL import Image

from htc_model.config import ModelConfigError
from htc_model.training.loggers import Loggers, check_loggers, flatten_line

STEP = {"step": 3, "losses": {"total": 2.5}, "learning_rate": 1e-3, "images_per_s": 4.0, "skipped": []}
EVALUATION = {
    "step": 4,
    "epoch": 0,
    "evaluation": {"data/val.json": {"mask_ap": 0.25, "box_ap_small": -1.0}},
    "classes": {"data/val.json": {"cup (paper)": {"mask_ap": 0.5, "objects": 2}}},
}
SETTINGS = {"epochs": 2, "model": {"preset": "htc_lite0_fpn"}}


@pytest.fixture
def page(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "page.jpg")
    return tmp_path / "page.jpg"


def send(name, folder, page, *, step=0, lines=(STEP, EVALUATION)) -> None:
    loggers = Loggers([name], folder, SETTINGS, step)
    for line in lines:
        loggers.log_line(line)
    loggers.log_page(4, page)
    loggers.close()


def test_lines_become_named_numbers() -> None:
    assert dict(flatten_line(STEP)) == {"loss/total": 2.5, "learning_rate": 1e-3, "images_per_s": 4.0}
    # What could not be scored is left out; names hold only what all three allow.
    assert dict(flatten_line(EVALUATION)) == {
        "val/mask_ap": 0.25,
        "val/cup _paper_/mask_ap": 0.5,
        "val/cup _paper_/objects": 2,
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_scalars_pictures_and_no_steps_that_were_taken_again(tmp_path, page) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra [tensorboard] is not installed"
    )
    send("tensorboard", tmp_path, page)
    send("tensorboard", tmp_path, page, step=3, lines=[EVALUATION])
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [(3, 2.5)]
    assert [(event.step, event.value) for event in events.Scalars("val/mask_ap")] == [(4, 0.25)]
    assert events.Images("pictures")[0].width == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_one_run_in_a_local_file(tmp_path, page, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra [mlflow] is not installed")
    pytest.importorskip("alembic", reason="the extra [mlflow] is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    send("mlflow", tmp_path, page)
    send("mlflow", tmp_path, page, step=3, lines=[{**EVALUATION, "step": 8}])
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("htc train")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.preset"] == "htc_lite0_fpn"
    assert [each.step for each in client.get_metric_history(run.info.run_id, "val/mask_ap")] == [4, 8]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/page.jpg"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_an_offline_run(tmp_path, page, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    send("wandb", tmp_path, page)
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    # Its own process may write the end of the file a little later.
    deadline = time.monotonic() + 60
    while b"val/mask_ap" not in record.read_bytes():
        assert time.monotonic() < deadline, "the metrics are not in the file"
        time.sleep(0.05)
    assert (tmp_path / "wandb_run.txt").read_text().strip() in record.name


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")]
)
def test_a_package_that_is_missing_is_one_sentence_with_its_extra(name, module, monkeypatch) -> None:
    found = builtins.__import__

    def missing(wanted, *arguments, **settings):
        if wanted.split(".")[0] in {module, "alembic"} or wanted == module:
            raise ImportError(f"No module named {wanted!r}")
        return found(wanted, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModelConfigError, match=rf"pip install 'htc-batch\[{name}\]'"):
        check_loggers([name])


def test_a_logger_that_fails_is_said_once_and_left_out(tmp_path, monkeypatch, caplog) -> None:
    class Broken:
        def __init__(self, *_arguments) -> None:
            self.calls = 0

        def log(self, step, values) -> None:
            raise ConnectionError("the server is gone\nmore")

    monkeypatch.setattr("htc_model.training.loggers.check_loggers", lambda names: None)
    monkeypatch.setattr("htc_model.training.loggers._Mlflow", Broken)
    loggers = Loggers(["mlflow"], tmp_path, SETTINGS, 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            loggers.log_line(STEP)
    assert caplog.text.count("the server is gone") == 1
    assert "training goes on" in caplog.text


def test_a_logger_that_cannot_be_opened_ends_the_command(tmp_path, monkeypatch) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("the extra [mlflow] is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    with pytest.raises(ModelConfigError, match=r"MLflow cannot be opened.*environment"):
        Loggers(["mlflow"], tmp_path, SETTINGS, 0)
