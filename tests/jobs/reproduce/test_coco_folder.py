"""COCO's folder is checked before anything is computed."""

from pathlib import Path
from shutil import rmtree

import pytest

from jobs.reproduce.coco_folder import open_coco
from pipeline.errors import HtcError, InputError, SpecError
from pipeline.storage.storage import Storage


def problem(folder: Path, kind: type[HtcError]) -> str:
    with pytest.raises(kind) as caught:
        open_coco(str(folder), Storage())
    return str(caught.value)


def test_a_folder_as_coco_is_unpacked(coco: Path) -> None:
    found = open_coco(str(coco), Storage())
    assert (found.images, found.photos) == (4, str(coco / "val2017"))


def test_what_is_missing_is_named_with_its_address(coco: Path) -> None:
    truth = coco / "annotations" / "instances_val2017.json"
    assert "val2017.zip" in problem(coco / "no", InputError)
    truth.rename(coco / "aside.json")
    assert "annotations_trainval2017.zip" in problem(coco, InputError)
    for photo in (coco / "val2017").iterdir():
        photo.unlink()
    assert "no photos" in problem(coco, InputError)
    rmtree(coco / "val2017")
    assert "no photos" in problem(coco, InputError)


@pytest.mark.parametrize("text", ["[]", "{}", '{"images": [], "annotations": []}', '{"images": [{}]}', "no json"])
def test_another_file_than_instances_is_refused(coco: Path, text: str) -> None:
    truth = coco / "annotations" / "instances_val2017.json"
    truth.write_text(text)
    assert str(truth) in problem(coco, SpecError)
