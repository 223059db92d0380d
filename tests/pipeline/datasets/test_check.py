"""The check of a data set: every kind of finding, on a data set that has it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import CheckOptions, CheckReport, Split, check_dataset, find_splits
from pipeline.datasets.findings import CATALOGUE
from pipeline.datasets.image_facts import compute_look, find_alike
from pipeline.errors import InputError, SpecError
from pipeline.storage import Storage
from tests.support.builders.annotated_photos import (
    HEIGHT,
    WIDTH,
    square_annotation,
    write_coco,
    write_photo,
)
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# What data sets as small as the tests' always have.
SMALL = {"rare-class", "few-to-score"}


def check(dataset: Path, **options: Any) -> CheckReport:
    return check_dataset(find_splits(str(dataset), Storage()), options=CheckOptions(**options))


def found(report: CheckReport) -> dict[str, tuple[str, ...]]:
    return {finding.code: finding.examples for finding in report.findings if finding.code not in SMALL}


def test_a_sound_data_set_has_no_findings(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json", photos=25)
    write_coco(tmp_path / "val.json", photos=3, first=25)
    report = check(tmp_path, reads_pixels=True)
    assert [finding.code for finding in report.findings] == ["few-to-score"]
    assert not report.has_errors
    train, val = report.splits
    assert (train.name, train.images, train.images_with_objects, train.objects, val.images) == ("train", 25, 25, 25, 3)
    (row,) = report.classes
    assert (row.name, row.category_id, dict(row.objects), row.median_side) == ("cat", 1, {"train": 25, "val": 3}, 20)


def test_every_kind_is_documented() -> None:
    page = (ROOT / "docs" / "own_classes.md").read_text()
    assert [code for code in CATALOGUE if f"`{code}`" not in page] == []


# Each writes a data set with one fault: the code that is found, and a word of its example.
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {}


def fault(code: str, word: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def register(write: Callable[[Path], object]) -> Callable[[Path], object]:
        FAULTS[code] = (write, word)
        return write

    return register


def with_annotations(folder: Path, *annotations: dict[str, Any], **more: Any) -> None:
    write_coco(folder / "train.json", annotations=[square_annotation(1, 0), *annotations], **more)
    document = json.loads((folder / "train.json").read_text())
    annotated = {entry["image_id"] for entry in document["annotations"]}
    document["images"] = [image for image in document["images"] if image["id"] in annotated]
    for number in range(3):
        if number not in annotated:
            (folder / "images" / f"{number}.png").unlink(missing_ok=True)
    (folder / "train.json").write_text(json.dumps(document))


@fault("annotations-unusable", "No image has an object")
def _(folder: Path) -> None:
    write_coco(folder / "train.json", annotations=[])


@fault("image-missing", "1.png")
def _(folder: Path) -> None:
    write_coco(folder / "train.json")
    (folder / "images" / "1.png").unlink()


@fault("image-unreadable", "1.png (the file is empty")
def _(folder: Path) -> None:
    write_coco(folder / "train.json")
    (folder / "images" / "1.png").write_bytes(b"")


@fault("size-differs", "1.png (JSON 60x40, file 30x20)")
def _(folder: Path) -> None:
    write_coco(folder / "train.json")
    write_photo(folder / "images" / "1.png", 1, size=(30, 20))


@fault("annotated-unturned", "1.png (JSON 60x40, file 40x60)")
def _(folder: Path) -> None:
    write_coco(folder / "train.json")
    write_photo(folder / "images" / "1.png", 1, orientation=6)


@fault("splits-overlap", "7.png (val) = 1.png (train)")
def _(folder: Path) -> None:
    write_coco(folder / "train.json")
    write_coco(folder / "val.json", photos=1, first=7)
    shutil.copy(folder / "images" / "1.png", folder / "images" / "7.png")


@fault("categories-differ", "dog (train: absent, val: 2)")
def _(folder: Path) -> None:
    write_coco(folder / "train.json")
    annotations = [square_annotation(1, 7), square_annotation(2, 8)]
    write_coco(folder / "val.json", photos=2, first=7, names=("cat", "dog"), annotations=annotations)


@fault("class-not-trained", "dog (1 in val)")
def _(folder: Path) -> None:
    write_coco(folder / "train.json", names=("cat", "dog"))
    annotations = [square_annotation(1, 7), square_annotation(2, 8, 2)]
    write_coco(folder / "val.json", photos=2, first=7, names=("cat", "dog"), annotations=annotations)


@fault("mask-off-image", "annotation 5 of 0.png: no area inside the image")
def _(folder: Path) -> None:
    with_annotations(folder, square_annotation(5, 0, bbox=[70, 5, 10, 10], segmentation=[[70, 5, 80, 5, 80, 15]]))


@fault("image-twice", "2.png = 1.png")
def _(folder: Path) -> None:
    write_coco(folder / "train.json")
    shutil.copy(folder / "images" / "1.png", folder / "images" / "2.png")


@fault("two-formats", "1.jpg (train), 1.png (train)")
def _(folder: Path) -> None:
    images = [
        {"id": n, "file_name": name, "width": 60, "height": 40} for n, name in enumerate(("0.png", "1.png", "1.jpg"))
    ]
    write_photo(folder / "images" / "1.jpg", 5)
    write_coco(folder / "train.json", images=images)
    (folder / "images" / "2.png").unlink()


@fault("empty-class", "dog")
def _(folder: Path) -> None:
    write_coco(folder / "train.json", names=("cat", "dog"))


@fault("class-not-evaluated", "dog")
def _(folder: Path) -> None:
    annotations = [square_annotation(number + 1, number, 1 + number % 2) for number in range(3)]
    write_coco(folder / "train.json", names=("cat", "dog"), annotations=annotations)
    write_coco(folder / "val.json", photos=1, first=7, names=("cat", "dog"))


@fault("similar-names", "'cat' and 'Cat '")
def _(folder: Path) -> None:
    annotations = [square_annotation(number + 1, number, 1 + number % 2) for number in range(3)]
    write_coco(folder / "train.json", names=("cat", "Cat "), annotations=annotations)


@fault("annotation-left-out", "annotation 5 of 0.png: polygon with < 3 points")
def _(folder: Path) -> None:
    with_annotations(folder, square_annotation(5, 0, segmentation=[[1, 1, 2, 2]]))


@fault("mask-empty", "0.png, annotation 5")
def _(folder: Path) -> None:
    flat = {"segmentation": [[40, 10, 50, 10, 45, 10]], "bbox": [40, 10, 10, 1]}
    with_annotations(folder, square_annotation(5, 0, **flat))


@fault("mask-crosses-itself", "0.png, annotation 5")
def _(folder: Path) -> None:
    loops = {"segmentation": [[35, 5, 55, 25, 55, 5, 35, 25]], "bbox": [35, 5, 20, 20]}
    with_annotations(folder, square_annotation(5, 0, **loops))


@fault("box-differs", "0.png, annotation 5")
def _(folder: Path) -> None:
    moved = {"segmentation": [[35, 5, 55, 5, 55, 25, 35, 25]], "bbox": [35, 5, 20, 10]}
    with_annotations(folder, square_annotation(5, 0, **moved))


@fault("box-only", "0.png, annotation 5")
def _(folder: Path) -> None:
    with_annotations(folder, square_annotation(5, 0, segmentation=[], bbox=[35, 5, 20, 20]))


@fault("annotation-twice", "0.png, annotation 5")
def _(folder: Path) -> None:
    nearly = {"segmentation": [[10, 5, 30, 5, 30, 24, 10, 25]], "bbox": [10, 5, 20, 20]}
    with_annotations(folder, square_annotation(5, 0, **nearly))


@fault("mask-partly-off", "0.png, annotation 5")
def _(folder: Path) -> None:
    beyond = {"segmentation": [[45, 5, 70, 5, 70, 25, 45, 25]], "bbox": [45, 5, 25, 20]}
    with_annotations(folder, square_annotation(5, 0, **beyond))


@fault("crowd", "0.png, annotation 5")
def _(folder: Path) -> None:
    with_annotations(folder, square_annotation(5, 0, iscrowd=1))


@fault("tiny-object", "0.png, annotation 5")
def _(folder: Path) -> None:
    # 60 x 40 pixels are trained on at 576 x 384: one pixel is 9.6 wide.
    dot = {"segmentation": [[45, 20, 45.7, 20, 45.7, 20.7, 45, 20.7]], "bbox": [45, 20, 1, 1], "area": 1}
    with_annotations(folder, square_annotation(5, 0, **dot))


@fault("image-without-objects", "1.png")
def _(folder: Path) -> None:
    write_coco(folder / "train.json", photos=2, annotations=[square_annotation(1, 0)])


@fault("image-unlisted", "more/9.png")
def _(folder: Path) -> None:
    write_coco(folder / "train.json")
    write_photo(folder / "images" / "more" / "9.png", 9)


@fault("annotation-mended", "the box has no area")
def _(folder: Path) -> None:
    with_annotations(folder, square_annotation(5, 0, bbox=[0, 0, 0, 0], segmentation=[[35, 5, 55, 5, 55, 25, 35, 25]]))


# Found beside the fault itself.
BESIDE = {"categories-differ": {"empty-class"}}


@pytest.mark.parametrize("code", list(FAULTS))
def test_a_fault_is_found(tmp_path: Path, code: str) -> None:
    write, word = FAULTS[code]
    write(tmp_path)
    report = check(tmp_path, short_side=384, long_side=640)
    if code == "tiny-object":
        report = check(tmp_path, short_side=100, long_side=100)
    assert code in found(report), found(report)
    assert any(word in example for example in found(report)[code]), found(report)[code]
    assert set(found(report)) == {code} | BESIDE.get(code, set())
    assert report.has_errors == (CATALOGUE[code][0] == "error")


def test_most_masks_of_a_class_as_crowds_are_reported(tmp_path: Path) -> None:
    with_annotations(tmp_path, square_annotation(5, 1, 2, iscrowd=1), names=("cat", "dog"))
    assert found(check(tmp_path))["mostly-crowds"] == ("dog (1 of 1)",)


def test_imbalance_and_rare_classes_have_their_numbers(tmp_path: Path) -> None:
    many = [square_annotation(number, 0, segmentation=None, bbox=[number % 40, 5, 9, 9]) for number in range(2, 203)]
    write_coco(tmp_path / "train.json", photos=1, names=("cat", "dog"), annotations=[square_annotation(1, 0, 2), *many])
    report = check(tmp_path)
    assert found(report)["imbalance"] == ("dog (1 of 201)",)
    assert [finding.examples for finding in report.findings if finding.code == "rare-class"] == [("dog (1)",)]


def test_overlap_is_found_by_name_where_the_images_are_missing(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json")
    write_coco(tmp_path / "val.json", photos=1, first=2)
    shutil.rmtree(tmp_path / "images")
    assert found(check(tmp_path))["splits-overlap"] == ("2.png (val) = 2.png (train)",)


def test_images_that_look_alike_are_found_across_splits(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json", photos=2)
    write_coco(tmp_path / "val.json", photos=2, first=7)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = np.stack([np.sin(rows / 7 + columns / 9), np.cos(columns / 5), np.sin(rows / 3)], axis=-1)
    image = Image.fromarray((waves * 100 + 128).astype(np.uint8))
    image.save(tmp_path / "images" / "0.png")
    image.save(tmp_path / "images" / "7.png", compress_level=1)
    Image.fromarray((np.asarray(image).astype(int) // 8 * 8).astype(np.uint8)).save(tmp_path / "images" / "8.png")
    assert found(check(tmp_path)) == {}
    report = check(tmp_path, reads_pixels=True)
    assert found(report)["near-splits-overlap"] == ("7.png (val) ~ 0.png (train)", "8.png (val) ~ 0.png (train)")


def test_images_of_one_colour_do_not_look_alike() -> None:
    assert compute_look(np.full((30, 40, 3), 90, np.uint8)) is None
    assert list(find_alike([None, None, 5, 7, (1 << 128) - 1])) == [(2, 3)]


def test_damage_behind_the_header_needs_the_pixels(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json")
    path = tmp_path / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:-3000])
    assert found(check(tmp_path)) == {}
    assert "truncated" in found(check(tmp_path, reads_pixels=True))["image-unreadable"][0]


def test_sizes_that_the_json_lacks_are_those_of_the_images(tmp_path: Path) -> None:
    document = write_coco(tmp_path / "train.json")
    for image in document["images"]:
        del image["width"]
    (tmp_path / "train.json").write_text(json.dumps(document))
    assert [*found(check(tmp_path))] == ["annotation-mended"]


@pytest.mark.parametrize(
    ("text", "word"), [("[]", "not a COCO"), ('{"images": [', "not JSON"), ('{"shapes": []}', "htc dataset convert")]
)
def test_a_file_that_is_not_coco_is_refused(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(SpecError, match=word):
        check(tmp_path)


def test_values_of_wrong_types_are_findings(tmp_path: Path) -> None:
    document = write_coco(tmp_path / "train.json")
    document["images"][1]["width"] = 10**30
    document["images"][2]["height"] = float("inf")
    document["annotations"] += [square_annotation(9, [], {}), square_annotation(10, 0, segmentation=[[10**30] * 6]), 7]  # type: ignore[arg-type]
    (tmp_path / "train.json").write_text(json.dumps(document))
    assert {"annotation-left-out", "size-differs"} <= {*found(check(tmp_path))}


# Where the parts lie


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train.json", "val.json", "annotations.json"], ["train", "val"]),
        (["annotations.json"], ["annotations"]),
        (["annotations/instances_val2017.json", "annotations/instances_train2017.json"], ["train", "val"]),
        (["valid/_annotations.coco.json", "train/_annotations.coco.json"], ["train", "val"]),
        (["anything.json"], ["anything"]),
    ],
)
def test_splits_are_found_in_the_usual_places(tmp_path: Path, files: list[str], splits: list[str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [split.name for split in find_splits(str(tmp_path), Storage())] == splits


def test_folders_without_a_known_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="htc dataset convert"):
        find_splits(str(tmp_path), Storage())
    for name in "ab":
        (tmp_path / f"{name}.json").write_text("{}")
    with pytest.raises(InputError, match="several JSON files"):
        find_splits(str(tmp_path), Storage())
    with pytest.raises(InputError, match="does not exist"):
        find_splits(str(tmp_path / "absent"), Storage())


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images"])
def test_images_of_cocos_own_layout_are_found(tmp_path: Path, folder: str) -> None:
    (tmp_path / "annotations").mkdir()
    write_coco(tmp_path / "annotations" / "instances_train2017.json", folder=f"../{folder}")
    report = check(tmp_path)
    assert found(report) == {}
    assert report.splits[0].images_folder == str(tmp_path / folder)


def test_a_data_set_in_a_store_is_checked(tmp_path: Path) -> None:
    import fsspec

    write_coco(tmp_path / "train.json")
    (tmp_path / "images" / "1.png").unlink()
    write_photo(tmp_path / "images" / "9.png", 9)
    fsspec.filesystem("memory").put(str(tmp_path), "/own-classes/data", recursive=True)
    report = check_dataset(find_splits("memory://own-classes/data"))
    assert found(report) == {"image-missing": ("1.png",), "image-unlisted": ("9.png",)}
    assert report.splits[0].images_folder == "memory://own-classes/data/images"


def test_the_images_folder_can_be_named(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json", folder="elsewhere/photos")
    assert [*found(check(tmp_path))] == ["image-missing"]
    split = Split("train", str(tmp_path / "train.json"), str(tmp_path / "elsewhere" / "photos"))
    assert found(check_dataset([split])) == {}
