"""`htc dataset`: what is printed, exit codes, and messages on bad input."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.builders.annotated_photos import (
    SQUARE,
    labelme_shape,
    square_annotation,
    write_coco,
    write_labelme,
    write_photo,
)
from tests.support.htc import Htc
from tests.support.paths import ROOT
from tests.support.without_torch import run_without_torch

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder has photos/ with labelme files for twelve photos: one cat each, and a flawed shape."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        write_photo(tmp_path / "photos" / f"{number}.png", number)
        shapes = [labelme_shape(SQUARE), *([labelme_shape([[1, 1], [2, 2]])] if number == 3 else [])]
        write_labelme(tmp_path / "photos" / f"{number}.json", shapes)
    return tmp_path


def test_convert_check_split(source: Path, htc: Htc) -> None:
    code, out, err = htc("dataset", "convert", "photos", "--to", "data")
    assert (code, err) == (0, "")
    assert "photos is read as labelme." in out
    assert "left out: 1 x polygon with < 3 points (3.json, shape 1)" in out
    assert "12 images with 12 objects in data: annotations.json, images/" in out
    assert "Next: htc dataset check data --to sheets\n      htc dataset split data --val-share 0.1\n" in out

    code, out, err = htc("dataset", "split", "data", "--val-share", "0.25")
    assert (code, err) == (0, "")
    assert "train.json, val.json in" in out
    _, out, _ = htc("dataset", "split", "data", "--val-share", "0.25", "--json")
    assert json.loads(out)["images"] == {"train": 9, "val": 3}
    assert json.loads(out)["kept"] == 12

    code, out, err = htc("dataset", "check", "data", "--to", "sheets", "--pixels")
    assert (code, err) == (0, "")
    assert "errors: 0, warnings: 1, notes: 1 (all pixels decoded)" in out
    assert "WARNING rare-class: 1 x" in out
    assert "12 images on 1 contact sheet in sheets" in out
    assert (source / "sheets" / "contact-01.jpg").read_bytes().startswith(b"\xff\xd8")


def test_errors_have_exit_code_1_and_are_in_the_json(source: Path, htc: Htc) -> None:
    write_coco(source / "train.json", annotations=[square_annotation(1, 0)])
    (source / "images" / "1.png").unlink()
    code, out, _ = htc("dataset", "check", "train.json")
    assert code == 1
    assert "ERROR image-missing: 1 x images that the JSON names and that are not there\n    1.png\n    -> " in out
    code, out, err = htc("dataset", "check", "train.json", "--json", "--to", "sheets")
    assert code == 1
    report = json.loads(out)
    (error,) = [finding for finding in report["findings"] if finding["severity"] == "error"]
    assert (error["code"], error["count"], error["examples"], error["by_split"]) == (
        "image-missing",
        1,
        ["1.png"],
        {"train": 1},
    )
    assert (report["errors"], report["contact_sheets"]) == (1, ["sheets/contact-01.jpg"])
    assert "Not drawn: 1.png" in err


def test_the_report_of_a_conversion_as_json(source: Path, htc: Htc) -> None:
    code, out, _ = htc("dataset", "convert", "photos", "--to", "data", "--json", "--rename", "cat=lynx")
    assert code == 0
    assert json.loads(out) == json.loads((source / "data" / "convert_report.json").read_text())
    assert json.loads(out)["classes"] == {"lynx": 12}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("convert absent --to data", ["absent does not exist"]),
        ("convert empty --to data", ["empty is empty"]),
        ("convert photos --to photos/data", ["lies in the source"]),
        ("convert photos --to photos", ["lies in the source"]),
        ("convert photos --to data --rename cat", ["OLD=NEW"]),
        ("convert photos --to data --class dog", ["no class 'dog'", "cat"]),
        ("convert photos --to data --format cvat", ["no images", "CVAT for images 1.1"]),
        ("convert photos --to data --format paper", ["paper"]),
        ("convert photos --to data --strict", ["--strict", "3.json, shape 1"]),
        ("convert s3://bucket/photos --to data", ["not a local path"]),
        ("convert photos/0.png --to data", ["no annotations of a known format"]),
        ("check photos", ["several JSON files"]),
        ("check empty", ["no COCO JSON", "htc dataset convert"]),
        ("check photos/0.json", ["not a COCO annotation file", "htc dataset convert"]),
        ("check absent.json", ["does not exist"]),
        ("check photos --model resnet", ["no preset 'resnet'"]),
        ("split photos/0.json --val-share 0.1", ["not a COCO annotation file"]),
        ("split sound.json --val-share 2", ["--val-share 2", "below 1"]),
    ],
)
def test_bad_input_is_one_sentence(source: Path, htc: Htc, arguments: str, words: list[str]) -> None:
    (source / "empty").mkdir()
    write_coco(source / "sound.json")
    code, out, err = htc("dataset", *arguments.split())
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert [word for word in words if word not in err] == []


def test_a_json_cut_short_is_named(source: Path, htc: Htc) -> None:
    write_coco(source / "train.json")
    (source / "train.json").write_bytes((source / "train.json").read_bytes()[:-20])
    for arguments in (["check", "train.json"], ["split", "train.json"], ["convert", "train.json", "--to", "data"]):
        code, _, err = htc("dataset", *arguments)
        assert code == 2
        assert "train.json is not JSON" in err


def test_everything_works_without_torch(source: Path) -> None:
    for arguments in (
        ["convert", "photos", "--to", "data"],
        ["split", "data", "--val-share", "0.2"],
        ["check", "data", "--to", "sheets"],
    ):
        done = run_without_torch("dataset", *arguments)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_example_is_sound(tmp_path: Path, htc: Htc) -> None:
    code, out, err = htc(
        "dataset", "convert", str(ROOT / "examples" / "training" / "labelme"), "--to", str(tmp_path / "own")
    )
    assert (code, err) == (0, "")
    # Four persons, and four pairs of skis of two polygons each.
    assert "4 images with 8 objects" in out
    assert "left out" not in out
    code, out, _ = htc("dataset", "check", str(tmp_path / "own"), "--json")
    assert code == 0
    assert [finding["code"] for finding in json.loads(out)["findings"]] == ["rare-class"]


def test_contact_sheets_of_an_earlier_check_are_replaced(source: Path, htc: Htc) -> None:
    write_coco(source / "train.json", photos=14)
    htc("dataset", "check", "train.json", "--to", "sheets")
    assert len(list((source / "sheets").iterdir())) == 2
    shutil.copy(source / "images" / "0.png", source / "sheets" / "mine.png")
    htc("dataset", "check", "train.json", "--to", "sheets", "--sheet-images", "5")
    assert sorted(path.name for path in (source / "sheets").iterdir()) == ["contact-01.jpg", "mine.png"]
