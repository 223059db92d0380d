"""Training from files, as `htc train` does."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from htc_model.weights.load import load_weights
from pipeline.errors import RunError, SpecError
from pipeline.training.run import train
from pipeline.training.spec import load_training_spec


@pytest.fixture
def folder(tmp_path):
    """Six images of a bright box, COCO annotations, and a training spec in YAML."""
    (tmp_path / "photos").mkdir()
    images, annotations = [], []
    for number in range(6):
        pixels = np.full((96, 96, 3), 60, np.uint8)
        left = 10 + 5 * number
        pixels[20:70, left : left + 40] = (200, 120, 40)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 96})
        corners = [left, 20, left + 40, 20, left + 40, 70, left, 70]
        annotations.append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": 5,
                "bbox": [left, 20, 40, 50],
                "segmentation": [corners],
                "area": 2000,
                "iscrowd": 0,
            }
        )
    document = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "box"}]}
    (tmp_path / "coco.json").write_text(json.dumps(document))
    data = {"annotations": str(tmp_path / "coco.json"), "images": str(tmp_path / "photos")}
    spec = {
        "train": [data],
        "evaluate": [data],
        "output": str(tmp_path / "out"),
        "model": {"initial": "none", "short_side": 96, "long_side": 96},
        "sampling": {"rois": 16, "proposals": 20},
        "optimiser": {"warmup_steps": 1},
        "epochs": 1,
        "batch_size": 2,
        "log_steps": 1,
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path


@pytest.mark.slow
def test_a_spec_becomes_weights_that_contain_their_classes(folder):
    (folder / "photos" / "3.png").write_bytes(b"not an image")
    (folder / "photos" / "4.png").unlink()
    spec = load_training_spec(folder / "spec.yaml", {"evaluate": []})
    loaded = load_weights(train(spec))
    assert loaded.metadata["config"]["classes"] == ["box"]
    assert loaded.metadata["config"]["category_ids"] == [5]
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    skipped = " ".join(reason for line in lines for reason in line["skipped"])
    assert "3.png" in skipped
    assert "4.png" in skipped


@pytest.mark.slow
def test_evaluation_is_logged_under_its_file(folder):
    train(load_training_spec(folder / "spec.yaml"))
    last = json.loads((folder / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["evaluation"][str(folder / "coco.json")]["mask_ap50"] <= 1


def test_a_misspelt_key_is_named_with_the_right_one(folder):
    with pytest.raises(SpecError, match="did you mean batch_size"):
        load_training_spec(folder / "spec.yaml", {"batchsize": 3})


def test_messages_name_the_training_spec(tmp_path):
    with pytest.raises(SpecError, match=r"training spec .*none\.yaml does not exist"):
        load_training_spec(tmp_path / "none.yaml")
    (tmp_path / "train.yaml").write_text("images: a\n")
    with pytest.raises(SpecError, match=r"(?s)output is missing.*--output.*images is not a key of the training spec"):
        load_training_spec(tmp_path / "train.yaml")


def test_a_spec_without_data_is_refused():
    with pytest.raises(SpecError, match="train"):
        load_training_spec(None, {"output": "out"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.preset": "htc_lite1_fpn"}, "did you mean 'htc_lite0_fpn'"),
        ({"model.classes": ["dog"]}, "The class 'dog' is not in the file; it has box"),
    ],
)
def test_what_does_not_fit_is_one_sentence(folder, change, message):
    with pytest.raises(SpecError, match=message):
        train(load_training_spec(folder / "spec.yaml", change))


def test_an_annotation_file_that_is_no_json_is_named(folder):
    (folder / "coco.json").write_text("{")
    with pytest.raises(SpecError, match=r"coco\.json is not JSON"):
        train(load_training_spec(folder / "spec.yaml"))


def test_a_folder_without_the_images_ends_the_run_with_a_sentence(folder):
    spec = load_training_spec(folder / "spec.yaml", {"train": [
        {"annotations": str(folder / "coco.json"), "images": str(folder / "elsewhere")}
    ], "evaluate": []})  # fmt: skip
    with pytest.raises(SpecError, match="6 images in a row"):
        train(spec)


def test_a_loss_that_explodes_ends_the_run_with_the_batch_named(folder):
    optimiser = {"kind": "sgd", "learning_rate": 1e30, "warmup_steps": 0, "clip_norm": None}
    with pytest.raises(RunError, match=r"The loss is .*\.png"):
        train(load_training_spec(folder / "spec.yaml", {"optimiser": optimiser}))
