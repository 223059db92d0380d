"""A data set on the command line becomes a training spec; flags override it, and what does not fit is one sentence."""

import json
import shutil
from pathlib import Path

import pytest

from htc_model.weights.model_zoo import bundled_weights
from pipeline.errors import HtcError, SpecError, WeightsUnavailableError
from pipeline.storage.storage import Storage
from pipeline.training.data import load_data, load_initial_weights
from pipeline.training.recipe import DataFlags, load_training
from pipeline.training.spec import load_training_spec, without_storage
from tests.support.builders.small_photos import write_training_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as `htc dataset` writes it: images/, train.json of six images and val.json of one of its own."""
    monkeypatch.chdir(tmp_path)
    write_training_folder(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "images")
    document = json.loads((tmp_path / "coco.json").read_text())
    (tmp_path / "coco.json").rename(tmp_path / "train.json")
    shutil.copy(tmp_path / "images" / "0.png", tmp_path / "images" / "held.png")
    held = {
        **document,
        "images": [{**document["images"][0], "file_name": "held.png"}],
        "annotations": document["annotations"][:1],
    }
    (tmp_path / "val.json").write_text(json.dumps(held))
    return tmp_path


def spec_of(data: str = ".", **flags):
    overrides = flags.pop("overrides", {})
    augment = flags.pop("augment", None)
    return load_training(DataFlags(data, **flags), overrides, output=flags.get("output", "out"), augment=augment)[0]


def test_a_folder_is_trained_on_and_scored_with_its_val_json(folder: Path) -> None:
    spec = spec_of()
    assert spec.train[0].annotations == str(folder / "train.json")
    assert spec.train[0].images == str(folder / "images")
    assert [section.annotations for section in spec.evaluate] == [str(folder / "val.json")]
    assert (spec.model.preset, spec.model.initial) == ("htc_lite0_fpn", "demo")
    assert (spec.epochs, spec.optimiser.schedule, spec.evaluate_epochs) == (50, "flat", 1)
    data = load_data(without_storage(spec), Storage())
    assert (len(data.annotations.images), len(data.evaluation[0].annotations.images)) == (6, 1)


def test_a_json_file_may_lie_beside_its_images_and_a_tenth_is_held_out(folder: Path) -> None:
    for image in (folder / "images").iterdir():
        image.rename(folder / image.name)
    (folder / "images").rmdir()
    (folder / "val.json").unlink()
    spec = spec_of("train.json")
    assert spec.train[0].images == str(folder)
    assert spec.val_share == 0.1
    data = load_data(without_storage(spec), Storage())
    assert (len(data.annotations.images), len(data.evaluation[0].annotations.images)) == (5, 1)
    names = {image.file_name for image in data.annotations.images}
    assert not names & {image.file_name for image in data.evaluation[0].annotations.images}


def test_size_and_start_choose_epochs_and_learning_rate(folder: Path) -> None:
    document = json.loads((folder / "train.json").read_text())
    many = []
    for number in range(1000):
        image = {**document["images"][0], "id": number, "file_name": f"{number}.png"}
        many.append((image, {**document["annotations"][0], "id": number + 1, "image_id": number}))
    document |= {"images": [image for image, _ in many], "annotations": [entry for _, entry in many]}
    (folder / "train.json").write_text(json.dumps(document))
    assert spec_of().epochs == 12
    assert spec_of().optimiser.learning_rate == 5e-4
    assert spec_of(overrides={"accumulate": 4}).optimiser.learning_rate == 1e-3
    assert spec_of(overrides={"model.initial": "imagenet"}).optimiser.learning_rate == 1e-3
    coco = spec_of(overrides={"model.initial": "coco"})
    assert (coco.model.preset, coco.optimiser.learning_rate) == ("htc_r50_fpn", 1e-4)
    own = spec_of(overrides={"model.initial": str(bundled_weights())})
    assert own.model.preset == "htc_lite0_fpn"
    assert (
        spec_of(overrides={"epochs": 3, "batch_size": 2, "optimiser.learning_rate": 0.1}).optimiser.learning_rate == 0.1
    )
    assert spec_of(augment="strong").augmentation.copy_paste == 0.3


def test_flags_override_a_spec_file(folder: Path) -> None:
    text = (folder / "spec.yaml").read_text().replace("coco.json", "train.json").replace("photos", "images")
    (folder / "spec.yaml").write_text(text)
    spec, is_recipe = load_training(DataFlags("spec.yaml", val_share=0.3), {"patience": 2}, augment="strong")
    assert not is_recipe
    assert (spec.evaluate, spec.val_share, spec.patience, spec.output) == ((), 0.3, 2, "out")
    assert spec.augmentation.crop == 0.3
    spec, _ = load_training(DataFlags("spec.yaml", val="val.json"), {}, output="elsewhere")
    assert (spec.evaluate[0].annotations, spec.output) == (str(folder / "val.json"), "elsewhere")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"data": "images"}, "has no COCO JSON"),
        ({"val": "train.json"}, "is the file that is trained on"),
        ({"val": "val.json", "val_share": 0.2}, "not both"),
        ({"overrides": {"model.initial": "demmo"}}, "did you mean demo"),
        ({"overrides": {"model.initial": "demo", "model.preset": "htc_r50_fpn"}}, "demo is weights of htc_lite0_fpn"),
        ({"overrides": {"model.preset": "htc_r5_fpn"}}, "did you mean"),
        ({"overrides": {"patience": 3}, "val_share": 0.0}, "patience needs a validation set"),
        ({"overrides": {"loggers": ["tensorbord"]}}, "loggers"),
    ],
)
def test_what_does_not_fit_is_one_sentence(folder: Path, flags: dict, sentence: str) -> None:
    with pytest.raises(HtcError, match=sentence) as refused:
        spec_of(**{"data": ".", **flags})
    assert refused.value.exit_code == 2


def test_weights_that_are_not_there_are_named(folder: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match=r"no weights file .*nowhere\.safetensors"):
        spec_of(overrides={"model.initial": "nowhere.safetensors"})


def test_an_output_must_be_named(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"htc train \. OUTPUT"):
        load_training(DataFlags("."), {})


def test_images_that_are_trained_on_may_not_score(folder: Path) -> None:
    document = json.loads((folder / "train.json").read_text())
    document["images"] = document["images"][:2]
    document["annotations"] = document["annotations"][:2]
    (folder / "val.json").write_text(json.dumps(document))
    with pytest.raises(SpecError, match=r"val\.json holds 2 images that are trained on, such as 0\.png"):
        load_data(without_storage(spec_of()), Storage())


def test_a_class_without_objects_to_score_with_is_said(folder: Path) -> None:
    for name in ("train.json", "val.json"):
        document = json.loads((folder / name).read_text())
        document["categories"].append({"id": 6, "name": "bag"})
        (folder / name).write_text(json.dumps(document))
    data = load_data(without_storage(spec_of()), Storage())
    assert any("No object of bag is in" in note for note in data.annotations.notes)


def test_other_classes_to_score_with_are_refused(folder: Path) -> None:
    document = json.loads((folder / "val.json").read_text())
    document["categories"][0]["id"] = document["annotations"][0]["category_id"] = 9
    (folder / "val.json").write_text(json.dumps(document))
    with pytest.raises(SpecError, match=r"val\.json has the classes"):
        load_data(without_storage(spec_of()), Storage())


def test_the_bundled_weights_know_their_classes(folder: Path) -> None:
    spec = without_storage(spec_of())
    assert load_initial_weights(spec, Storage()).metadata["classes"] == ["person"]


def test_coco_chooses_its_preset_in_a_spec_as_well(folder: Path) -> None:
    values = {"train": [{"annotations": "train.json", "images": "images"}], "output": "out"}
    assert load_training_spec(None, {**values, "model.initial": "coco"}).model.preset == "htc_r50_fpn"


def test_cocos_own_folders_are_found(folder: Path) -> None:
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / f"{split}.json").rename(folder / "annotations" / f"instances_{split}2017.json")
        (folder / f"{split}2017").mkdir()
    for image in sorted((folder / "images").iterdir()):
        image.rename(folder / ("val2017" if image.name == "held.png" else "train2017") / image.name)
    spec = spec_of()
    assert spec.train[0].images == str(folder / "train2017")
    assert spec.evaluate[0].images == str(folder / "val2017")
