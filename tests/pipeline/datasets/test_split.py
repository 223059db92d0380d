"""Splits: deterministic, stratified, with related images together, and stable when images are added."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import Split, SplitOptions, split_dataset
from pipeline.datasets.assignment import Group, assign_groups
from pipeline.datasets.layout import find_whole
from pipeline.datasets.split import SplitResult
from pipeline.errors import InputError, OutputOccupiedError, SpecError
from pipeline.storage import Storage
from tests.support.builders.annotated_photos import square_annotation, write_coco, write_photo

SHARES = {"train": 0.8, "val": 0.2}


def groups(count: int, *, seed: int = 0, classes: int = 5) -> list[Group]:
    """Groups with classes of falling frequency: the last is in about one of sixteen."""
    random = np.random.default_rng(seed)
    present = random.random((count, classes)) < 0.5 ** np.arange(classes)
    return [Group(f"{at}.jpg", 1, {f"class {k}": 1 for k in np.flatnonzero(row)}) for at, row in enumerate(present)]


def count(of: list[Group], assigned: list[str], name: str) -> dict[str, int]:
    return {
        split: sum(group.classes.get(name, 0) for group, own in zip(of, assigned, strict=True) if own == split)
        for split in sorted(set(assigned))
    }


def test_every_class_has_its_share_in_every_split() -> None:
    many = groups(400)
    assigned = assign_groups(many, SHARES)
    assert assigned.count("val") == pytest.approx(80, abs=2)
    for number in range(5):
        counts = count(many, assigned, f"class {number}")
        assert counts["val"] == pytest.approx(0.2 * sum(counts.values()), abs=2)


def test_the_order_of_the_images_does_not_matter() -> None:
    many = groups(200)
    forwards, backwards = assign_groups(many, SHARES), assign_groups(many[::-1], SHARES)
    assert forwards == backwards[::-1]
    assert assign_groups(many, SHARES, seed=1) != forwards


def test_most_images_stay_when_others_are_added() -> None:
    many = groups(440)
    before, after = assign_groups(many[:400], SHARES), assign_groups(many, SHARES)
    moved = sum(one != other for one, other in zip(before, after, strict=False))
    assert moved <= 20


def test_a_class_of_two_images_is_in_both_splits() -> None:
    many = [*groups(50), Group("x", 1, {"rare": 1}), Group("y", 1, {"rare": 1})]
    for seed in range(10):
        assert count(many, assign_groups(many, SHARES, seed=seed), "rare") == {"train": 1, "val": 1}


def test_groups_that_have_a_place_keep_it() -> None:
    placed = [Group(group.key, 1, group.classes, "val") for group in groups(100)]
    assert set(assign_groups(placed, SHARES)) == {"val"}


def test_large_groups_are_weighed_by_their_images() -> None:
    mixed = [Group(f"scene {at}", 1 + 9 * (at % 3 == 0), {"cat": 1}) for at in range(60)]
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    assigned = assign_groups(mixed, shares)
    sizes = {
        split: sum(group.images for group, own in zip(mixed, assigned, strict=True) if own == split) for split in shares
    }
    total = sum(sizes.values())
    for split, share in shares.items():
        assert sizes[split] / total == pytest.approx(share, abs=0.05)


# From files to files


def split(dataset: Path, to: Path | None = None, **options: Any) -> SplitResult:
    return split_dataset(find_whole(str(dataset), Storage()), to or dataset, SplitOptions(**options))


def names(folder: Path, part: str) -> set[str]:
    return {image["file_name"] for image in json.loads((folder / f"{part}.json").read_text())["images"]}


def test_the_parts_make_the_whole(tmp_path: Path) -> None:
    whole = write_coco(tmp_path / "annotations.json", photos=20, names=("cat", "dog"))
    result = split(tmp_path, val=0.2, test=0.1)
    assert dict(result.images) == {"train": 14, "val": 4, "test": 2}
    parts = [json.loads((tmp_path / f"{part}.json").read_text()) for part in ("train", "val", "test")]
    for key in ("images", "annotations"):
        assert sorted((each for part in parts for each in part[key]), key=lambda each: each["id"]) == whole[key]
    assert all(part["categories"] == whole["categories"] for part in parts)
    assert dict(result.classes["cat"]) == {"train": 14, "val": 4, "test": 2}


def test_equal_images_stay_together(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations.json", photos=12)
    for number in range(6):
        shutil.copy(tmp_path / "images" / f"{number}.png", tmp_path / "images" / f"{number + 6}.png")
    result = split(tmp_path, val=0.4)
    assert (result.groups, result.grouped) == (6, 12)
    val = names(tmp_path, "val")
    assert {f"{int(name[:-4]) % 6}.png" for name in val} == {name for name in val if int(name[:-4]) < 6}
    assert len(val) == 2 * len({int(name[:-4]) % 6 for name in val})


@pytest.mark.parametrize("group_by", [r"^scene\d+", r"^scene(\d+)/", "folder"])
def test_scenes_stay_together(tmp_path: Path, group_by: str) -> None:
    images = [
        {"id": number, "file_name": f"scene{number // 4}/{number}.png", "width": 60, "height": 40}
        for number in range(40)
    ]
    for number, image in enumerate(images):
        write_photo(tmp_path / "images" / image["file_name"], number)
    annotations = [square_annotation(number + 1, number) for number in range(40)]
    write_coco(tmp_path / "annotations.json", photos=0, images=images, annotations=annotations)
    result = split(tmp_path, val=0.2, group_by=group_by)
    assert result.groups == 10
    scenes = [{name.split("/")[0] for name in names(tmp_path, part)} for part in ("train", "val")]
    assert not scenes[0] & scenes[1]
    assert result.images["val"] == 8


def test_images_stay_where_an_earlier_split_has_them(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations.json", photos=20)
    split(tmp_path, val=0.2)
    before = names(tmp_path, "val")
    write_coco(tmp_path / "annotations.json", photos=40)
    result = split(tmp_path, val=0.2)
    assert before < names(tmp_path, "val")
    assert (result.kept, result.images["val"]) == (20, 8)
    # Without the earlier split, the hash of the names keeps most of them.
    split(tmp_path, val=0.2, is_fresh=True)
    assert len(before & names(tmp_path, "val")) >= 2


def test_a_new_folder_gets_a_link_to_the_images(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_coco(tmp_path / "data" / "annotations.json")
    split(tmp_path / "data", tmp_path / "parts", val=0.4)
    assert (tmp_path / "parts" / "images" / "0.png").is_file()
    split(tmp_path / "data", tmp_path / "parts", val=0.4)
    (tmp_path / "taken" / "images").mkdir(parents=True)
    with pytest.raises(OutputOccupiedError, match="taken/images"):
        split(tmp_path / "data", tmp_path / "taken", val=0.4)


def test_images_in_a_store_stay_there(tmp_path: Path) -> None:
    import fsspec

    write_coco(tmp_path / "annotations.json", photos=10)
    fsspec.filesystem("memory").put(str(tmp_path), "/own-classes/whole", recursive=True)
    whole = find_whole("memory://own-classes/whole", Storage())
    result = split_dataset(whole, tmp_path / "parts", SplitOptions(val=0.2))
    assert dict(result.images) == {"train": 8, "val": 2}
    assert "--images memory://own-classes/whole/images" in result.notes[0]
    assert not (tmp_path / "parts" / "images").exists()


def test_an_earlier_test_split_is_not_left_behind(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations.json", photos=10)
    split(tmp_path, val=0.2, test=0.2)
    with pytest.raises(SpecError, match="--test-share"):
        split(tmp_path, val=0.2)
    split(tmp_path, val=0.2, is_fresh=True)
    assert not (tmp_path / "test.json").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"val": 0.0}, "above 0"),
        ({"val": 1.5}, "below 1"),
        ({"val": 0.6, "test": 0.5}, "below 1"),
        ({"val": -0.1, "test": 0.3}, "shares"),
        ({"val": 0.2, "group_by": "("}, "not a regular expression"),
        ({"val": 0.2, "group_by": "street"}, "matches no file name, such as 0.png"),
    ],
)
def test_options_that_cannot_be_used(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    write_coco(tmp_path / "annotations.json")
    with pytest.raises(SpecError, match=word):
        split(tmp_path, **options)


def test_too_few_images_and_groups(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations.json", photos=1)
    with pytest.raises(InputError, match="too few for 2 splits"):
        split(tmp_path)
    write_coco(tmp_path / "annotations.json", photos=3)
    with pytest.raises(InputError, match="No image is left for val"):
        split(tmp_path, group_by=r"\.png")


def test_images_that_cannot_be_read_are_noted(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations.json", photos=10)
    (tmp_path / "images" / "3.png").unlink()
    result = split(tmp_path, val=0.2)
    assert "1 of 10 images cannot be read" in result.notes[0]
    assert split(tmp_path, val=0.2, finds_equal=False).notes == ()


def test_a_data_set_that_is_split_already_is_not_guessed(tmp_path: Path) -> None:
    write_coco(tmp_path / "train.json")
    write_coco(tmp_path / "val.json", first=5)
    with pytest.raises(InputError, match=r"split already \(train.json, val.json\)"):
        split(tmp_path)
    named = Split("train", str(tmp_path / "train.json"))
    assert split_dataset(named, tmp_path / "parts", SplitOptions(val=0.4)).images["val"] == 1
