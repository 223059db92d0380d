"""Truth that does not fit the run, and runs that are not finished: what is wrong, and the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.results.evaluation import evaluate
from jobs.results.evaluation.score import DEFAULT_WORST
from pipeline.errors import InputError, SpecError
from pipeline.output.results import open_results
from tests.support.builders.judged_runs import JudgedRun, judged_run
from tests.support.htc import Htc

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Change = Callable[[dict[str, Any]], object]


def rename(document: dict[str, Any], new_name: Callable[[str], str]) -> None:
    for image in document["images"]:
        image["file_name"] = new_name(image["file_name"])


def test_names_with_another_ending_are_counted_and_the_rule_is_named(own_run: JudgedRun) -> None:
    rename(own_run.document, lambda name: name.upper().replace(".PNG", ".jpg"))
    truth = str(own_run.rewrite())
    with pytest.raises(InputError, match=r"8 are found without the ending of the name: --match stem") as raised:
        evaluate(own_run.uri, truth)
    assert "000001.png" in str(raised.value)
    found = evaluate(own_run.uri, truth, match="stem")
    assert (found.images, found.missing) == (8, ())


def test_names_that_are_no_names_match_by_id(own_run: JudgedRun) -> None:
    for image in own_run.document["images"]:
        image["id"] = int(image["file_name"].removesuffix(".png"))
    for entry in own_run.document["annotations"]:
        # The builder's ids are 1000 less the number.
        entry["image_id"] = 1000 - entry["image_id"]
    rename(own_run.document, lambda name: f"photo {name}x")
    truth = str(own_run.rewrite())
    with pytest.raises(InputError, match="by the id: --match id"):
        evaluate(own_run.uri, truth)
    assert evaluate(own_run.uri, truth, match="id").images == 8


def test_some_names_that_do_not_match_are_a_note(own_run: JudgedRun) -> None:
    own_run.document["images"][0]["file_name"] = own_run.document["images"][0]["file_name"].replace(".png", ".tif")
    found = evaluate(own_run.uri, str(own_run.rewrite()))
    assert (found.images, len(found.missing)) == (7, 1)
    assert any("1 is found without the ending of the name: --match stem" in note for note in found.notes)


def test_names_that_no_rule_finds(own_run: JudgedRun) -> None:
    rename(own_run.document, lambda name: f"other-{name}")
    with pytest.raises(InputError, match=r"names 8 images.*the run has 8 images.*No rule of --match"):
        evaluate(own_run.uri, str(own_run.rewrite()))


def test_categories_that_the_truth_lacks_are_counted_and_named(own_run: JudgedRun) -> None:
    for entry in own_run.document["annotations"]:
        entry["category_id"] = 2
    own_run.document["categories"] = own_run.document["categories"][:1]
    found = evaluate(own_run.uri, str(own_run.rewrite()))
    assert found.classes == ("person",)
    note = next(note for note in found.notes if "does not have" in note)
    assert all(name in note for name in ("dog", "kite", "tie"))


def test_a_category_with_another_spelling_is_asked_after(htc: Htc, output: Any, tmp_path: Path) -> None:
    from tests.jobs.results.evaluation.test_command import write_truth

    truth = write_truth(output, tmp_path / "truth.json")
    truth.write_text(truth.read_text().replace('"person"', '"persons"'))
    code, _, printed = htc("evaluate", output.uri, str(truth))
    assert code == 2
    assert "knows none of the classes" in printed
    assert "persons may be the model's person" in printed


def test_a_class_that_is_misspelt_has_its_nearest_named(own_run: JudgedRun) -> None:
    own_run.document["categories"] += [{"id": 100 + number, "name": f"thing {number:03d}"} for number in range(900)]
    with pytest.raises(SpecError, match=r"'persn' is not in the file; did you mean person\?") as raised:
        evaluate(own_run.uri, str(own_run.rewrite()), classes=["persn"])
    assert "and 884 more" in str(raised.value)


def test_a_run_in_progress_is_scored_as_far_as_it_is(tmp_path: Path) -> None:
    judged = judged_run(tmp_path, images=24, shards=1)
    found = evaluate(judged.uri, str(judged.truth))
    assert (found.images, len(found.missing)) == (8, 16)
    assert any("not finished (1 of 3 shards)" in note for note in found.notes)


def test_current_takes_the_newest_rows_of_each_image(tmp_path: Path, htc: Htc) -> None:
    judged = judged_run(tmp_path, images=24, emptied=1)
    night, later, current = (evaluate(judged.uri, str(judged.truth), run=run) for run in ("night", "later", "current"))
    assert (night.images, later.images, current.images) == (24, 8, 24)
    emptied = {image["file_name"] for image in judged.document["images"][:8]}
    rows = open_results(judged.uri).instances("night").to_pylist()
    assert later.instances == 0 < current.instances < night.instances == len(rows)
    assert current.instances == sum(Path(row["uri"]).name not in emptied for row in rows)
    assert any("of 2 runs (later, night)" in note for note in current.notes)
    # Its pictures are found in the runs that the rows are of.
    words = ("evaluate", judged.uri, str(judged.truth), "--run", "current", "--worst", "24", "--format", "html")
    code, source, _ = htc(*words)
    assert code == 0
    assert source.count("data:image/jpeg") > 8
    assert "not in the manifest" not in source


def test_a_run_without_a_row_has_nothing_to_score(tmp_path: Path) -> None:
    judged = judged_run(tmp_path, images=8, shards=0)
    with pytest.raises(InputError, match="has no row of an image yet"):
        evaluate(judged.uri, str(judged.truth))


def test_a_run_without_instances_scores_zero_with_a_note(output: Any, make_output: Any, tmp_path: Path) -> None:
    from tests.jobs.results.evaluation.test_command import write_truth

    truth = write_truth(output, tmp_path / "truth.json")
    empty = make_output(scores=(), output="empty")
    found = evaluate(empty.uri, str(truth))
    assert found.metrics["box"]["AP"] == found.metrics["mask"]["AR100"] == 0
    assert any("every average is 0" in note for note in found.notes)
    assert len(found.worst) == min(DEFAULT_WORST, found.images)


def test_a_run_that_is_not_there_has_the_nearest_named(own_run: JudgedRun) -> None:
    with pytest.raises(InputError, match=r"no run nigth .*did you mean night"):
        evaluate(own_run.uri, str(own_run.truth), run="nigth")


def test_another_output_has_no_run(tmp_path: Path, own_run: JudgedRun) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="holds no run"):
        evaluate(str(tmp_path / "nothing"), str(own_run.truth))


def panoptic(own_run: JudgedRun, folder: Path | None) -> None:
    """Convert the truth: objects that overlap lose what the later one covers; one category is stuff."""
    segments: dict[int, list[dict[str, Any]]] = {}
    pixels: dict[int, np.ndarray] = {}
    from pycocotools import mask as coco_mask

    for entry in own_run.document["annotations"]:
        mask = coco_mask.decode(entry["segmentation"]).astype(bool)
        canvas = pixels.setdefault(entry["image_id"], np.zeros(mask.shape, np.int64))
        canvas[mask] = 70000 + entry["id"]
        segments.setdefault(entry["image_id"], []).append(
            {"id": 70000 + entry["id"], **{key: entry[key] for key in ("category_id", "bbox", "area", "iscrowd")}}
        )
    for category in own_run.document["categories"]:
        category["isthing"] = int(category["name"] != "tie")
    own_run.document["annotations"] = [
        {"image_id": number, "file_name": f"{number}.png", "segments_info": found} for number, found in segments.items()
    ]
    if folder is not None:
        folder.mkdir()
        for number, canvas in pixels.items():
            colours = np.stack([canvas % 256, canvas // 256 % 256, canvas // 65536], axis=2).astype(np.uint8)
            Image.fromarray(colours).save(folder / f"{number}.png")


def test_panoptic_truth_keeps_its_things(own_run: JudgedRun) -> None:
    plain = evaluate(own_run.uri, str(own_run.truth), classes=["person", "dog", "kite"])
    panoptic(own_run, None)
    boxes = evaluate(own_run.uri, str(own_run.rewrite()))
    assert boxes.classes == ("person", "dog", "kite")
    assert boxes.metrics["box"] == pytest.approx(plain.metrics["box"])
    assert "mask" not in boxes.kinds
    assert any("is panoptic" in note and "boxes only" in note for note in boxes.notes)


def test_panoptic_truth_has_masks_in_the_folder_beside_it(own_run: JudgedRun) -> None:
    panoptic(own_run, own_run.truth.with_suffix(""))
    found = evaluate(own_run.uri, str(own_run.rewrite()))
    assert found.metrics["mask"]["AP50"] > 0.1
    assert any("masks are from" in note for note in found.notes)
    (own_run.truth.with_suffix("") / f"{own_run.document['annotations'][-1]['image_id']}.png").write_bytes(b"GIF")
    with pytest.raises(SpecError, match="is not a PNG of segments"):
        evaluate(own_run.uri, str(own_run.truth))
    shutil.rmtree(own_run.truth.with_suffix(""))
    json.loads(own_run.truth.read_text())


@pytest.mark.parametrize("name", ["table", "csv", "html"])
def test_json_beside_another_format_is_refused(htc: Htc, own_run: JudgedRun, name: str) -> None:
    code, out, err = htc("evaluate", own_run.uri, str(own_run.truth), "--json", "--format", name)
    assert (code, out) == (2, "")
    assert f"--format {name} does not; give one of the two" in err
    assert htc("evaluate", own_run.uri, str(own_run.truth), "--json", "--format", "json")[1].count("\n") == 1


@pytest.mark.parametrize("worst", [0, 1, 7])
def test_so_many_of_the_worst_images_are_in_the_table(htc: Htc, own_run: JudgedRun, worst: int) -> None:
    found = evaluate(own_run.uri, str(own_run.truth), worst=worst).worst
    assert len(found) == worst
    _, out, _ = htc("evaluate", own_run.uri, str(own_run.truth), "--worst", str(worst))
    _, is_there, listed = out.partition("worst images")
    assert [line.split()[-1] for line in listed.splitlines()[2:] if line.strip()] == [each.uri for each in found]
    assert bool(is_there) == bool(found)
