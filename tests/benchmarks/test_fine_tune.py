"""The fine-tuning benchmark: its photos have sources and its table the means; without photos it is skipped."""

import json
import sys

import pytest

from benchmarks import fine_tune
from htc_model.training.coco_reader import read_annotations


def found(mask_ap: float) -> dict:
    return {"mask_ap": mask_ap, "mask_ap50": 0.5, "box_ap": 0.4, "classes": {"cup": 0.1, "bag": mask_ap}}


def test_the_table_has_the_means_over_the_seeds() -> None:
    table = fine_tune.write_table({"demo": [found(0.2), found(0.3)], "imagenet": [found(0.0)]}, ["cup", "bag"])
    lines = table.splitlines()
    assert lines[0] == "| begun with | mask AP | mask AP50 | box AP | mask AP of cup | mask AP of bag |"
    assert lines[2] == "| the bundled model | 0.250 | 0.500 | 0.400 | 0.100 | 0.250 |"
    assert lines[3] == "| ImageNet's backbone alone | 0.000 | 0.500 | 0.400 | 0.100 | 0.000 |"


def test_without_the_photos_it_says_so(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["fine_tune.py", "--data", str(tmp_path)])
    assert fine_tune.main() == 0
    assert "skipped:" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train.json", "val.json"])
def test_the_photos_are_all_there_with_their_sources_and_no_flaws(name: str) -> None:
    document = json.loads((fine_tune.DATA / name).read_text())
    annotations = read_annotations(document)
    assert (annotations.classes, annotations.bad, len(annotations.images)) == (
        ("person", "dining table", "toilet"), (), 20,
    )  # fmt: skip
    sources = (fine_tune.DATA / "SOURCES.md").read_text()
    for image in document["images"]:
        assert (fine_tune.DATA / "images" / image["file_name"]).is_file()
        assert f"`{image['file_name']}`" in sources
        assert image["license"] in {4, 5, 7}, "not free to be copied"


def test_no_photo_is_in_both_parts() -> None:
    names = [
        {image["file_name"] for image in json.loads((fine_tune.DATA / name).read_text())["images"]}
        for name in ("train.json", "val.json")
    ]
    assert not names[0] & names[1]
