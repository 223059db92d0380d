"""`htc train`: a spec in, weights out that `htc run` can use."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from htc_model.weights.load import load_weights
from jobs.running.training_display import TrainingDisplay
from tests.support.builders.small_photos import add_annotation, write_training_folder
from tests.support.builders.training_data import small_spec
from tests.support.htc import Htc
from tests.support.paths import ROOT

PATIENCE_S = 120.0

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with six images, their annotations and a spec with relative paths."""
    monkeypatch.chdir(tmp_path)
    return write_training_folder(tmp_path)


def change(folder: Path, **values: Any) -> None:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def curve(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["losses"]["total"]) for line in lines if "losses" in line]


@pytest.mark.slow
def test_train_reports_its_files_and_what_was_left_out(folder: Path, htc: Htc) -> None:
    add_annotation(folder, segmentation=[[1, 1, 2, 2]])
    code, out, err = htc("train", "spec.yaml", "--epochs", "1", "--output", "elsewhere")
    assert code == 0, err
    for name in ("weights.safetensors", "metrics.jsonl", "curves.png"):
        assert f"elsewhere/{name}" in out
        assert (folder / "elsewhere" / name).stat().st_size > 0
    assert (folder / "elsewhere" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "3/3 steps, loss" in err
    assert "polygon with < 3 points" in err
    assert "1 annotation: polygon with < 3 points" in out
    assert "mask_ap" in out
    assert "Next: htc run INPUT OUTPUT --weights elsewhere/best.safetensors" in out
    assert "7 objects" in err
    assert "The scores of coco.json say nothing about new images" in err
    again, out, err = htc("train", "spec.yaml", "--epochs", "1", "--output", "elsewhere")
    assert again == 0
    assert "Nothing to train" in err
    assert "mask_ap" in out


@pytest.mark.slow
def test_a_killed_training_resumes_with_the_same_command_and_curve(folder: Path, htc: Htc) -> None:
    change(folder, checkpoint_steps=1, evaluate=[], epochs=3)
    command = [sys.executable, "-m", "jobs", "train", "spec.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--output", "broken"], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (folder / "broken" / "checkpoint.pt").exists():
            assert process.poll() is None, "it ended before its first checkpoint"
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    taken = len(curve(folder / "broken"))
    assert taken < 9, "it was too fast to be killed"
    assert htc("train", "spec.yaml", "--output", "broken")[0] == 0
    assert htc("train", "spec.yaml", "--output", "whole")[0] == 0
    # Another process may add floats in another order, but it takes the same steps.
    assert [step for step, _ in curve(folder / "broken")] == list(range(1, 10))
    expected = [total for _, total in curve(folder / "whole")]
    assert [total for _, total in curve(folder / "broken")] == pytest.approx(expected, rel=1e-3)
    assert not list((folder / "broken").glob(".*"))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1"),
        ({"batchsize": 2}, "did you mean batch_size?"),
        ({"output": "s3://bucket/out"}, "output must be a local folder"),
        ({"augmentation": {"scale": [2, 1]}}, "scale must be [low, high]"),
        ({"model": {"preset": "htc_lite1_fpn"}}, "did you mean 'htc_lite0_fpn'?"),
        ({"model": {"initial": "imagenet", "preset": "htc_r50_fpn"}}, "name a weights file as model.initial"),
        ({"model": {"initial": "nowhere.pth"}}, "There is no weights file"),
        ({"train": []}, "train"),
        ({"evaluate": [{"annotations": "other.json", "images": "photos"}]}, "other.json"),
    ],
)
def test_a_wrong_spec_is_one_sentence_and_exit_2(folder: Path, htc: Htc, spec: dict[str, Any], sentence: str) -> None:
    document = json.loads((folder / "coco.json").read_text())
    document["categories"][0]["id"] = document["annotations"][0]["category_id"] = 6
    (folder / "other.json").write_text(json.dumps(document))
    change(folder, **spec)
    code, out, err = htc("train", "spec.yaml")
    assert code == 2, err
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_a_spec_that_is_not_there_is_named(folder: Path, htc: Htc) -> None:
    code, _, err = htc("train", "nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml does not exist" in err


def test_a_data_set_of_crowds_alone_is_refused(folder: Path, htc: Htc) -> None:
    document = json.loads((folder / "coco.json").read_text())
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 1
    (folder / "coco.json").write_text(json.dumps(document))
    code, _, err = htc("train", "spec.yaml")
    assert code == 2
    assert "No image has an object to train on" in err


@pytest.mark.slow
def test_polygons_run_lengths_crowds_and_missing_images_train_together(folder: Path, htc: Htc) -> None:
    document = json.loads((folder / "coco.json").read_text())
    document["annotations"][1]["segmentation"] = {"size": [96, 96], "counts": [96 * 20, 96 * 40, 96 * 36]}
    document["annotations"][2]["iscrowd"] = 1
    (folder / "coco.json").write_text(json.dumps(document))
    (folder / "photos" / "3.png").unlink()
    change(folder, epochs=1, keeps_empty_images=True, evaluate=[])
    code, _, err = htc("train", "spec.yaml")
    assert code == 0, err
    assert "3.png" in err
    assert len(curve(folder / "out")) == 3
    assert load_weights(folder / "out" / "weights.safetensors").metadata["pictures"] == 6


@pytest.mark.slow
def test_initial_weights_of_another_class_count_name_every_layer_that_starts_anew(folder: Path, htc: Htc) -> None:
    change(folder, evaluate=[], epochs=1)
    assert htc("train", "spec.yaml", "--output", "first")[0] == 0
    document = json.loads((folder / "coco.json").read_text())
    document["categories"].append({"id": 6, "name": "bag"})
    (folder / "coco.json").write_text(json.dumps(document))
    change(folder, model={"initial": "first/weights.safetensors", "short_side": 96, "long_side": 96})
    code, out, err = htc("train", "spec.yaml")
    assert code == 0, err
    layers = [f"bbox_head.{stage}.fc_cls" for stage in range(3)] + [
        f"mask_head.{stage}.conv_logits" for stage in range(3)
    ]
    for layer in [*layers, "semantic_head.conv_logits"]:
        assert f"roi_head.{layer}" in err
    assert "at random" in out


@pytest.mark.slow
def test_a_data_set_and_a_start_are_enough(folder: Path, htc: Htc) -> None:
    (folder / "photos").rename(folder / "images")
    (folder / "coco.json").rename(folder / "train.json")
    size = ("--short-side", "96", "--long-side", "96", "--batch-size", "2", "--epochs", "1")
    code, out, err = htc("train", ".", "out", "--from", "none", *size, "--val-share", "0.3", "--logger", "tensorboard")
    assert code == 0, err
    assert "30% of the images are held out to score with." in err
    assert "epoch 1/1: mask_ap 0." in err
    assert "the best so far" in err
    assert "2 objects" in err
    assert "on 4 images" in out
    for name in ("best.safetensors", "pictures/epoch-001.jpg", "tensorboard"):
        assert (folder / "out" / name).exists(), name
    assert "--weights out/best.safetensors" in out
    # The settings that were chosen are a spec of their own, of the same run.
    again, _, err = htc("train", "out/spec.yaml")
    assert again == 0, err
    assert "Nothing to train" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["photos", "out"], "has no COCO JSON"),
        (["coco.json"], "Name the output folder"),
        (["coco.json", "out", "--from", "cocoo"], "did you mean coco?"),
        (["coco.json", "out", "--val", "coco.json"], "is the file that is trained on"),
        (["spec.yaml", "--patience", "2", "--val-share", "0"], "patience needs a validation set"),
        (["spec.yaml", "--precision", "fp16"], "fp16 needs a GPU"),
        (["spec.yaml", "--batch-size", "7"], "A batch of 7 is more than the 6 training images"),
        (["spec.yaml", "--find-lr", "--workers", "2"], "runs in one process"),
        (["spec.yaml", "--logger", "tensorbord"], "loggers"),
        (["spec.yaml", "--images", "photos"], "--images goes with a data set"),
        (["spec.yaml", "elsewhere", "--output", "another"], "given twice"),
    ],
)
def test_wrong_flags_are_one_sentence_and_exit_2(folder: Path, htc: Htc, arguments: list[str], sentence: str) -> None:
    code, out, err = htc("train", *arguments)
    assert code == 2, err
    assert sentence in err
    assert len(err.strip().splitlines()) == 1, err
    assert out == ""


