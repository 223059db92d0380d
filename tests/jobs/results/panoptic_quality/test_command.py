"""`htc evaluate --panoptic`: the numbers of a run by hand, and one sentence for what cannot be scored."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import htc_batch
from jobs.results.panoptic_quality import evaluate_panoptic
from tests.jobs.results.panoptic_quality.conftest import FOUND, QUALITIES, TRUTH
from tests.support.builders.panoptic_runs import PanopticRun, drawn, panoptic_run, write_segment_png
from tests.support.htc import Htc


def mean(names: list[str]) -> list[float]:
    return [sum(QUALITIES[name][column] for name in names) / len(names) for column in range(3)]


def test_the_numbers_are_those_worked_out_by_hand(shared_run: PanopticRun) -> None:
    found = evaluate_panoptic(shared_run.uri, str(shared_run.truth))
    rows = {row["name"]: row for row in found.category_rows()}
    for name, numbers in QUALITIES.items():
        assert [rows[name][key] for key in ("PQ", "SQ", "RQ")] == pytest.approx(numbers), name
    assert [rows["dog"][key] for key in ("right", "wrong", "missed")] == [1, 0, 1]
    assert [rows["tree"][key] for key in ("right", "wrong", "missed")] == [0, 1, 0]
    things, stuff = ["dog", "person"], ["sky-other", "tree", "grass"]
    for group, names in (("all", things + stuff), ("things", things), ("stuff", stuff)):
        quality = found.qualities[group]
        assert [quality.pq, quality.sq, quality.rq] == pytest.approx(mean(names)), group
        assert quality.categories == len(names)
    assert (found.images, found.segments, found.missing, found.notes) == (3, 9, (), ())
    # One dog missed and one tree wrong in a.png; no mistake in the others.
    assert [(image.file_name, image.mistakes, image.counts.right) for image in found.worst] == [("a.png", 2, 2)]


def test_every_format_has_the_numbers(htc: Htc, shared_run: PanopticRun) -> None:
    command = ["evaluate", shared_run.uri, str(shared_run.truth), "--panoptic"]
    code, out, err = htc(*command, "--per-category")
    assert (code, err) == (0, "")
    all_line = next(line for line in out.splitlines() if line.split()[:1] == ["all"])
    assert all_line.split()[1:] == [f"{100 * value:.1f}" for value in mean(list(QUALITIES))] + ["5"]
    assert any(line.split()[:2] == ["sky-other", "stuff"] for line in out.splitlines())
    assert "3 images, 9 segments" in out
    document = json.loads(htc(*command, "--format", "json")[1])
    assert document["panoptic"]["all"]["PQ"] == pytest.approx(mean(list(QUALITIES))[0])
    assert json.loads(htc(*command, "--json")[1]) == document
    rows = list(csv.DictReader(io.StringIO(htc(*command, "--format", "csv", "--per-category")[1])))
    assert [row["kind"] for row in rows[:3]] == ["all", "things", "stuff"]
    assert float(rows[0]["PQ"]) == pytest.approx(mean(list(QUALITIES))[0])
    assert {row["category"] for row in rows[3:]} == set(QUALITIES)
    page = htc(*command, "--format", "html")[1]
    assert page.startswith("<!DOCTYPE html>")
    assert f"{100 * mean(list(QUALITIES))[0]:.1f}" in page
    assert page.count("<figure>") == 1


def test_python_gives_the_numbers_of_the_command(htc: Htc, shared_run: PanopticRun) -> None:
    found = htc_batch.evaluate_panoptic(shared_run.uri, str(shared_run.truth), "night", worst=0)
    document = json.loads(htc("evaluate", shared_run.uri, str(shared_run.truth), "--panoptic", "--json")[1])
    assert found.to_dict() == {**document, "worst": []}
    assert "all PQ 0.717" in repr(found)
    assert "<table>" in found._repr_html_()


def test_a_folder_gets_the_page_the_numbers_and_the_worst_images(
    htc: Htc, shared_run: PanopticRun, tmp_path: Path
) -> None:
    code, _, err = htc("evaluate", shared_run.uri, str(shared_run.truth), "--panoptic", "--to", str(tmp_path / "j"))
    assert code == 0, err
    written = sorted(str(path.relative_to(tmp_path / "j")) for path in (tmp_path / "j").rglob("*") if path.is_file())
    assert written == ["evaluation.html", "evaluation.json", "metrics.csv", "worst/001-a.jpg"]


def test_only_wanted_categories(htc: Htc, shared_run: PanopticRun) -> None:
    found = evaluate_panoptic(shared_run.uri, str(shared_run.truth), classes=["Dog", "tree"])
    assert [category.name for category in found.categories] == ["dog", "tree"]
    assert found.qualities["all"].pq == pytest.approx((1 / 1.5 + 0) / 2)
    code, _, err = htc("evaluate", shared_run.uri, str(shared_run.truth), "--panoptic", "--class", "cat")
    assert code == 2
    assert "has no category cat; it has person, dog" in err


def test_compacted_and_in_pieces_the_result_is_the_same(own_run: PanopticRun, htc: Htc) -> None:
    before = evaluate_panoptic(own_run.uri, str(own_run.truth)).to_dict()
    assert htc("compact", own_run.uri)[0] == 0
    assert evaluate_panoptic(own_run.uri, str(own_run.truth)).to_dict() == before
    assert evaluate_panoptic(own_run.uri, str(own_run.truth), run="current").to_dict()["panoptic"] == before["panoptic"]


def rename_all(document: dict[str, Any]) -> None:
    for category in document["categories"]:
        category["name"] += "-merged"


FILES: dict[str, Callable[[Path], object]] = {
    "no folder": shutil.rmtree,
    "one PNG missing": lambda folder: (folder / "b.png").unlink(),
    "no PNG": lambda folder: (folder / "b.png").write_bytes(b"GIF89a"),
    "another size": lambda folder: write_segment_png(folder / "a.png", drawn(["ss", "ss"]) * 1000),
}
DOCUMENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown segment": lambda document: document["annotations"][0]["segments_info"].pop(),
    "unknown category": lambda document: document["annotations"][0]["segments_info"][0].update(category_id=77),
    "a list as category": lambda document: document["annotations"][0]["segments_info"][0].update(category_id=[1]),
    "a text as id": lambda document: document["annotations"][0]["segments_info"][0].update(id="115000"),
    "two of one id": lambda document: document["annotations"][0]["segments_info"].extend(
        document["annotations"][0]["segments_info"][:1]
    ),
    "unknown image": lambda document: document["annotations"][0].update(image_id=99),
    "instances": lambda document: document.update(annotations=[{"id": 1, "image_id": 1, "category_id": 1}]),
    "other names": rename_all,
    "image of another size": lambda document: document["images"][0].update(width=10),
}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no folder", "belong into the folder"),
        ("one PNG missing", "b.png does not exist"),
        ("no PNG", "b.png is not a PNG of segments"),
        ("another size", "a.png has 24 x 24 pixels, and its image a.png 48 x 48"),
        ("unknown segment", "which segments_info of a.png does not list"),
        ("unknown category", "is of the category 77, which the list categories does not have"),
        ("a list as category", "is of the category [1], which the list categories does not have"),
        ("a text as id", "without an id of its own"),
        ("two of one id", "without an id of its own"),
        ("unknown image", "an annotation is of the image 99"),
        ("instances", "is not in COCO's panoptic format"),
        ("other names", "has no segment of the categories in"),
        ("image of another size", "images of another size: a.png has 10 x 48 pixels there and 48 x 48 in the run"),
    ],
)
def test_a_truth_that_cannot_be_scored_is_one_sentence(htc: Htc, own_run: PanopticRun, how: str, words: str) -> None:
    if how in FILES:
        FILES[how](own_run.truth.with_suffix(""))
    else:
        DOCUMENTS[how](own_run.document)
        own_run.rewrite()
    code, out, err = htc("evaluate", own_run.uri, str(own_run.truth), "--panoptic")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_a_choice_of_instances_is_refused(htc: Htc, shared_run: PanopticRun) -> None:
    code, out, err = htc("evaluate", shared_run.uri, str(shared_run.truth), "--panoptic", "--min-score", "0.3")
    assert (code, out) == (2, "")
    assert "--min-score chooses instances" in err


def test_without_the_flag_things_are_scored_and_the_flag_is_named(htc: Htc, shared_run: PanopticRun) -> None:
    code, out, err = htc("evaluate", shared_run.uri, str(shared_run.truth))
    assert code == 0
    assert "AP50" in out
    assert "stuff is not" in err
    assert "--panoptic scores things and stuff" in err


def test_ids_written_as_decimals_are_read(own_run: PanopticRun) -> None:
    before = evaluate_panoptic(own_run.uri, str(own_run.truth)).qualities
    for annotation in own_run.document["annotations"]:
        annotation["image_id"] = float(annotation["image_id"])
        for segment in annotation["segments_info"]:
            segment |= {"id": float(segment["id"]), "category_id": float(segment["category_id"])}
    assert evaluate_panoptic(own_run.uri, str(own_run.rewrite())).qualities == before


def test_a_run_without_the_table_says_how_to_get_it(htc: Htc, tmp_path: Path) -> None:
    run = panoptic_run(tmp_path, FOUND, TRUTH, tables=())
    code, out, err = htc("evaluate", run.uri, str(run.truth), "--panoptic")
    assert (code, out) == (2, "")
    assert "Run night has no panoptic table" in err
    assert "run again with --incremental --panoptic" in err


def test_images_and_categories_of_one_side_only_are_named(htc: Htc, tmp_path: Path) -> None:
    truth = {**TRUTH, "gone.png": ["ss"]}
    del truth["c.png"]
    run = panoptic_run(tmp_path, FOUND, truth)
    for category in run.document["categories"]:
        category["name"] = {"tree": "trees", "grass": "GRASS"}.get(category["name"], category["name"])
    run.document["images"].append({"id": 50, "file_name": "c.png", "height": 24, "width": 48})
    # A category of the truth that the run does not have.
    run.document["annotations"][0]["segments_info"][0]["category_id"] = 169
    run.rewrite()
    code, _, err = htc("evaluate", run.uri, str(run.truth), "--panoptic")
    assert code == 0
    for words in (
        "1 annotated image without a row in the run (gone.png)",
        "Not scored: 1 segment of 1 category that",
        "class 'GRASS' is treated as 'grass'",
        "no segment at all of 1 category of the truth (trees), which count with 0",
        "trees may be the model's tree",
        "1 image of",
    ):
        assert words in err


def test_segments_without_a_pixel_are_missed_and_refused_when_strict(htc: Htc, own_run: PanopticRun) -> None:
    own_run.document["annotations"][1]["segments_info"].append({"id": 5, "category_id": 1, "iscrowd": 0})
    own_run.rewrite()
    found = evaluate_panoptic(own_run.uri, str(own_run.truth))
    assert {row["name"]: row["missed"] for row in found.category_rows()}["person"] == 1
    assert any("1 segment of segments_info without a pixel in the PNG, such as 5 of b.png" in n for n in found.notes)
    code, _, err = htc("evaluate", own_run.uri, str(own_run.truth), "--panoptic", "--strict")
    assert code == 2
    assert "--strict" in err


def test_an_image_without_segments_and_a_failed_one_count_as_missed(tmp_path: Path) -> None:
    truth = {**TRUTH, "d.png": ["dddd"], "e.png": ["ddee"]}
    run = panoptic_run(tmp_path, {**FOUND, "d.png": ["...."], "e.png": ["ddee"]}, truth, failed=["e.png"])
    for image in run.document["images"]:
        # Of the failed image neither the run nor the file says the size.
        del image["height"], image["width"]
    run.rewrite()
    found = evaluate_panoptic(run.uri, str(run.truth))
    rows: dict[str, Any] = {row["name"]: row for row in found.category_rows()}
    # One in a.png, one in d.png, two in e.png.
    assert rows["dog"]["missed"] == 4
    assert found.images == 5
    assert {image.file_name: image.status for image in found.worst}["e.png"] == "unreadable"


def test_a_damaged_mask_is_named(htc: Htc, tmp_path: Path) -> None:
    run = panoptic_run(tmp_path, FOUND, TRUTH, damaged=["b.png"])
    code, out, err = htc("evaluate", run.uri, str(run.truth), "--panoptic")
    assert (code, out) == (2, "")
    assert "b.png: a mask of its panoptic segments is damaged" in err


def test_large_maps_are_judged_in_bands(shared_run: PanopticRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from htc_model.masks import label_maps
    from jobs.results.panoptic_quality import score

    whole = evaluate_panoptic(shared_run.uri, str(shared_run.truth)).to_dict()
    seen = []

    def narrow(masks: Any, size: tuple[int, int]) -> Any:
        for top, band in label_maps.label_bands(masks, size, band_pixels=100):
            seen.append(band.size)
            yield top, band

    monkeypatch.setattr(score, "label_bands", narrow)
    assert evaluate_panoptic(shared_run.uri, str(shared_run.truth)).to_dict() == whole
    assert len(seen) > 3
    assert np.max(seen) <= 100
