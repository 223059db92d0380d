"""`htc evaluate` with real-world annotations: flaws are named, and what pycocotools scores is scored."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.cli.program import load_program
from jobs.results.evaluation import report_evaluation
from pipeline.errors import InputError, SpecError
from tests.jobs.results.evaluation.test_command import write_truth
from tests.support.builders.outputs import Output

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def truth(output: Output, tmp_path: Path) -> Path:
    """Annotations of persons, and of dogs, that the tables equal."""
    return write_truth(output, tmp_path / "truth.json")


def changed(truth: Path, change: Change) -> Path:
    document = json.loads(truth.read_text())
    change(document)
    truth.write_text(json.dumps(document))
    return truth


def evaluate(output: Output, truth: Path, *words: str) -> tuple[dict[str, Any], str]:
    done = CliRunner().invoke(
        load_program(), ["evaluate", output.uri, str(truth), "--json", *words], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def test_flaws_are_counted_and_named_and_refused_when_strict(output: Output, truth: Path) -> None:
    def flaw(document: dict[str, Any]) -> None:
        document["annotations"][0] |= {"segmentation": [[1, 1, 9, 9]], "bbox": None}
        document["annotations"][2]["bbox"] = [3, 3, 0, 0]
        document["annotations"][4]["image_id"] = 999

    changed(truth, flaw)
    found, printed = evaluate(output, truth)
    assert "3 flaws" in printed
    assert "1 x polygon with < 3 points" in printed
    assert "annotation 1 of" in printed
    assert "annotation 5 of image 999" in printed
    assert "1 flaw in annotations that still count: 1 x the box has no area" in printed
    assert [flaw["annotation"] for flaw in found["left_out"]] == [1, 1, 5]
    assert [flaw["annotation"] for flaw in found["mended"]] == [3]
    assert 0 < found["mask_ap"] < 1
    with pytest.raises(SpecError, match=r"polygon with < 3 points.*--strict"):
        report_evaluation(output.uri, str(truth), is_strict=True)


def test_valid_annotations_pass_strict_without_notes(output: Output, truth: Path) -> None:
    _, printed = evaluate(output, truth, "--strict")
    assert "flaw" not in printed
    assert "Only 5 scored images with objects" in printed
    assert "1 of the file's 3 classes" not in printed
    assert "2 of the file's 3 classes, which the model does not know (dog, zebra)" in printed


def test_images_without_a_size_get_that_of_the_run(output: Output, truth: Path) -> None:
    def forget(document: dict[str, Any]) -> None:
        for number, image in enumerate(document["images"]):
            image |= {"height": (None, -1, 0)[number % 3], "width": None}

    found, printed = evaluate(output, changed(truth, forget))
    assert found["mask_ap"] == pytest.approx(1)
    assert "5 flaws in annotations that still count" in printed


def test_annotations_of_another_size_are_refused_with_both(output: Output, truth: Path) -> None:
    def halve(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image |= {"height": image["height"] // 2, "width": image["width"] // 2}
        for entry in document["annotations"]:
            entry["segmentation"] = None

    size = json.loads(truth.read_text())["images"][0]
    pattern = f"{size['width'] // 2} x {size['height'] // 2} pixels there and {size['width']} x {size['height']}"
    with pytest.raises(InputError, match=pattern):
        report_evaluation(output.uri, str(changed(truth, halve)))


def test_boxes_alone_give_no_mask_ap_with_a_note(output: Output, truth: Path) -> None:
    found, printed = evaluate(output, changed(truth, lambda d: [e.pop("segmentation") for e in d["annotations"]]))
    assert found["box_ap"] == pytest.approx(1)
    assert "mask_ap" not in found
    assert "No mask AP" in printed
    table = CliRunner().invoke(load_program(), ["evaluate", output.uri, str(truth)], catch_exceptions=False)
    assert "mask " not in table.stdout


def _texts(document: dict[str, Any]) -> None:
    for image in document["images"]:
        image["id"] = f"n{image['id']}"
    for category in document["categories"]:
        category["id"] = f"c{category['id']}"
    for entry in document["annotations"]:
        entry |= {
            "image_id": f"n{entry['image_id']}",
            "category_id": f"c{entry['category_id']}",
            "id": f"a{entry['id']}",
        }


def _file_names(document: dict[str, Any]) -> None:
    names = {image["id"]: image["file_name"] for image in document["images"]}
    for image in document["images"]:
        image["id"] = image.pop("file_name")
    for entry in document["annotations"]:
        entry["image_id"] = names[entry["image_id"]]


def _decimals(document: dict[str, Any]) -> None:
    for image in document["images"]:
        image |= {key: float(image[key]) for key in ("id", "height", "width")}
    for category in document["categories"]:
        category["id"] = float(category["id"])
    for entry in document["annotations"]:
        entry |= {key: float(entry[key]) for key in ("id", "image_id", "category_id")}


def _case(document: dict[str, Any]) -> None:
    document["categories"][0]["name"] = " Person"


def _two_of_one_name(document: dict[str, Any]) -> None:
    document["categories"].append({"id": 70, "name": "person"})
    document["annotations"][0]["category_id"] = 70


def _case_twice(document: dict[str, Any]) -> None:
    document["categories"].append({"id": 70, "name": "PERSON"})
    document["annotations"][0]["category_id"] = 70


def _without_areas(document: dict[str, Any]) -> None:
    for entry in document["annotations"]:
        del entry["area"]


def _folders(document: dict[str, Any]) -> None:
    for image in document["images"]:
        image["file_name"] = f".\\elsewhere\\{image['file_name']}"


def _addresses(document: dict[str, Any]) -> None:
    for image in document["images"]:
        image["coco_url"] = f"http://images.example/val/{image.pop('file_name')}"


@pytest.mark.parametrize(
    ("change", "printed"),
    [
        (_texts, ""),
        (_file_names, ""),
        (_decimals, "written as decimals"),
        (_case, "class ' Person' is treated as 'person'"),
        (_two_of_one_name, "are all called person"),
        (_case_twice, "class 'PERSON' is treated as 'person'"),
        (_without_areas, ""),
        (_folders, "matched by the last part"),
        (_addresses, ""),
    ],
)
def test_unusual_annotations_are_scored_with_notes(output: Output, truth: Path, change: Change, printed: str) -> None:
    before, _ = evaluate(output, truth)
    found, said = evaluate(output, changed(truth, change))
    assert {key: value for key, value in found.items() if "ap" in key} == pytest.approx(
        {key: value for key, value in before.items() if "ap" in key}
    )
    assert found["mask_ap"] == pytest.approx(1)
    assert printed in said
    assert evaluate(output, truth, "--class", "Person")[0]["mask_ap"] == pytest.approx(1)


@pytest.mark.parametrize(
    "encode", [gzip.compress, lambda b: b"\xef\xbb\xbf" + b, lambda b: b.decode().encode("utf-16")]
)
def test_gzip_and_byte_order_marks(output: Output, truth: Path, encode: Callable[[bytes], bytes]) -> None:
    truth.write_bytes(encode(truth.read_bytes()))
    assert evaluate(output, truth)[0]["mask_ap"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b"\x1f\x8b\x08rubbish", "damaged gzip"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "COCO annotation file"),
        (b"\xff\x00\xfe", "is not JSON"),
        (b'{"images": [], "annotations": [], "categories": []}', "No image has an object to score"),
    ],
)
def test_a_file_without_annotations_is_one_sentence(output: Output, truth: Path, payload: bytes, sentence: str) -> None:
    truth.write_bytes(payload)
    with pytest.raises(SpecError, match=sentence) as caught:
        report_evaluation(output.uri, str(truth))
    assert "\n" not in str(caught.value)


def test_annotations_that_are_not_there_are_bad_usage(output: Output, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not exist"):
        report_evaluation(output.uri, str(tmp_path / "nowhere.json"))


def test_two_annotated_images_for_one_image_are_refused(output: Output, truth: Path) -> None:
    def repeat(document: dict[str, Any]) -> None:
        document["images"].append(document["images"][0] | {"id": 55})

    with pytest.raises(InputError, match=r"twice: as image 10 .* and as image 55"):
        report_evaluation(output.uri, str(changed(truth, repeat)))


def test_numbers_beyond_json_readers_are_text(output: Output, truth: Path) -> None:
    def enlarge(document: dict[str, Any]) -> None:
        document["annotations"][0] |= {"id": 2**60 + 1, "image_id": 2**61 + 1}

    found, _ = evaluate(output, changed(truth, enlarge))
    assert found["left_out"][0] == {
        "annotation": str(2**60 + 1),
        "image": f"image {2**61 + 1}",
        "kind": "the image is not in the file",
    }