def test_steps_have_speed_and_time_left_and_evaluations_a_line_for_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(float(second) for second in range(0, 1000, 20))
    monkeypatch.setattr("jobs.running.training_display.time.monotonic", lambda: next(now))
    sink = io.StringIO()
    spec = small_spec("out", batch_size=4, accumulate=2, epochs=3)
    display = TrainingDisplay(Console(file=sink, width=200), spec)
    for step in (1, 2, 3):
        display.step(step, 30, {"total": 2.0})
    display.evaluation(
        {
            "epoch": 1,
            "is_best": True,
            "evaluation": {"data/val.json": {"mask_ap": 0.25, "mask_ap50": 0.5, "box_ap": 0.3}},
            "classes": {
                "data/val.json": {"cup": {"mask_ap": 0.5, "objects": 2}, "big bag": {"mask_ap": -1, "objects": 0}}
            },
        }
    )
    lines = sink.getvalue().splitlines()
    assert lines[0] == "1/30 steps, loss 2.000"
    # The clock is asked three times a step: 60 s for 8 images.
    assert lines[2] == "3/30 steps, loss 2.000, 0.1 images/s, 27 min 00 s left"
    assert lines[3] == "epoch 2/3: mask_ap 0.250, mask_ap50 0.500, box_ap 0.300 on val.json, the best so far"
    assert lines[4] == "  cup      mask_ap 0.500, 2 objects"
    assert lines[5] == "  big bag  mask_ap   -  , 0 objects"


@pytest.mark.slow
def test_run_takes_everything_from_the_weights_file(folder: Path, htc: Htc) -> None:
    change(folder, evaluate=[], epochs=1)
    code, _, err = htc("train", "spec.yaml")
    assert code == 0, err
    weights = "out/weights.safetensors"
    arguments = ["photos", "tables", "--limit", "2", "--score-threshold", "0", "--workers", "1"]
    code, out, err = htc("plan", *arguments, "--weights", weights)
    assert code == 0, err
    code, out, err = htc("run", *arguments, "--weights", weights)
    assert code == 0, err
    assert "htc_lite0_fpn" in out
    sql = "SELECT DISTINCT model, category, category_id FROM instances"
    code, out, err = htc("query", "tables", sql, "--format", "csv")
    sha256 = load_weights(folder / weights).sha256
    assert out.splitlines()[1:] == [f"htc_lite0_fpn:weights.safetensors@{sha256[:8]},box,5"]
    code, _, err = htc("run", *arguments, "--weights", weights, "--model", "htc_r50_fpn")
    assert code == 2
    assert "holds weights of htc_lite0_fpn, not of htc_r50_fpn" in err
