"""`htc evaluate`: average precision from a run's tables."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.cli.program import load_program
from pipeline.errors import InputError, SpecError
from pipeline.output.results import open_results
from tests.support.builders.outputs import Output

runner = CliRunner()


def write_truth(output: Output, path: Path, *, shift_px: int = 0) -> Path:
    """Write COCO annotations of the run's images: the instances of the tables, shifted to the right."""
    results = open_results(output.uri)
    images = [row for row in results.images("night").to_pylist() if row["status"] == "ok"]
    document: dict[str, Any] = {
        "images": [
            {
                "id": 10 + number,
                "file_name": row["uri"].rsplit("/", 1)[-1],
                "height": row["height"],
                "width": row["width"],
            }
            for number, row in enumerate(images)
        ],
        "categories": [{"id": 7, "name": "person"}, {"id": 8, "name": "dog"}, {"id": 9, "name": "zebra"}],
        "annotations": [],
    }
    numbers = {row["image_id"]: 10 + number for number, row in enumerate(images)}
    for instance in results.instances("night").to_pylist():
        box = instance["bbox"]
        x1, y1 = box["x"] + shift_px, box["y"]
        x2, y2 = x1 + box["width"], y1 + box["height"]
        document["annotations"].append(
            {
                "id": 1 + len(document["annotations"]),
                "image_id": numbers[instance["image_id"]],
                "category_id": 7 if instance["category"] == "person" else 8,
                "bbox": [x1, y1, box["width"], box["height"]],
                "area": instance["area"],
                "iscrowd": 0,
                "segmentation": instance["mask"] if not shift_px else [[x1, y1, x2, y1, x2, y2, x1, y2]],
            }
        )
    path.write_text(json.dumps(document))
    return path


def score(output: Output, truth: Path, *words: str) -> dict[str, Any]:
    done = runner.invoke(load_program(), ["evaluate", output.uri, str(truth), "--json", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_tables_that_equal_the_truth_score_full_marks(output: Output, tmp_path: Path) -> None:
    truth = write_truth(output, tmp_path / "truth.json")
    scores = score(output, truth, "--class", "person", "--class", "dog")
    assert (scores["run"], scores["images"]) == ("night", 5)
    assert scores["box_ap"] == pytest.approx(1.0)
    assert scores["mask_ap"] == pytest.approx(1.0)


def test_moved_truth_scores_less(output: Output, tmp_path: Path) -> None:
    truth = write_truth(output, tmp_path / "truth.json", shift_px=40)
    scores = score(output, truth, "--class", "person")
    assert scores["box_ap"] < 0.9
    assert scores["mask_ap"] < scores["box_ap50"]


def test_only_the_classes_that_the_model_knows_count(output: Output, tmp_path: Path) -> None:
    # The run's model is the bundled one, which knows persons only; dogs that are elsewhere pull the average down.
    truth = write_truth(output, tmp_path / "truth.json")
    document = json.loads(truth.read_text())
    for entry in document["annotations"]:
        if entry["category_id"] == 8:
            entry["bbox"] = [0, 0, 9, 9]
            entry["segmentation"] = [[0, 0, 9, 0, 9, 9, 0, 9]]
    truth.write_text(json.dumps(document))
    assert score(output, truth)["mask_ap"] == pytest.approx(1.0)
    assert score(output, truth, "--class", "person", "--class", "dog")["mask_ap"] == pytest.approx(0.5)


def test_the_table_names_what_was_scored(output: Output, tmp_path: Path) -> None:
    truth = write_truth(output, tmp_path / "truth.json")
    document = json.loads(truth.read_text())
    document["images"].append({"id": 99, "file_name": "elsewhere.jpg", "height": 5, "width": 5})
    truth.write_text(json.dumps(document))
    done = runner.invoke(load_program(), ["evaluate", output.uri, str(truth)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Run night: 5 images, 5 detections of person" in done.stdout
    assert "100.0" in done.stdout
    assert "1 annotated image without a row in the run (elsewhere.jpg)" in done.stderr


def test_what_cannot_be_scored_is_named(output: Output, make_output: Callable[..., Output], tmp_path: Path) -> None:
    from jobs.results.evaluation import report_evaluation

    truth = write_truth(output, tmp_path / "truth.json")
    with pytest.raises(InputError, match="no run nights"):
        report_evaluation(output.uri, str(truth), run="nights")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(SpecError, match=r"broken\.json is not JSON"):
        report_evaluation(output.uri, str(broken))
    document = json.loads(truth.read_text())
    document["images"] = [{**image, "file_name": f"other-{image['file_name']}"} for image in document["images"]]
    strange = tmp_path / "strange.json"
    strange.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"None of the images in .*strange\.json is in run night"):
        report_evaluation(output.uri, str(strange))
    document["categories"] = [{"id": 7, "name": "giraffe"}]
    document["annotations"] = [{**entry, "category_id": 7} for entry in document["annotations"]]
    strange.write_text(json.dumps(document))
    with pytest.raises(InputError, match="knows none of the classes"):
        report_evaluation(output.uri, str(strange))


def test_a_mask_whose_runs_do_not_fill_it_is_named(output: Output, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    truth = write_truth(output, tmp_path / "truth.json")
    part = open_results(output.uri).instance_parts("night")[0]
    table = pq.ParquetFile(part).read()
    rows = table.to_pylist()
    rows[0]["mask"]["size"] = [rows[0]["mask"]["size"][0] + 1, rows[0]["mask"]["size"][1]]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part)
    # In a separate process, with a time limit: pycocotools never returns from such a mask.
    words = ["evaluate", output.uri, str(truth), "--class", "person", "--class", "dog"]
    program = f"from jobs import cli\ncli.main({words!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"A mask of the image {rows[0]['image_id']} in the tables is damaged" in done.stderr
