"""`htc train --check`: the data of a training is checked; nothing is trained or written."""

import json
from pathlib import Path

import pytest
import yaml

from tests.support.builders.annotated_photos import write_coco
from tests.support.htc import Htc

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with train.json of 25 images and val.json of 3."""
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "train.json", photos=25)
    write_coco(tmp_path / "val.json", photos=3, first=25)
    return tmp_path


@pytest.mark.parametrize("arguments", [["."], ["train.json"], ["train.json", "--val", "val.json"], [".", "out"]])
def test_a_data_set_is_checked(folder: Path, htc: Htc, arguments: list[str]) -> None:
    before = sorted(folder.iterdir())
    code, out, err = htc("train", *arguments, "--check")
    assert (code, err) == (0, "")
    assert "errors: 0, warnings: 0, notes: 1" in out
    assert "few-to-score" in out
    assert sorted(folder.iterdir()) == before


def test_errors_have_exit_code_1(folder: Path, htc: Htc) -> None:
    (folder / "images" / "26.png").write_bytes((folder / "images" / "3.png").read_bytes())
    code, out, _ = htc("train", ".", "--check")
    assert code == 1
    assert "ERROR splits-overlap: 1 x" in out


def test_the_sections_of_a_spec_are_checked(folder: Path, htc: Htc) -> None:
    write_coco(folder / "more.json", photos=3, first=22)
    section = {"images": "images"}
    spec = {
        "train": [{"annotations": "train.json", **section}, {"annotations": "more.json", **section}],
        "evaluate": [{"annotations": "val.json", **section}],
        "output": "out",
        "model": {"classes": ["cat"]},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    code, out, _ = htc("train", "spec.yaml", "--check")
    # Images in two sections that are both trained on are repeated, not mixed up.
    assert code == 0
    assert "WARNING image-twice: 3 x" in out
    assert "train 2" in out
    spec["model"] = {"classes": ["dog"]}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    code, out, _ = htc("train", "spec.yaml", "--check")
    assert code == 1
    assert "The class 'dog' is not in the file" in out


def test_data_without_objects_is_reported_and_files_of_other_kinds_refused(folder: Path, htc: Htc) -> None:
    write_coco(folder / "train.json", annotations=[])
    code, out, _ = htc("train", ".", "--check")
    assert code == 1
    assert "annotations-unusable" in out
    (folder / "train.json").write_text(json.dumps({"shapes": []}))
    code, _, err = htc("train", ".", "--check")
    assert code == 2
    assert "not a COCO annotation file" in err
